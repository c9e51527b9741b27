"""``mpbuffer snapshot`` and ``mpbuffer restore``."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mpbuffer.buffer.attaching import attach
from mpbuffer.buffer.restoring import restore
from mpbuffer.errors import MpbufferError

__all__ = ["restore_command", "snapshot_command"]


@click.command("snapshot")
@click.argument("name")
@click.argument("path", type=click.Path(file_okay=False))
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many snapshots the directory keeps, this one included.",
)
def snapshot_command(name: str, path: str, keep: int) -> None:
    """Save the buffer NAME in the directory PATH, while programs use it.

    Only what has changed since the last snapshot there is written. Exit status: 0 saved, 2 not.
    """
    with _telling_errors(), attach(name) as buffer, _bar("saving") as progress:
        status = buffer.snapshot(path, keep=keep, progress=progress)
    click.echo(
        f"snapshot {status.number} of {name!r}: {status.rows:,} rows, {status.nbytes:,} bytes, "
        f"{status.written:,} of them written"
    )


@click.command("restore")
@click.argument("path", type=click.Path())
@click.argument("name")
@click.option("--size", type=click.IntRange(min=1), help="Rows that it holds; default: as before.")
@click.option("--overwrite", is_flag=True, help="Take NAME from another buffer.")
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0),
    help="Keep the buffer for so many seconds; default: until Ctrl-C.",
)
def restore_command(
    path: str, name: str, size: int | None, overwrite: bool, seconds: float | None
) -> None:
    """Make a buffer NAME of the snapshot in the directory PATH.

    The buffer lives as long as a program has it open: this command does, until Ctrl-C or SIGTERM.
    Exit status: 0 restored, 2 not.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _telling_errors(), contextlib.suppress(KeyboardInterrupt):
        with _bar("restoring") as progress:
            buffer = restore(path, name, size, overwrite=overwrite, progress=progress)
        with buffer:
            click.echo(f"restored {name!r}: {len(buffer):,} of {buffer.get_buffer_size():,} rows")
            sys.stdout.flush()
            end = None if seconds is None else time.monotonic() + seconds
            while end is None or time.monotonic() < end:
                time.sleep(0.1 if end is None else min(0.1, max(end - time.monotonic(), 0)))


@contextlib.contextmanager
def _telling_errors() -> Iterator[None]:
    try:
        yield
    except (MpbufferError, OSError, ValueError) as error:
        click.echo(f"mpbuffer: {error}", err=True)
        raise SystemExit(2) from None


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
