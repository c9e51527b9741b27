"""The benchmark runs, measures what it says, and its report reads its own JSON."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from watched_processes import run_python

import mpbuffer

BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the source package has no bench/")


@pytest.fixture
def bench(monkeypatch):
    """Make the modules of bench/ importable, and forget them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") and str(BENCH) in sys.modules[name].__file__:
            del sys.modules[name]


def run_bench(script, *arguments, seconds=110):
    ended = run_python(str(BENCH / script), *arguments, seconds=seconds)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


def figures_of(file):
    return {
        (json.dumps(figure["case"]), figure["peer"], figure["metric"]): figure["values"]
        for figure in json.loads(file.read_text())["figures"]
    }


def test_learner_and_explorers_are_measured(tmp_path):
    file = tmp_path / "explorers.json"
    printed = run_bench("explorers.py", "--short", "--peers", "mpbuffer,reverb", "--json", file)
    figures = figures_of(file)
    throttled = {"explorers": 2, "speed": "throttled", "own core": False}
    rows = figures[json.dumps(throttled), "mpbuffer", "rows/s"]
    assert all(0 < rate < 20_000 for rate in rows), "two explorers, 2,000 rows/s each"
    full = figures[json.dumps(throttled | {"speed": "full"}), "mpbuffer", "rows/s"]
    assert min(full) > max(rows)
    cycles = figures[json.dumps(throttled), "mpbuffer", "cycles/s"]
    assert all(rate > 0 for rate in cycles)
    assert "learner's cycles/s" in printed


def test_a_peer_that_is_missing_is_skipped_with_a_line(tmp_path):
    file = tmp_path / "start_up.json"
    missing = f"reverb={tmp_path / 'python'}"
    (tmp_path / "python").write_text("#!/bin/sh\necho no reverb here >&2\nexit 1\n")
    os.chmod(tmp_path / "python", 0o755)
    arguments = ["--short", "--peers", "mpbuffer,reverb", "--python", missing, "--json", file]
    printed = run_bench("start_up.py", *arguments)
    assert "skipped: Reverb: its process has ended: no reverb here" in printed
    skipped = json.loads(file.read_text())["skipped"]
    assert [skip["peer"] for skip in skipped] == ["reverb"]


def test_unknown_peers_are_refused(tmp_path):
    ended = run_python(str(BENCH / "calls.py"), "--peers", "mpbuffer,nobody", seconds=60)
    assert ended.returncode == 2
    assert b"no such peer: nobody" in ended.stderr


def test_acting(tmp_path):
    pytest.importorskip("gymnasium", minversion="1.0")
    file = tmp_path / "acting.json"
    printed = run_bench("acting.py", "--short", "--explorers", "2", "--json", file)
    assert "nothing stored" in printed
    figures = json.loads(file.read_text())["figures"]
    assert all(way["wall"]["rates"][0] > 0 for way in figures.values())


def test_sequences(tmp_path):
    pytest.importorskip("cpprb")
    file = tmp_path / "sequences.json"
    printed = run_bench("sequences.py", "--short", "--json", file)
    assert "to stacking from cpprb" in printed
    result = json.loads(file.read_text())
    assert all(rates[0] > 0 for rates in result["rates"].values())
    assert all(each["ratio"] > 1 for each in result["bytes"].values())


def test_the_loop_in_c_copies_the_rows_of_the_sample(bench):
    from peers.compiled import RowCopy
    from peers.mpbuffer import Mpbuffer
    from peers.rows import ATARI, random_rows

    adapter = Mpbuffer(50, ATARI, kind="prioritized", shared=True, at_once=1)
    rows = random_rows(ATARI, 50, np.random.default_rng(0))
    adapter.fill(rows, np.ones(50, np.float32))
    sources, stride = adapter.records()
    targets = {name: np.zeros_like(values[:20]) for name, values in rows.items()}
    slots = np.random.default_rng(1).integers(50, size=20)
    RowCopy(sources, stride, targets)(slots)
    for name, values in rows.items():
        assert np.array_equal(targets[name], values[slots]), name
    adapter.close()


def result(question, *figures):
    return {
        "question": question,
        "figures": [
            {"case": case, "peer": peer, "metric": metric, "values": values}
            for case, peer, metric, values in figures
        ],
    }


def test_ratios_are_taken_within_a_repetition(bench):
    from report import demands, summary

    case = {"call": "batches of 100", "capacity": 10**6}
    results = [
        result(
            "calls",
            (case, "mpbuffer", "rows/s", [10.0, 70.0, 30.0]),
            (case, "cpprb", "rows/s", [1.0, 10.0, 5.0]),
        )
    ]
    lines = {line.said: line for line in demands(results)}
    batches = lines["batches of 100, to cpprb"]
    assert list(batches.measured) == [10.0, 7.0, 6.0] and batches.at_least and batches.bound == 6
    assert "| batches of 100, 1,000,000 rows | 7.00 (6.50-8.50) |" in summary(results)
    assert lines["uniform sample(256), to cpprb"].measured is None


def test_best_peer_and_met(bench):
    from report import demands_table

    case = {"explorers": 4, "speed": "full", "own core": False}
    results = [
        result(
            "explorers",
            (case, "mpbuffer", "rows/s", [90.0] * 3),
            (case, "cpprb-mp", "rows/s", [3.0] * 3),
            (case, "queue", "rows/s", [10.0] * 3),
        )
    ]
    line = next(line for line in demands_table(results).splitlines() if "rows/s that four" in line)
    assert line.endswith("| ≥ 10 | 9.00 (9.00-9.00) | no | best is Queue into cpprb |")


def test_parts_of_the_page_are_replaced(bench, tmp_path):
    from report import rewrite

    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n")
    rewrite(page, {"x": r"new \1"})
    assert page.read_text() == "a\n<!-- begin x -->\n\nnew \\1\n\n<!-- end x -->\nb\n"
    with pytest.raises(ValueError, match="no part 'y'"):
        rewrite(page, {"y": ""})


def test_the_page_has_a_part_for_every_question(bench):
    from report import QUESTIONS

    page = (BENCH / "README.md").read_text()
    for name in ("machine", "ratios", "requirements", *QUESTIONS):
        assert page.count(f"<!-- begin {name} -->") == page.count(f"<!-- end {name} -->") == 1


def test_snapshots_are_measured(tmp_path):
    file = tmp_path / "snapshots.json"
    printed = run_bench("snapshots.py", "--short", "--folder", tmp_path, "--json", file)
    assert "of dd" in printed and "rows per CPU second" in printed
    cost = json.loads(file.read_text())["snapshots"]
    assert cost["bytes"] > 1e7 and cost["bytes of the second"] < cost["bytes"] / 4
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_in_short_form_with_the_peers_that_are_here(tmp_path):
    pytest.importorskip("matplotlib")
    page = (BENCH / "README.md").read_bytes()
    run_bench("all.py", "--short", "--out", tmp_path, seconds=280)
    questions = {"calls", "explorers", "capacity", "row_size", "prefetch", "start_up", "memory"}
    assert {file.stem for file in tmp_path.glob("*.json")} == questions
    for question in questions:
        measured = json.loads((tmp_path / f"{question}.json").read_text())
        ours = [figure for figure in measured["figures"] if figure["peer"] == "mpbuffer"]
        assert ours and all(np.isfinite(figure["values"]).all() for figure in ours)
        assert measured["versions"]["mpbuffer"]["mpbuffer"] == mpbuffer.__version__
    assert {file.stem for file in tmp_path.glob("*.png")} >= {"calls", "explorers"}
    assert (BENCH / "README.md").read_bytes() == page
