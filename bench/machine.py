"""What a figure was measured on."""

import os
import platform
import re
import subprocess

import numpy as np

import mpbuffer


def describe_machine() -> dict[str, str | int]:
    """Return the processor, how busy it is, and the versions of whatever a figure depends on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "compiler": _compiler_of_extension(),
        "mpbuffer": mpbuffer.__version__,
        "sources": mpbuffer._core.source_digest[:12],
    }


def _processor() -> str:
    """Return lscpu's name of the processor, with family and model, for names can be vague."""
    listing = subprocess.run(
        ["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout
    rows = dict(re.findall(r"^([^:\n]+):[ \t]*(.*)$", listing, re.MULTILINE))
    name = rows.get("Model name", platform.machine())
    family, model = rows.get("CPU family"), rows.get("Model")
    return f"{name} (family {family}, model {model})" if family and model else name


def _compiler_of_extension() -> str:
    """Return what the compiler wrote into the extension about itself."""
    with open(mpbuffer._core.__file__, "rb") as extension:
        signed = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", extension.read())
    return signed.group().decode() if signed else "unknown"
