"""Which source files of ours one `add` and one `sample` enter, and which functions in them.

    python docs/trace_calls.py

Builds the extension without optimisation and with a hook in every function, in build/trace, runs
the two calls, and writes docs/architecture/paths.json. Takes some minutes of one core.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "trace"
RESULT = ROOT / "docs" / "architecture" / "paths.json"

HOOK = """
#include <stddef.h>
static void* entered[1 << 16];
static size_t count, on;
void __cyg_profile_func_enter(void* function, void* site) {
    (void)site;
    if (on && count < sizeof entered / sizeof *entered) entered[count++] = function;
}
void __cyg_profile_func_exit(void* function, void* site) { (void)function, (void)site; }
void trace_begin(void) { count = 0; on = 1; }
size_t trace_end(void) { on = 0; return count; }
void** trace_entered(void) { return entered; }
"""

CALLS = """
import ctypes, json, sys
import numpy as np
import mpbuffer
from mpbuffer import _core

hook = ctypes.CDLL(None)
hook.trace_end.restype = ctypes.c_size_t
hook.trace_entered.restype = ctypes.POINTER(ctypes.c_void_p)
with open("/proc/self/maps") as maps:
    base = min(int(line.split("-")[0], 16) for line in maps if _core.__file__ in line)

def traced(call):
    python = []
    def note(frame, event, _):
        if event == "call":
            python.append(frame.f_code.co_filename)
    sys.setprofile(note)
    hook.trace_begin()
    call()
    count = hook.trace_end()
    sys.setprofile(None)
    entered = hook.trace_entered()
    ours = [file for file in python if "mpbuffer" in file]
    return {"addresses": [entered[i] - base for i in range(count)], "python": ours}

fields = {"obs": {"shape": 4}, "act": {"dtype": np.int64}, "rew": {}}
fields |= {"next_obs": {"shape": 4}, "done": {}}
obs = np.zeros(4, np.float32)
step = dict(obs=obs, act=1, rew=1.0, next_obs=obs, done=False)
with mpbuffer.PrioritizedReplayBuffer(1000, fields) as rb:
    for _ in range(100):
        rb.add(**step)
    rb.sample(32)
    results = {"add": traced(lambda: rb.add(**step)), "sample": traced(lambda: rb.sample(32))}
    results["file"] = _core.__file__
print(json.dumps(results))
"""


def build() -> None:
    """Build the hook and the extension."""
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "hook.c").write_text(HOOK)
    hook = ["cc", "-shared", "-fPIC", str(BUILD / "hook.c"), "-o", str(BUILD / "hook.so")]
    subprocess.run(hook, check=True)
    flags = "-finstrument-functions -finstrument-functions-exclude-file-list=/usr/,pybind11,numpy"
    pip = [sys.executable, "-m", "pip", "install", "-q", ".", "--no-deps", "--upgrade"]
    pip += ["--no-build-isolation", "--target", str(BUILD / "site"), "-C", "install.strip=false"]
    pip += ["-C", f"build-dir={BUILD / 'cmake'}", "-C", "cmake.build-type=Debug"]
    subprocess.run([*pip, "-C", f"cmake.define.CMAKE_CXX_FLAGS={flags}"], check=True, cwd=ROOT)


def name_of(function: str) -> str:
    """Shorten a C++ function's name: no arguments, template arguments or our namespace."""
    function = function.replace("(anonymous namespace)", "").replace("{lambda", "lambda")
    while re.search(r"<[^<>]*>", function):
        function = re.sub(r"<[^<>]*>", "", function)
    function = re.sub(r"\(.*", "", function).replace("mpbuffer::", "").replace("bindings::", "")
    return function.split(" ")[-1].strip(":")


def files_entered(extension: str, addresses: list[int]) -> dict[str, list[str]]:
    """Return the functions entered, by file; both in the order of the first entry."""
    distinct = list(dict.fromkeys(addresses))
    command = ["addr2line", "-f", "-C", "-e", extension, *(hex(each) for each in distinct)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    files: dict[str, list[str]] = {}
    for function, place in zip(lines[::2], lines[1::2], strict=True):
        path = Path(place.rpartition(":")[0]).resolve()
        if path.is_relative_to(ROOT / "cpp"):
            functions = files.setdefault(path.relative_to(ROOT).as_posix(), [])
            if "lambda" not in function and name_of(function) not in functions:
                functions.append(name_of(function))
    return files


def main() -> None:
    """Trace the two calls and write what they entered."""
    build()
    environment = {"LD_PRELOAD": str(BUILD / "hook.so"), "PYTHONPATH": str(BUILD / "site")}
    ended = subprocess.run(
        [sys.executable, "-c", CALLS], check=True, capture_output=True, env=environment, cwd=BUILD
    )
    traced = json.loads(ended.stdout)
    paths = {}
    for call in ("add", "sample"):
        assert not traced[call]["python"], f"{call} enters Python: {traced[call]['python']}"
        paths[call] = files_entered(traced["file"], traced[call]["addresses"])
        print(f"{call}: {len(paths[call])} files")
    RESULT.write_text(json.dumps(paths, indent=1) + "\n")


if __name__ == "__main__":
    main()
