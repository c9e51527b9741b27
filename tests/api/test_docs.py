"""The documentation agrees with the code: pictures, tables, names, rooms."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_codebase import CORE_ROOMS

import mpbuffer
from mpbuffer import errors

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def run_check(program):
    command = [sys.executable, str(DOCS / program), "--check"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stderr


def test_pictures_show_the_code():
    run_check("draw_all.py")


@pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")), reason="no compiler"
)
def test_segment_format_lists_the_structs():
    run_check("list_format.py")


def test_reference_has_every_public_name():
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    named = set(re.findall(r"^\.\. auto(?:class|function):: (\w+)$", pages, re.MULTILINE))
    if ".. automodule:: mpbuffer.errors" in pages:
        named |= set(errors.__all__)
    other_names = {"MPReplayBuffer", "MPPrioritizedReplayBuffer"}
    assert all(f"`{name}`" in pages for name in other_names)
    assert named == set(mpbuffer.__all__) - other_names


def test_core_readme_lists_the_rooms():
    rows = re.findall(
        r"^\| `(\w+)/` \| .+? \| ?([\w, ]*?) ?\|$",
        (ROOT / "cpp" / "core" / "README.md").read_text(),
        re.MULTILINE,
    )
    assert {room: used.split(", ") if used else [] for room, used in rows} == CORE_ROOMS
    assert [room for room, _ in rows] == list(CORE_ROOMS)


def test_files_that_pages_name_are_there():
    patterns = [r"`((?:cpp|mpbuffer|tests|docs|examples|bench)/[\w./]+)`", r'"(cpp/[\w./]+)"']
    for page in [
        *DOCS.rglob("*.md"),
        DOCS / "architecture" / "paths.json",
        ROOT / "CONTRIBUTING.md",
    ]:
        for pattern in patterns:
            for named in re.findall(pattern, page.read_text()):
                assert (ROOT / named).exists(), f"{page.relative_to(ROOT)}: {named}"
