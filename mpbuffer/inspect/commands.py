"""``mpbuffer ls``, ``mpbuffer gc`` and ``mpbuffer inspect``."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from mpbuffer.errors import MpbufferError
from mpbuffer.inspect.inspection import Report, inspect, list_segments, remove_dead_segments
from mpbuffer.inspect.snapshot_commands import restore_command, snapshot_command

__all__ = ["commands"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mpbuffer")
def commands() -> None:
    """Look at replay buffers in shared memory, save them, and clean up after killed programs.

    These commands do not disturb programs that use a buffer. They show the buffers of the user who
    runs them.
    """


commands.add_command(snapshot_command)
commands.add_command(restore_command)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@commands.command("ls")
@click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=0.2,
    show_default=True,
    help="Seconds over which rows per second are counted; 0: not at all.",
)
@as_json
def list_command(interval: float, as_json: bool) -> None:
    """List this user's buffers, including named ones that no process has open (stale).

    Buffers without a name are found through the processes that have them open.
    """
    reports = list_segments(interval)
    if as_json:
        _print_json(reports)
        return
    if not reports:
        click.echo("no buffers", err=True)
        return
    table = _table()
    for heading in ("NAME", "STATE", "CLASS"):
        table.add_column(heading, overflow="fold")
    for heading in ("CAPACITY", "FILL", "MEMORY", "ROWS/S", "PROCESSES"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("LEARNER", "FIELDS"):
        table.add_column(heading, overflow="fold")
    for report in reports:
        table.add_row(*_line(report))
    _show(table)


@commands.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def collect_command(dry_run: bool) -> None:
    """Remove buffers that no process has open.

    A buffer is removed only if the kernel says that no process, running or stopped, has it open.
    Only named buffers can be left behind: others are freed with their last process.
    """
    names = remove_dead_segments(dry_run=dry_run)
    for name in names:
        click.echo(f"{'would remove' if dry_run else 'removed'} {_printable(name)}")
    if not names:
        click.echo("nothing to remove", err=True)


@commands.command("inspect")
@click.argument("name")
@as_json
def inspect_command(name: str, as_json: bool) -> None:
    """Show the buffer NAME, and check each of its slots and leaves.

    A row that is being written is no damage. Exit status: 0 sound, 1 damaged, 2 not found or not
    readable.
    """
    try:
        report = inspect(name)
    except (MpbufferError, OSError, ValueError) as error:
        click.echo(f"mpbuffer: {_printable(str(error))}", err=True)
        raise SystemExit(2) from None
    if as_json:
        _print_json(report)
    else:
        _print_report(report)
    raise SystemExit(1 if report["damages"] else 0)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)


def _show(table: Table) -> None:
    """Print a table; in a pipe, each row on one line."""
    width = None if sys.stdout.isatty() else 100_000
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().strip("\n").splitlines():
        click.echo(line.rstrip())


def _print_json(value: Any) -> None:
    click.echo(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """Return the value with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _line(report: Report) -> list[str]:
    if "bytes" not in report:
        return [_printable(report["name"]), "unreadable", *[""] * 8]
    state = "live" if report["live"] else "stale"
    if report["damages"]:
        state += ", damaged"
    memory = _bytes(report["bytes"])
    if not report["readable"]:
        return [report["name"], state, "", "", "", memory, "", "", "", ""]
    if "weights" in report:
        return [
            report["name"],
            state,
            report["class"],
            "",
            f"version {report['weights']['version']:,}",
            memory,
            "",
            str(report["alive"]),
            _holder(report, report["publisher"]),
            _fields(report),
        ]
    fill = f"{report['rows'] / report['size']:.0%}"
    rate = report.get("rows_per_second")
    return [
        report["name"],
        state,
        report["class"],
        f"{report['size']:,}",
        f"{report['rows']:,} ({fill})",
        memory,
        "" if rate is None else f"{rate:,.0f}",
        str(report["alive"]),
        _learner(report),
        _fields(report),
    ]


def _print_report(report: Report) -> None:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("name", report["name"])
    if report["nameless"]:
        facts.add_row("memory", f"without a name, {report['path']}")
    else:
        facts.add_row("file", report["path"])
    facts.add_row("state", "live" if report["live"] else "stale: no process has it open")
    facts.add_row("size", _bytes(report["bytes"]))
    if not report["readable"]:
        _show(facts)
        _print_findings(report)
        return
    facts.add_row("created", _time(report["created_at"]))
    facts.add_row("class", report["class"])
    facts.add_row("fields", _fields(report))
    if "weights" in report:
        _add_weights(facts, report)
        _show(facts)
        _print_processes(report, ["reads"])
        _print_findings(report)
        return
    facts.add_row(
        "capacity",
        f"{report['size']:,} rows of {report['row_bytes']:,} bytes, {report['stride']:,} apart",
    )
    facts.add_row(
        "rows",
        f"{report['rows']:,} complete, {report['claims']:,} being written, "
        f"{report['abandoned_claims']:,} left half written",
    )
    facts.add_row("added", f"{report['rows_added']:,} rows so far")
    _add_sources(facts, report)
    facts.add_row("handles", f"{report['alive']:,} open, {report['max_handles']:,} at most")
    facts.add_row("next slot", f"{report['position'] % report['size']:,}")
    if report["prioritized"]:
        learner = report["learner"]
        facts.add_row("priorities", f"(priority + {report['eps']:g}) ** {report['alpha']:g}")
        facts.add_row("largest", f"{report['max_priority']:g}")
        facts.add_row("learner", _learner(report, with_time=True))
        facts.add_row(
            "its tree",
            f"{learner['sampleable']:,} rows, total {learner['total']:g}, "
            f"least leaf {learner['least_leaf']:g}",
        )
        facts.add_row(
            "its counts",
            f"{learner['rows_folded']:,} rows folded, {learner['draws']:,} draws, "
            f"{learner['updates']:,} updates, {learner['stale']:,} stale",
        )
    _show(facts)
    _print_processes(report)
    _print_findings(report)


def _add_sources(facts: Table, report: Report) -> None:
    rule = report.get("sequence")
    if rule is not None:
        length = f"whole episodes of at most {rule['length']:,} steps"
        if not rule["episodes"]:
            length = f"{rule['length']:,} steps, a new one every {rule['period']:,}"
        parts = [length, f"burn-in {rule['burn_in']:,}"]
        if not rule["pad"]:
            parts.append("none shorter")
        if rule["state"]:
            parts.append("state " + ", ".join(map(_printable, rule["state"])))
        facts.add_row("sequences", "; ".join(parts))
    for each in report["sources"]:
        facts.add_row(
            "steps" if rule is not None else "frames",
            f"{each['sources']:,} of {each['bytes']:,} bytes fit, {each['stored']:,} are there, "
            f"{each['claims']:,} being written, {each['abandoned_claims']:,} left half written",
        )
        facts.add_row("", f"{each['written']:,} written so far, {each['claimed']:,} claimed")
    if report["sources"]:
        facts.add_row("early", f"{report['early']:,} rows went before their slot was needed")


def _add_weights(facts: Table, report: Report) -> None:
    weights = report["weights"]
    facts.add_row("version", f"{weights['version']:,}, published {weights['age']:,.1f} s ago")
    facts.add_row("room", f"{weights['slots']} versions of {weights['bytes']:,} bytes")
    facts.add_row(
        "reads",
        f"{weights['reads']:,}, of them {weights['repeats']:,} copied again; "
        f"{weights['in_reads']:,} going on",
    )
    facts.add_row("publisher", _holder(report, report["publisher"], with_time=True))


def _print_processes(report: Report, counts: Sequence[str] = ("rows", "skips", "steals")) -> None:
    if not report["processes"]:
        return
    table = _table()
    for heading in ("PROCESS", "PID"):
        table.add_column(heading, justify="right")
    table.add_column("STATE")
    for heading in counts:
        table.add_column(heading.upper(), justify="right")
    table.add_column("SINCE")
    for each in report["processes"]:
        table.add_row(
            str(each["number"]),
            str(each["pid"]),
            each["state_in_words"],
            *(f"{each['rows' if count == 'reads' else count]:,}" for count in counts),
            _time(each["registered_at"]),
        )
    click.echo()
    _show(table)


def _print_findings(report: Report) -> None:
    click.echo()
    for note in report["notes"]:
        click.echo(f"note: {_printable(note)}")
    for damage in report["damage"]:
        click.echo(f"damage: {_printable(damage)}")
    untold = report["damages"] - len(report["damage"])
    if untold:
        click.echo(f"damage: {untold:,} more findings like these")
    if not report["damages"]:
        checked = "what is offered and read" if "weights" in report else "every slot and leaf"
        click.echo(f"sound: {checked} was checked")


def _learner(report: Report, *, with_time: bool = False) -> str:
    if not report["prioritized"]:
        return ""
    return _holder(report, report["learner"], with_time=with_time)


def _holder(report: Report, role: Report, *, with_time: bool = False) -> str:
    if not role["role_held"]:
        return "nobody"
    number = role["process"]
    for each in report["processes"]:
        if each["number"] == number:
            words = f"pid {each['pid']} ({each['state_in_words']})"
            return f"{words}, since {_time(role['since'])}" if with_time else words
    return "somebody, just now"


def _fields(report: Report) -> str:
    parts = []
    for field in report.get("fields", []):
        extents = "x".join(map(str, field["shape"]))
        parts.append(f"{_printable(field['name'])}:{field['dtype']}[{extents}]")
    return " ".join(parts)


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def _time(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "at no time"
