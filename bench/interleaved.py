"""Measuring several peers in turn, so that a slow moment of the machine hits them all.

Every peer's buffers live in a worker process (`peers.worker`) of the Python that was chosen for it.
One worker at a time is told to measure; the others wait for their next line.
"""

import argparse
import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from machine import describe_machine
from peers import ADAPTERS, TITLES

HERE = pathlib.Path(__file__).resolve().parent
PATIENCE = 300.0  # seconds for one command, the filling of 10^7 rows being the longest
MOST_REPETITIONS = 60


class Failed(Exception):
    """A peer cannot do this; the message says why."""


class Lost(Failed):
    """A peer's worker has ended, or does not answer."""


class Point(NamedTuple):
    """Something to measure, again and again.

    Attributes
    ----------
    case : dict
        What the figures belong to, as in the JSON.
    peers : sequence of str
        Who is measured, in turn.
    command : str
        A method of `peers.worker.Worker`, with `arguments`.
    metric : str
        What its result is called, if it is a number.
    """

    case: dict[str, Any]
    peers: Sequence[str]
    command: str
    arguments: dict[str, Any]
    metric: str = ""


class WorkerProcess:
    """The process that has a peer's buffers.

    Parameters
    ----------
    peer : str
        A key of `peers.ADAPTERS`.
    python : str
        The interpreter of an environment that has it.
    """

    def __init__(self, peer: str, python: str) -> None:
        self.peer = peer
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by end()
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR", "GLOG_minloglevel": "2"}
        quiet |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE)}
        self.process = subprocess.Popen(
            [python, "-m", "peers.worker", peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | quiet,
            cwd=HERE,
            start_new_session=True,
        )
        self.lines = b""

    def send(self, command: str, arguments: dict[str, Any]) -> None:
        """Give it a command."""
        line = json.dumps({"do": command, **arguments}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except OSError as error:
            raise Lost(self._last_words()) from error

    def receive(self, patience: float = PATIENCE) -> Any:
        """Return the answer to the oldest command without one; waits at most so many seconds.

        Raises
        ------
        Failed
            If the peer cannot do it; Lost if its process has ended or does not answer.
        """
        deadline = time.monotonic() + patience
        output = self.process.stdout.fileno()
        while b"\n" not in self.lines:
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Lost(f"no answer within {patience:.0f} s")
            received = os.read(output, 1 << 16)
            if not received:
                raise Lost(self._last_words())
            self.lines += received
        line, _, self.lines = self.lines.partition(b"\n")
        answer = json.loads(line)
        if "value" in answer:
            return answer["value"]
        raise Failed(answer.get("unsupported") or answer["error"])

    def _last_words(self) -> str:
        self.log.seek(0)
        written = [line for line in self.log.read().splitlines() if line.strip()]
        return "its process has ended" + (f": {written[-1]}" if written else "")

    def end(self) -> None:
        """End it and all its children."""
        with contextlib.suppress(Failed):
            self.send("close", {})
            self.receive(15.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in self.process.stdin, self.process.stdout, self.log:
            with contextlib.suppress(OSError):
                file.close()


class Bench:
    """One question's run: its workers, its figures, and who was left out.

    Parameters
    ----------
    question : str
        The script's name.
    options : argparse.Namespace
        Of `options_of`.
    peers : iterable of str
        Who can answer the question at all.
    pool : dict of str to WorkerProcess, optional
        Workers that other questions left, to be used and left again.
    """

    def __init__(
        self,
        question: str,
        options: argparse.Namespace,
        peers: Iterable[str],
        pool: dict[str, WorkerProcess] | None = None,
    ) -> None:
        self.question = question
        self.short: bool = options.short
        self.options = options
        self.deadline = time.monotonic() + 60 * options.minutes
        self.figures: dict[str, tuple[dict[str, Any], str, str, list[float]]] = {}
        self.skipped: list[dict[str, str]] = []
        self.notes: dict[str, Any] = {}
        self.pool = pool
        self.workers: dict[str, WorkerProcess] = {}
        wanted = [peer for peer in peers if peer in options.peers]
        for peer in wanted:
            kept = pool.pop(peer, None) if pool else None
            python = options.python.get(peer, sys.executable)
            self.workers[peer] = kept or WorkerProcess(peer, python)
        self.versions: dict[str, dict[str, str]] = self.on_all(wanted, "versions", {})
        for peer in self.workers.keys() - self.versions.keys():
            self.workers.pop(peer).end()

    @property
    def peers(self) -> list[str]:
        """Those whose workers live."""
        return list(self.workers)

    def skip(self, peer: str, what: str, why: str) -> None:
        """Say that a peer is left out of something."""
        self.skipped.append({"peer": peer, "what": what, "why": why})
        print(f"skipped: {TITLES[peer]}{f', {what}' if what else ''}: {why}", flush=True)

    def on_all(
        self, peers: Iterable[str], command: str, arguments: dict[str, Any], what: str = ""
    ) -> dict[str, Any]:
        """Let peers carry a command out at the same time; return the answers of those who can."""
        answers, asked = {}, []
        for peer in peers:
            if peer in self.workers:
                try:
                    self.workers[peer].send(command, arguments)
                    asked.append(peer)
                except Lost as why:
                    self._lose(peer, what, str(why))
        for peer in asked:
            with self.skipping(peer, what):
                answers[peer] = self.workers[peer].receive()
        return answers

    def ask(self, peer: str, command: str, arguments: dict[str, Any]) -> Any:
        """Let one peer carry a command out."""
        worker = self.workers[peer]
        worker.send(command, arguments)
        return worker.receive()

    @contextlib.contextmanager
    def skipping(self, peer: str, what: str) -> Any:
        """Turn a failure into a line, and lose the peer if its process is gone."""
        try:
            yield
        except Lost as why:
            self._lose(peer, what, str(why))
        except Failed as why:
            self.skip(peer, what, str(why))

    def _lose(self, peer: str, what: str, why: str) -> None:
        self.skip(peer, what, why)
        worker = self.workers.pop(peer, None)
        if worker is not None:
            worker.end()

    def record(self, case: dict[str, Any], peer: str, metric: str, value: float) -> None:
        """Keep a figure."""
        key = json.dumps([case, peer, metric])
        self.figures.setdefault(key, (case, peer, metric, []))[3].append(value)

    def make(self, case: str, peers: Iterable[str], what: str, **arguments: Any) -> list[str]:
        """Make a buffer in every peer that can; return those."""
        made = self.on_all(peers, "make", {"case": case, **arguments}, what)
        for peer, how in made.items():
            if how["filled"] < arguments["capacity"]:
                note = f"filled with {how['filled']:,} of {arguments['capacity']:,} rows only"
                self.notes.setdefault("filled", {})[TITLES[peer]] = note
            if how["explorers"]:
                self.notes.setdefault("explorers start by", {})[TITLES[peer]] = how["start_method"]
        return list(made)

    def drop(self, case: str, peers: Iterable[str]) -> None:
        """Release that buffer in these peers."""
        self.on_all(peers, "drop", {"case": case})

    def repeat(self, points: list[Point], stages_left: int = 1) -> int:
        """Measure all points of all peers in turn until the time is used; return how often.

        Parameters
        ----------
        points : list of Point
            In the order in which they are measured; a peer that fails is left out from then on.
        stages_left : int
            By which the time that is left is divided, for there are others to come.
        """
        now = time.monotonic()
        deadline = now + (self.deadline - now) / stages_left
        failing: set[tuple[int, str]] = set()
        repetitions, longest = 0, 0.0
        while repetitions < self.options.repetitions or (
            not self.short
            and repetitions < MOST_REPETITIONS
            and time.monotonic() + longest < deadline
        ):
            start = time.monotonic()
            for number, point in enumerate(points):
                for peer in point.peers:
                    if (number, peer) in failing or peer not in self.workers:
                        continue
                    failing.add((number, peer))
                    with self.skipping(peer, _said(point.case)):
                        value = self.ask(peer, point.command, point.arguments)
                        values = value if isinstance(value, dict) else {point.metric: value}
                        for metric, figure in values.items():
                            self.record(point.case, peer, metric, figure)
                        failing.discard((number, peer))
            longest = max(longest, time.monotonic() - start)
            repetitions += 1
        return repetitions

    def close(self) -> None:
        """End all workers, or release their buffers and leave them to the pool."""
        if self.pool is not None:
            self.on_all(self.peers, "release", {})
            self.pool |= self.workers
        else:
            end_all(self.workers)
        self.workers = {}

    def result(self) -> dict[str, Any]:
        """Return everything, as it is written to JSON."""
        figures = []
        for case, peer, metric, values in self.figures.values():
            low, middle, high = np.percentile(values, [25, 50, 75])
            spread = {"q1": low, "median": middle, "q3": high, "values": values}
            spread = json.loads(
                json.dumps(spread), parse_float=lambda text: float(f"{float(text):.6g}")
            )
            figures.append({"case": case, "peer": peer, "metric": metric} | spread)
        return {
            "question": self.question,
            "short": self.short,
            "machine": describe_machine(),
            "versions": self.versions,
            "notes": self.notes,
            "skipped": self.skipped,
            "figures": figures,
        }


def end_all(workers: dict[str, WorkerProcess]) -> None:
    """End these workers."""
    for worker in workers.values():
        worker.end()
    workers.clear()


def _said(case: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in case.items())


def options_of(
    description: str, minutes: float, arguments: Sequence[str] | None = None, out: bool = False
) -> argparse.Namespace:
    """Read the options that all questions have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=list(ADAPTERS),
        help=f"comma-separated, of {','.join(ADAPTERS)}; all that are there by default",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="interpreter of the environment that has this peer, if it is not this one",
    )
    parser.add_argument("--minutes", type=float, default=minutes, help="about how long to measure")
    parser.add_argument("--repetitions", type=int, default=3, help="at least so many of each")
    parser.add_argument("--short", action="store_true", help="smoke run: small buffers, once each")
    if out:
        parser.add_argument(
            "--out", type=pathlib.Path, default=HERE / "results", help="folder for JSON, pictures"
        )
    else:
        parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    options = parser.parse_args(arguments)
    try:
        options.python = dict(text.split("=", 1) for text in options.python)
    except ValueError:
        parser.error("--python takes PEER=PATH")
    unknown = {*options.peers, *options.python} - set(ADAPTERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(ADAPTERS)}")
    if options.short:
        options.repetitions = min(options.repetitions, 1)
    return options


def answer(
    question: str,
    options: argparse.Namespace,
    peers: Iterable[str],
    measure: Callable[[Bench], None],
    pool: dict[str, WorkerProcess] | None = None,
) -> dict[str, Any]:
    """Measure one question and return what is written to JSON."""
    bench = Bench(question, options, peers, pool)
    try:
        if "mpbuffer" not in bench.peers:
            raise SystemExit("mpbuffer itself does not run here")
        measure(bench)
    finally:
        bench.close()
    return bench.result()


def run_alone(
    question: str,
    description: str,
    minutes: float,
    peers: Iterable[str],
    measure: Callable[[Bench], None],
) -> None:
    """Be the main program of one question: measure, print its tables, write its JSON."""
    from report import tables_of

    options = options_of(description, minutes)
    result = answer(question, options, peers, measure)
    print("\n".join(f"{name}: {value}" for name, value in result["machine"].items()))
    for title, table in tables_of(result):
        print(f"\n{title}\n\n{table}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
