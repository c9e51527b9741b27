"""First of all: is the extension built from these sources? Otherwise every other test misleads."""

import subprocess
import sys
from pathlib import Path

import mpbuffer

ROOT = Path(__file__).resolve().parent.parent


def test_the_extension_was_built_from_these_sources(tmp_path):
    header = tmp_path / "source_digest.hpp"
    script = ROOT / "cpp" / "source_digest.py"
    subprocess.run([sys.executable, script, ROOT / "cpp", header], check=True)
    assert f'"{mpbuffer._core.source_digest}"' in header.read_text(), (
        f"{mpbuffer._core.__file__} was built from other sources than those in {ROOT / 'cpp'}: "
        "install the package again"
    )
