"""Which interpreters the package runs in: the main one, with the GIL."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from watched_processes import run_python

BINDINGS = Path(__file__).resolve().parents[2] / "cpp" / "bindings"

IN_SUBINTERPRETER = """
import sys
kind, main_first, script = sys.argv[1:]
if main_first == "main first":
    import mpbuffer
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
if hasattr(interpreters, "new_config"):
    new = interpreters.create(kind)
else:
    new = interpreters.create(isolated=kind == "isolated")
failure = interpreters.run_string(new, script)
assert failure is None, failure
interpreters.destroy(new)
import mpbuffer
with mpbuffer.ReplayBuffer(4, {"a": {}}) as buffer:
    buffer.add(a=1)
    assert buffer.sample(1)["a"] == 1
"""

REFUSED_TWICE = """
for statement in ("import mpbuffer", "import mpbuffer._core") * 2:
    try:
        exec(statement)
    except ImportError as error:
        assert "cannot import mpbuffer in a subinterpreter" in str(error), error
    else:
        raise AssertionError("imported")
"""


@pytest.mark.parametrize("main_first", ["main first", "main later"])
@pytest.mark.parametrize("kind", ["isolated", "legacy"])
def test_a_subinterpreter_is_refused_with_the_reason(kind, main_first):
    done = run_python("-c", IN_SUBINTERPRETER, kind, main_first, REFUSED_TWICE)
    assert done.returncode == 0, done.stderr.decode()


def test_the_module_never_declares_itself_free_of_the_gil():
    for path in BINDINGS.glob("*.?pp"):
        assert not re.search(r"gil_not_used|GIL_NOT_USED|Module_SetGIL", path.read_text()), path


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded build of Python"
)
def test_a_free_threaded_build_turns_the_gil_on():
    script = "import sys, mpbuffer; assert sys._is_gil_enabled()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
