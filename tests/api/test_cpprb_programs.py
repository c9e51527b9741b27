"""Programs written for cpprb run after only their import line has changed."""

import importlib.util
import json
import re

import pytest
from watched_processes import SUPPORT, run_python

PROGRAMS = sorted((SUPPORT / "cpprb_programs").glob("*.py"))


def with_import_changed(text):
    """The program with its one import of cpprb naming mpbuffer, and how many lines that were."""
    changes = [
        (re.compile(r"^from cpprb import ", re.MULTILINE), "from mpbuffer import "),
        (re.compile(r"^import cpprb$", re.MULTILINE), "import mpbuffer as cpprb"),
    ]
    count = 0
    for pattern, replacement in changes:
        text, found = pattern.subn(replacement, text)
        count += found
    return text, count


def run_program(path):
    text = path.read_text()
    for package in ("gymnasium", "ray"):
        if f"import {package}" in text and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    ended = run_python(str(path), seconds=60)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stderr.decode() == ""
    return json.loads(ended.stdout)


def test_there_is_a_program_for_each_way_to_replay():
    assert {path.stem for path in PROGRAMS} == {
        "apex",
        "apex_ray",
        "dqn",
        "dqn_lap",
        "experience_replay",
        "her",
        "laber",
        "prioritized_experience_replay",
    }


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program(program, tmp_path):
    before = program.read_text()
    after, changed = with_import_changed(before)
    assert changed == 1
    lines = zip(before.splitlines(), after.splitlines(), strict=True)
    assert sum(old != new for old, new in lines) == 1
    copy = tmp_path / program.name
    copy.write_text(after)
    result = run_program(copy)
    assert result["solved"]
    assert result["stored"] > 0


@pytest.mark.skipif(importlib.util.find_spec("cpprb") is None, reason="cpprb is not installed")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program_is_one_for_cpprb(program):
    assert run_program(program)["solved"]
