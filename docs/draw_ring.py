"""The ring of slots, and the word of a slot, whose bits are read from the core's header."""

from __future__ import annotations

import math
import re
from pathlib import Path

from svg import (
    BLUE,
    GREY,
    INK,
    PALE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_ORANGE,
    PALE_RED,
    Drawing,
    number,
)

ROOT = Path(__file__).resolve().parent.parent
CAPACITY, POSITION, FOLDED, LAPS = 16, 43, 37, 2

# What each slot of the example holds, by slot: the rest is committed.
CLAIMED, ABANDONED = {10: 2, 8: 3}, {5: 4}


def ring() -> str:
    """Draw a ring of 16 slots in its third lap, with the marks that point into it."""
    drawing = Drawing(900, 430, "A ring of 16 slots")
    centre_x, centre_y, inner, outer = 275, 225, 105, 165
    drawing.text(24, 28, "A ring of 16 slots", size=16, bold=True)

    def at(slot: float, radius: float) -> tuple[float, float]:
        angle = 2 * math.pi * slot / CAPACITY - math.pi / 2
        return centre_x + radius * math.cos(angle), centre_y + radius * math.sin(angle)

    for slot in range(CAPACITY):
        seq = slot + CAPACITY * LAPS
        seq = seq if seq < POSITION else seq - CAPACITY
        fill, owner = PALE_BLUE if seq < FOLDED else PALE_GREEN, ""
        if slot in CLAIMED:
            fill, owner = PALE_ORANGE, f"by {CLAIMED[slot]}"
        if slot in ABANDONED:
            fill, owner = PALE_RED, f"by {ABANDONED[slot]}"
        corners = [at(slot, inner), at(slot, outer), at(slot + 1, outer), at(slot + 1, inner)]
        (a, b), (c, d), (e, f), (g, h) = corners
        drawing.path(
            f"M{number(a)} {number(b)}L{number(c)} {number(d)}A{outer} {outer} 0 0 1 {number(e)}"
            f" {number(f)}L{number(g)} {number(h)}A{inner} {inner} 0 0 0 {number(a)} {number(b)}Z",
            fill=fill,
            colour=GREY,
        )
        x, y = at(slot + 0.5, 137)
        drawing.text(x, y + (0 if owner else 5), str(seq), anchor="middle", size=13, bold=True)
        if owner:
            drawing.text(x, y + 14, owner, anchor="middle", size=10)
        x, y = at(slot + 0.5, 90)
        drawing.text(x, y + 4, str(slot), anchor="middle", size=10, colour=GREY)
    for position, name, colour in ((POSITION, "position", INK), (FOLDED, "folded", BLUE)):
        x, y = at(position % CAPACITY, 205)
        to_x, to_y = at(position % CAPACITY, 168)
        drawing.arrow(x, y, to_x, to_y, colour=colour, width=2)
        x, y = at(position % CAPACITY, 210)
        anchor = "end" if x < centre_x else "start"
        drawing.text(x, y + 4, f"{name} {position}", anchor=anchor, colour=colour, bold=True)
    drawing.text(centre_x, centre_y - 6, "slot =", anchor="middle", size=12, colour=GREY)
    drawing.text(centre_x, centre_y + 12, "seq % 16", anchor="middle", size=12, colour=GREY)

    rows = [
        (PALE_BLUE, "complete, in the learner's tree"),
        (PALE_GREEN, "complete, not yet folded"),
        (PALE_ORANGE, "claimed by a living process"),
        (PALE_RED, "claimed by a process that died"),
    ]
    for index, (fill, words) in enumerate(rows):
        drawing.rect(560, 80 + 30 * index, 20, 18, fill=fill)
        drawing.text(590, 94 + 30 * index, words)
    notes = [
        "The number in a slot is the seq of its word.",
        "An add takes the next positions from the cursor,",
        "then claims their slots.",
        "A fold goes from `folded` to `position`. Rows",
        "that are not complete stay pending.",
        "The dead claim at slot 5 is taken over by the",
        "next add that reaches the slot.",
    ]
    for index, words in enumerate(notes):
        drawing.text(560, 236 + 21 * index, words.replace("`", ""), size=12)
    return drawing.to_text()


def slot_word() -> str:
    """Draw the bits of a slot's word."""
    text = (ROOT / "cpp/core/format/slot_word.hpp").read_text()
    bits = {
        name: int(re.search(rf"{name}_bits = (\d+)", text)[1]) for name in ("seq", "owner", "epoch")
    }  # type: ignore[index]
    bits["fresh"] = 64 - sum(bits.values())
    drawing = Drawing(760, 150, "The word of a slot")
    drawing.text(24, 28, "The word of a slot: 64 bits, one atomic", size=16, bold=True)
    x, high = 24.0, 63
    fills = {"seq": PALE_BLUE, "owner": PALE_ORANGE, "epoch": PALE_GREEN, "fresh": PALE}
    for name, count in bits.items():
        width = 60 + count * 7.4
        drawing.rect(x, 60, width, 40, fill=fills[name])
        drawing.text(x + width / 2, 85, f"{name}: {count}", anchor="middle", bold=True)
        drawing.text(x + 3, 54, str(high), size=10, colour=GREY)
        high -= count
        x += width
    drawing.text(
        24,
        126,
        "owner 0: the row is complete. Else: the number of the process that writes it.",
        size=12,
    )
    return drawing.to_text()


def pictures() -> dict[str, str]:
    """Return the pictures by file name."""
    return {"ring.svg": ring(), "slot_word.svg": slot_word()}
