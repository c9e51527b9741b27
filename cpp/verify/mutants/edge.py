"""Faults at the interpreter's edge put back: each makes edge_campaign.py fail.

    python cpp/verify/mutants/edge.py [--only TEXT] [--list] [--keep DIRECTORY] [--jobs N]

Copies the tree, builds the extension, and runs the programs of each kind, which must pass. Then
applies one mutant after the other, builds what it touches, and runs the programs of the kind that
is named beside it, which must fail. Ends with status 0 if every mutant was caught. Needs cmake,
ninja and pybind11 beside what the tests need.
"""

import contextlib
import dataclasses
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from protocol import BUILD_SECONDS, ROOT, run, try_mutants

CAMPAIGN = ROOT / "tests/support/edge_campaign.py"
CAMPAIGN_SECONDS = 900
# Enough to pass for right, and at most what a mutant gets to be caught.
ENOUGH = {"calls": "60_000", "signals": "1_000", "forks": "250", "kept": "1_500", "exits": "40"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    caught_by: str  # a kind of programs


MUTANTS = [
    Mutant(
        "a thread waits for a mutex of the core with the GIL",
        "cpp/core/base/guard.hpp",
        "            let_others_run();\n            (mutex_.*lock)();\n",
        "            (mutex_.*lock)();\n",
        "threads",
    ),
    Mutant(
        "closing batches destroys the workshop that a call waits for",
        "cpp/bindings/types/batch_gatherer.cpp",
        "        const std::shared_ptr<Workshop> shop = workshop();\n",
        "        Workshop* const shop = workshop().get();\n",
        "handlers",
    ),
    Mutant(
        "a thread that asks for the GIL at the end is unwound",
        "cpp/bindings/gil.cpp",
        "running_python([token] { PyEval_RestoreThread(static_cast<PyThreadState*>(token)); });",
        "PyEval_RestoreThread(static_cast<PyThreadState*>(token));",
        "exits",
    ),
    Mutant(
        "pinned memory is reused while it is looked at",
        "cpp/bindings/convert/recycled_memory.cpp",
        "    (void)loan.release();\n",
        "    if (torch_) {\n"
        "        Block& again = returned_.emplace_back();\n"
        "        again.bytes = bytes;\n"
        "        again.pinned = loan->block.front().pinned;\n"
        "        again.data = loan->block.front().data;\n"
        "    }\n"
        "    (void)loan.release();\n",
        "kept",
    ),
    Mutant(
        "a forked child keeps a segment that is being made",
        "cpp/core/segment/segment_file.cpp",
        "    data_fd_ = OwnedDescriptor(file.release(pause));\n    watch();\n",
        "    data_fd_ = OwnedDescriptor(file.release(pause));\n",
        "forks",
    ),
]


class Workshop:
    """A copy of the tree, its extension, and an interpreter that finds both and no other."""

    def __init__(self, folder, jobs):
        self.folder, self.jobs = Path(folder), jobs
        for part in ("cpp", "mpbuffer"):
            shutil.copytree(ROOT / part, self.folder / part, dirs_exist_ok=True)
        for mutant in MUTANTS:  # a run that was cut short left objects of a mutant
            (self.folder / mutant.file).touch()
        self.build_folder = self.folder / "build"
        import pybind11

        options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        options += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        options += [f"-DPython_EXECUTABLE={sys.executable}"]
        configured = run(
            ["cmake", "-S", str(self.folder / "cpp"), "-B", str(self.build_folder), *options], 300
        )
        if configured.returncode != 0:
            raise SystemExit(configured.stdout)
        # The base interpreter: an editable install of the environment's would win over a path.
        found = os.pathsep.join([str(self.folder), sysconfig.get_path("purelib"), *self.paths()])
        self.python = self.folder / "python"
        self.python.write_text(
            f'#!/bin/sh\nPYTHONPATH="{found}" exec "{sys._base_executable}" "$@"\n'
        )
        self.python.chmod(0o755)

    def paths(self):
        return [path for path in sys.path if path.endswith("site-packages")]

    def build(self):
        built = run(
            ["cmake", "--build", str(self.build_folder), "-j", str(self.jobs), "--target", "_core"],
            BUILD_SECONDS,
        )
        if built.returncode == 0:
            (extension,) = self.build_folder.glob("_core.*.so")
            shutil.copy(extension, self.folder / "mpbuffer")
        return built.returncode == 0, built.stdout

    def campaign(self, kind):
        more = [word for name, count in ENOUGH.items() for word in (f"--{name}", count)]
        command = [sys.executable, str(CAMPAIGN), "--python", str(self.python), "--only", kind]
        return run([*command, *more, "--patience", "20"], CAMPAIGN_SECONDS)

    @contextlib.contextmanager
    def applied(self, mutant):
        path = self.folder / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.name}: {mutant.file} has the text {text.count(mutant.old)} times"
            )
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            yield
        finally:
            path.write_text(text)

    def try_mutant(self, mutant):
        with self.applied(mutant):
            built, log = self.build()
            if not built:
                return "NOT BUILT\n" + log[-2000:]
            outcome = self.campaign(mutant.caught_by)
            if outcome.returncode == 0:
                return "MISSED"
            faults = [line for line in outcome.stdout.splitlines() if line.startswith("FAULT: ")]
            return (
                f"caught: {faults[0]}" if faults else "FAILED OTHERWISE\n" + outcome.stdout[-2000:]
            )

    def check_unchanged(self, mutants):
        built, log = self.build()
        if not built:
            raise SystemExit(log[-3000:])
        for kind in sorted({mutant.caught_by for mutant in mutants}):
            if (outcome := self.campaign(kind)).returncode != 0:
                raise SystemExit(f"without a mutant, {kind}: {outcome.stdout[-3000:]}")


def main():
    return try_mutants(
        __doc__.partition("\n")[0],
        MUTANTS,
        Workshop,
        lambda each: f"{each.file:34} {each.name}: {each.caught_by}",
    )


if __name__ == "__main__":
    sys.exit(main())
