"""The source files that one add and one sample enter, from what trace_calls.py found."""

from __future__ import annotations

import json
import re
from pathlib import Path

from svg import BLUE, GREY, INK, ORANGE, PALE_BLUE, PALE_ORANGE, Drawing

TRACE = Path(__file__).resolve().parent / "architecture" / "paths.json"
WIDTH, MOST_LETTERS = 430, 62


def lines_of(functions: list[str]) -> list[str]:
    """Break the functions' names into lines; what does not fit into two is counted."""
    names = [re.sub(r"^(\w+::)+(?=\w+::)", "", each) for each in functions]
    lines, left = [""], len(names)
    for name in names:
        more = f"{lines[-1]}, {name}" if lines[-1] else name
        if len(more) <= MOST_LETTERS - (12 if len(lines) == 2 else 0):
            lines[-1] = more
        elif len(lines) < 2:
            lines.append(name)
        else:
            lines[-1] += f", {left} more"
            break
        left -= 1
    return lines


def column(drawing: Drawing, x: float, title: str, files: dict[str, list[str]]) -> float:
    """Draw one call's files from top to bottom; return where they end."""
    drawing.text(x, 62, f"{title}: {len(files)} files", bold=True, size=14)
    y = 74.0
    for index, (path, functions) in enumerate(files.items()):
        lines = lines_of(functions)
        height = 24 + 14 * len(lines)
        binding = path.startswith("cpp/bindings")
        fill, stroke = (PALE_ORANGE, ORANGE) if binding else (PALE_BLUE, BLUE)
        if index:
            drawing.arrow(x + 20, y - 10, x + 20, y - 1, colour=INK)
        drawing.rect(x, y, WIDTH, height, fill=fill, stroke=stroke, round_by=5)
        drawing.text(x + 10, y + 17, path.removeprefix("cpp/"), bold=True, mono=True, size=12)
        for line, words in enumerate(lines):
            drawing.text(x + 10, y + 32 + 14 * line, words, size=10)
        y += height + 11
    return y


def pictures() -> dict[str, str]:
    """Return the picture by file name."""
    traced: dict[str, dict[str, list[str]]] = json.loads(TRACE.read_text())
    height = max(
        74 + sum(35 + 14 * len(lines_of(each)) for each in files.values())
        for files in traced.values()
    )
    drawing = Drawing(24 + (WIDTH + 30) * len(traced), height + 10, "Paths of add and sample")
    drawing.text(
        24, 28, "Source files entered, in the order of the first entry", size=16, bold=True
    )
    drawing.text(24, 44, "orange: bindings; blue: core", colour=GREY, size=11)
    for index, (call, files) in enumerate(traced.items()):
        column(drawing, 24 + (WIDTH + 30) * index, call, files)
    return {"paths.svg": drawing.to_text()}
