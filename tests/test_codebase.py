"""The code base itself: who may know whom, what must not be there, what must agree."""

import ast
import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import edge
import protocol
import pytest

import mpbuffer
from mpbuffer import _core

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "cpp" / "core"
BINDINGS = ROOT / "cpp" / "bindings"
PACKAGE = ROOT / "mpbuffer"

# Which rooms a room of the core is built on, beside `base` and what those are built on in turn.
CORE_ROOMS = {
    "base": [],
    "format": [],
    "os": [],
    "segment": ["os", "format"],
    "ring": ["format", "os"],
    "select": ["ring", "segment"],
    "weights": ["segment"],
    "buffer": ["ring", "select", "segment"],
    "write": ["buffer"],
    "inspect": ["format", "segment", "select", "weights"],
}

# Which rooms of the package a room may use, each of them above it; _core and errors all may.
ROOM_MAY_USE = {
    "errors": set(),
    "_arguments": set(),
    "_segment": set(),
    "_files": {"_segment"},
    "buffer": {"_arguments", "_segment", "_files"},
    "weights": {"_arguments", "_segment"},
    "explorers": {"_arguments", "_segment", "buffer"},
    "envs": set(),
    "replay": {"_arguments", "_segment", "buffer", "envs"},
    "inspect": {"buffer", "weights"},
    "adapters": set(),  # and the public names
    "_core": {"buffer"},  # the stub
}
ROOM_MAY_NEED = {"_core": {"typing_extensions"}, "buffer": {"torch"}}  # beside NumPy
ROOM_MAY_NEED |= {"explorers": {"multiprocess"}, "inspect": {"click", "rich"}}
ROOM_MAY_NEED |= {"adapters": {"minari", "stable_baselines3", "tensordict", "tianshou", "torch"}}

CONTENTLESS_NAMES = {"util", "utils", "common", "helper", "helpers", "manager", "detail", "misc"}
SOURCE_FOLDERS = [".ci", ".github", "bench", "cpp", "docs", "examples", "mpbuffer", "tests"]
SOURCE_SUFFIXES = {"", ".cpp", ".hpp", ".json", ".md", ".py", ".pyi", ".toml", ".txt"}
SOURCE_SUFFIXES |= {".yaml", ".yml"}


def source_files():
    """All files that somebody wrote; none that a tool made."""
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in SOURCE_FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(
        path
        for path in files
        if path.suffix in SOURCE_SUFFIXES and not {"__pycache__", ".ruff_cache"} & set(path.parts)
    )


def stem(name):
    return name.partition(".")[0]


def includes(path):
    """The file's #include lines: of project headers, and of others."""
    text = path.read_text()
    quoted = re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)
    return quoted, re.findall(r"^\s*#\s*include\s+<([^>]+)>", text, re.MULTILINE)


def code_of(path):
    """The C++ text without its comments and string literals."""
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', " ", path.read_text(), flags=re.DOTALL)


def imported_modules(path):
    """Dotted names of all modules that a Python file imports, wherever it does."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "mpbuffer" and PACKAGE in path.parents:
                modules |= {f"mpbuffer.{alias.name}" for alias in node.names}
            else:
                modules.add(node.module)
    return modules


core_files = sorted(CORE.rglob("*.?pp"))
binding_files = sorted(BINDINGS.rglob("*.?pp"))
package_files = sorted(set(PACKAGE.rglob("*.py*")) - set(PACKAGE.rglob("*.pyc")))


def named(path):
    return path.name


def test_the_files_are_where_this_test_looks():
    assert len(core_files) > 10 and len(binding_files) > 4 and len(package_files) > 4
    assert {path.parent.name for path in core_files} == set(CORE_ROOMS)


# Who may know whom


def below(room):
    """The rooms that a room of the core may include from: the arrows go one way."""
    rooms = list(CORE_ROOMS)
    assert all(rooms.index(each) < rooms.index(room) for each in CORE_ROOMS[room])
    return {"base", *CORE_ROOMS[room]}.union(*map(below, CORE_ROOMS[room]))


@pytest.mark.parametrize("path", core_files, ids=named)
def test_core_includes(path):
    quoted, _ = includes(path)
    room = path.parent.name
    assert {str(Path(header).parent) for header in quoted} <= {room} | below(room)
    assert all((CORE / header).is_file() for header in quoted), quoted


@pytest.mark.parametrize("path", core_files, ids=named)
def test_core_knows_no_python(path):
    _, angled = includes(path)
    foreign = [each for each in angled if re.match(r"Python\.h|pybind11|numpy|nanobind", each)]
    assert not foreign
    assert not re.search(r"\bPy[A-Z_]\w*", code_of(path))


@pytest.mark.parametrize("path", package_files, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_package_imports(path):
    imported = {tuple(module.split(".")) for module in imported_modules(path)}
    inside = {module for module in imported if module[0] == "mpbuffer"}
    room = stem(path.relative_to(PACKAGE).parts[0])
    if room == "adapters":
        assert {module[1] for module in inside if len(module) > 1} <= {room, "errors"}
    elif room != "__init__":
        may_use = ROOM_MAY_USE[room] | {room, "_core", "errors"}
        assert {module[1] for module in inside} <= may_use, f"{room} uses too much"
    outside = {module[0] for module in imported - inside} - set(sys.stdlib_module_names)
    assert outside <= ROOM_MAY_NEED.get(room, set()) | {"numpy"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "adapters").rglob("*.py")), ids=named)
def test_adapters_use_the_public_face_only(path):
    private = re.findall(r"mpbuffer\._\w+|\brows\.(_\w+)", path.read_text())
    assert set(private) <= {"_encode_sample"}  # cpprb's name, which its users call


def test_rooms_use_those_above_them():
    above = set()
    for room, used in ROOM_MAY_USE.items():
        assert used <= above, room
        above.add(room)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=named)
def test_examples_use_the_public_face_only(path):
    inside = {each for each in imported_modules(path) if each.partition(".")[0] == "mpbuffer"}
    assert inside <= {"mpbuffer", "mpbuffer.adapters", "mpbuffer.errors"}
    assert not re.search(r"mpbuffer\._|\b(rb|buffer)\._", path.read_text())


def test_hot_calls_are_inherited():
    for public, ours in (
        (mpbuffer.ReplayBuffer, _core.ReplayBuffer),
        (mpbuffer.PrioritizedReplayBuffer, _core.PrioritizedReplayBuffer),
    ):
        for call in ("add", "sample", "sample_uniform", "update_priorities"):
            assert call not in vars(public)
            assert getattr(public, call, None) is getattr(ours, call, None)


# What must not be there


@pytest.mark.parametrize("path", core_files, ids=named)
def test_core_has_no_volatile_and_no_assert(path):
    code = code_of(path)
    assert not re.search(r"\bvolatile\b", code)
    assert not re.search(r"\bassert\s*\(", code)
    assert not {"cassert", "assert.h"} & set(includes(path)[1])


# It waits with a condition variable, which needs one; who holds it waits for nothing else.
WAIT_WITH_STANDARD_MUTEXES = {"batch_gatherer.cpp"}


@pytest.mark.parametrize("path", core_files + binding_files, ids=named)
def test_only_guards_take_mutexes(path):
    if stem(path.name) != "guard" and path.name not in WAIT_WITH_STANDARD_MUTEXES:
        standard = r"\bstd::(\w*mutex|scoped_lock|unique_lock|lock_guard|shared_lock)\b"
        assert not re.search(standard, code_of(path))
        assert path in core_files or not re.search(r"\b(Shared|Recursive)?Mutex\b", code_of(path))


@pytest.mark.parametrize("path", binding_files, ids=named)
def test_python_s_lock_is_given_up_and_taken_in_one_place(path):
    if path.name != "gil.cpp":
        assert not re.search(r"\b(PyEval_|PyGILState_|gil_scoped_|Py_BEGIN_ALLOW)", code_of(path))


def test_nothing_is_built_for_one_machine_only():
    for path in (ROOT / "cpp").glob("CMake*"):
        assert not re.search(r"-m(arch|cpu|tune)=", path.read_text())


def test_names_say_what_is_in_there():
    for path in source_files():
        for part in path.relative_to(ROOT).parts:
            assert not CONTENTLESS_NAMES & set(stem(part).lower().split("_")), path


def test_nothing_names_a_place_of_one_machine():
    """No path below a folder of the root that not every Linux machine has."""
    everywhere = {"bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp"}
    everywhere |= {"usr", "var"}
    here = {entry.name for entry in os.scandir("/") if entry.is_dir()} - everywhere
    elsewhere = "|".join(map(re.escape, sorted(here | {"home", "root"})))
    for path in source_files():
        text = path.read_text()
        for match in re.finditer(rf"(?<![\w/.)}}>~-])/({elsewhere})\b[/\s\"'`]", text):
            line = text.count("\n", 0, match.start()) + 1
            raise AssertionError(f"{path}:{line}: {match.group()}")


# What must be there, and agree


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.hpp")), ids=named)
def test_core_headers_open_with_their_contract(path):
    contract, found, _ = path.read_text().partition("#pragma once\n")
    assert found
    lines = contract.splitlines()
    assert lines and all(line.startswith("//") for line in lines)
    assert len(contract.split()) > 8


def test_the_version_is_said_once():
    version = importlib.metadata.version("mpbuffer")
    assert mpbuffer.__version__ == version
    sayings = [
        path.relative_to(ROOT).as_posix()
        for path in source_files()
        if re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.]*\d)", path.read_text())
    ]
    history = re.compile(r"CHANGELOG\.md|bench/README\.md|bench/results/.*")
    assert [each for each in sayings if not history.fullmatch(each)] == ["pyproject.toml"]


@pytest.fixture(scope="module")
def checkers():
    """The type checkers, started together: each takes seconds, of one core."""
    pytest.importorskip("mypy")
    installed = Path(mpbuffer.__file__).resolve().parent.parent  # where the imported package lies
    with contextlib.ExitStack() as stack:
        started = {}
        for folder, command in ((installed, "mypy.stubtest mpbuffer._core"), (ROOT, "mypy")):
            started[command] = process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", *command.split()],
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
            stack.callback(process.kill)
        yield started


def assert_accepts(checker):
    said, _ = checker.communicate(timeout=280)
    assert checker.returncode == 0, said


@pytest.mark.timeout(300)
def test_the_stub_agrees_with_the_extension(checkers):
    assert_accepts(checkers["mypy.stubtest mpbuffer._core"])


@pytest.mark.timeout(300)
def test_the_package_is_typed(checkers):
    assert_accepts(checkers["mypy"])


@pytest.mark.parametrize(
    ("folder", "mutant"),
    [(CORE, mutant) for mutant in protocol.MUTANTS] + [(ROOT, mutant) for mutant in edge.MUTANTS],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_mutant_changes_one_place(folder, mutant):
    assert (folder / mutant.file).read_text().count(mutant.old) == 1
