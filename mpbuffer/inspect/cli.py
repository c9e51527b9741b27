"""The ``mpbuffer`` command; needs the extra ``cli``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; without its packages, say what to install and exit with status 2."""
    try:
        from mpbuffer.inspect.commands import commands
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("click", "rich"):
            raise
        print(
            f"the mpbuffer command needs {missing.name}: pip install 'mpbuffer[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    commands(prog_name="mpbuffer")
