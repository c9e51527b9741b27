"""Write the digest of the C++ sources into a header (at build time) or print it (in tests)."""

import hashlib
import pathlib
import sys


def digest(root: pathlib.Path) -> str:
    """Return the SHA-256 of every .cpp and .hpp file of the core and the bindings."""
    total = hashlib.sha256()
    for folder in ("core", "bindings"):
        for path in sorted((root / folder).rglob("*.?pp")):
            total.update(
                path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
            )
    return total.hexdigest()


if __name__ == "__main__":
    text = digest(pathlib.Path(sys.argv[1]))
    pathlib.Path(sys.argv[2]).write_text(
        f'#pragma once\n\ninline constexpr char mpbuffer_source_digest[] = "{text}";\n'
    )
