"""The rooms of the core and of the package, and who includes whom, from the real includes."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from svg import BLUE, GREY, INK, PALE_BLUE, RED, Drawing, number

ROOT = Path(__file__).resolve().parent.parent
CORE, PACKAGE = ROOT / "cpp" / "core", ROOT / "mpbuffer"
Arrows = set[tuple[str, str]]

ROW, LEFT, TOP = 46, 24, 62


def rooms_of_core() -> dict[str, str]:
    """Read the rooms and what they are for from the core's README, in its order."""
    lines = re.findall(r"^\| `(\w+)/` \| (.+?) \|", (CORE / "README.md").read_text(), re.MULTILINE)
    assert {room for room, _ in lines} == {each.name for each in CORE.iterdir() if each.is_dir()}
    return dict(lines)


def arrows_of_core() -> Arrows:
    """Find which room includes headers of which other."""
    arrows: Arrows = set()
    for path in sorted([*CORE.rglob("*.hpp"), *CORE.rglob("*.cpp")]):
        for room in re.findall(r'^\s*#\s*include "(\w+)/', path.read_text(), re.MULTILINE):
            if room != path.parent.name:
                arrows.add((path.parent.name, room))
    return arrows


def room_of(module: str) -> str | None:
    """Name the room of the package that a module is in; None for a module of another package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mpbuffer" and len(parts) > 1 else None


def rooms_of_public_names() -> dict[str, str]:
    """Find the room of each name that the package itself imports from one."""
    return {
        name.asname or name.name: node.module.split(".")[1]
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and "." in (node.module or "")
        for name in node.names
    }


def arrows_of_package() -> Arrows:
    """Find which room of the package imports modules of which other, or uses its public names."""
    arrows: Arrows = set()
    public = rooms_of_public_names()
    for path in sorted(PACKAGE.rglob("*.py")):
        user = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if user == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module == "mpbuffer":
                modules = [f"mpbuffer.{each.name}" for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [each.name for each in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "mpbuffer":
                modules = [f"mpbuffer.{public.get(node.attr, node.attr)}"]
            for used in filter(None, map(room_of, modules)):
                if used != user:
                    arrows.add((user, used))
    return arrows


def rooms_of_package(arrows: Arrows) -> dict[str, str]:
    """Order the rooms so that each stands below those it uses; say what each is for."""
    rooms = {room for arrow in arrows for room in arrow}
    rooms |= {each.name for each in PACKAGE.iterdir() if (each / "__init__.py").exists()}
    order: list[str] = []
    while rooms - set(order):
        free = [
            room
            for room in sorted(rooms - set(order))
            if all(used in order for user, used in arrows if user == room)
        ]
        assert free, f"rooms use one another in a circle: {sorted(rooms - set(order))}"
        order += free
    return {room: purpose_in_package(room) for room in order}


def purpose_in_package(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    if room == "_core":
        return "the extension: hot calls, conversion, the C++ core"
    folder = PACKAGE / room / "__init__.py"
    source = folder if folder.exists() else PACKAGE / f"{room}.py"
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    return docstring.partition(". ")[0].split("\n")[0].rstrip(".").replace("``", "")


def draw_rooms(title: str, rooms: dict[str, str], arrows: Arrows) -> str:
    """Draw the rooms as a list, and each arrow as an arc on its right; it should go up."""
    order = list(rooms)
    width_of_purpose = max(len(purpose) for purpose in rooms.values()) * 6.4
    right = LEFT + 110 + width_of_purpose + 30
    reach = max(order.index(a) - order.index(b) for a, b in arrows) * 26 + 70
    drawing = Drawing(right + reach + 20, TOP + ROW * len(order) + 12, title)
    drawing.text(LEFT, 26, title, size=16, bold=True)
    drawing.text(
        LEFT,
        46,
        "An arrow goes from a room to a room that it uses. Red would be an arrow down.",
        colour=GREY,
    )
    middle = {room: TOP + ROW * at + 17 for at, room in enumerate(order)}
    for room, purpose in rooms.items():
        y = middle[room] - 17
        drawing.rect(LEFT, y, right - LEFT, 34, fill=PALE_BLUE, stroke=BLUE, round_by=5)
        drawing.text(LEFT + 12, y + 22, room, bold=True, mono=True)
        drawing.text(LEFT + 122, y + 22, purpose, size=12)
    users = Counter(used for _, used in arrows)
    seen: Counter[str] = Counter()
    leaving: Counter[str] = Counter()
    for user, used in sorted(
        arrows, key=lambda each: (order.index(each[0]), -order.index(each[1]))
    ):
        steps = order.index(user) - order.index(used)
        colour = INK if steps > 0 and order.index(used) > 0 else GREY if steps > 0 else RED
        start = middle[user] - 10 + 20 * leaving[user] / max(len(order) - 1, 1)
        end = middle[used] + 14 - 28 * (seen[used] + 0.5) / users[used]
        leaving[user] += 1
        seen[used] += 1
        bend = right + 22 + abs(steps) * 26
        drawing.path(
            f"M{number(right)} {number(start)}C{number(bend + 12)} {number(start)}"
            f" {number(bend + 12)} {number(end)} {number(right + 2)} {number(end)}",
            colour=colour,
        )
        drawing.head(right + 30, end, right + 1, end, colour=colour)
    return drawing.to_text()


def pictures() -> dict[str, str]:
    """Return the pictures by file name."""
    arrows = arrows_of_package()
    return {
        "rooms_core.svg": draw_rooms("The rooms of cpp/core", rooms_of_core(), arrows_of_core()),
        "rooms_package.svg": draw_rooms("The rooms of mpbuffer/", rooms_of_package(arrows), arrows),
    }
