"""All pictures of these pages.

python docs/draw_all.py            # writes docs/pictures/*.svg
python docs/draw_all.py --check    # compares only
"""

import argparse
import sys
from pathlib import Path

import draw_life
import draw_paths
import draw_ring
import draw_rooms

FOLDER = Path(__file__).resolve().parent / "pictures"
PROGRAMS = (draw_life, draw_paths, draw_ring, draw_rooms)


def main() -> None:
    """Write or compare the pictures."""
    options = argparse.ArgumentParser(description="All pictures of the documentation.")
    options.add_argument("--check", action="store_true", help="compare only")
    check = options.parse_args().check
    wanted = {name: text for each in PROGRAMS for name, text in each.pictures().items()}
    there = {path.name: path.read_text() for path in FOLDER.glob("*.svg")}
    if check and wanted != there:
        differ = sorted(name for name in wanted | there if wanted.get(name) != there.get(name))
        sys.exit(f"out of date: {', '.join(differ)}; run python docs/draw_all.py")
    if not check:
        FOLDER.mkdir(exist_ok=True)
        for name in there.keys() - wanted.keys():
            (FOLDER / name).unlink()
        for name, text in wanted.items():
            (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
