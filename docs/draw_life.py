"""The life of a transition, and the processes around a segment."""

from __future__ import annotations

from svg import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_ORANGE,
    PALE_RED,
    RED,
    Drawing,
)

STEPS = [
    (
        "claim",
        "explorer",
        "word: committed, old → mine",
        ["cursor.fetch_add gives a position;", "compare-exchange takes the slot"],
    ),
    ("copy", "explorer", "word: mine", ["fields into the record,", "leaf into leaf_in"]),
    (
        "commit",
        "explorer",
        "word: mine → committed, new",
        ["one release store;", "the row counts from here on"],
    ),
    (
        "fold",
        "learner",
        "leaf, lap",
        ["at its next sample: leaf_in goes", "into the sum tree"],
    ),
    (
        "draw",
        "learner",
        "word, record: read",
        ["a mass picks a leaf; the copy counts if", "the word is the same before and after"],
    ),
    (
        "update",
        "learner",
        "leaf",
        ["only if word and lap still", "say the row that was sampled"],
    ),
    (
        "overwrite",
        "explorer",
        "word: committed → mine",
        ["a lap later, the next claim", "of the slot begins again"],
    ),
]


def transition() -> str:
    """Draw the steps in two lanes, with the word of the slot between them."""
    drawing = Drawing(860, 96 + 66 * len(STEPS), "Life of a transition")
    drawing.text(24, 28, "Life of a transition", size=16, bold=True)
    lanes = {"explorer": (24, PALE_ORANGE, ORANGE), "learner": (580, PALE_BLUE, BLUE)}
    for lane, (x, _, colour) in lanes.items():
        drawing.text(x + 128, 62, lane, anchor="middle", bold=True, colour=colour, size=14)
    drawing.text(430, 62, "shared memory", anchor="middle", bold=True, colour=GREEN, size=14)
    drawing.rect(310, 74, 240, 66 * len(STEPS) - 4, fill=PALE_GREEN, stroke=GREEN, round_by=6)
    for index, (name, lane, shared, words) in enumerate(STEPS):
        x, fill, colour = lanes[lane]
        y = 80 + 66 * index
        drawing.rect(x, y, 256, 54, fill=fill, stroke=colour, round_by=6)
        drawing.text(x + 10, y + 18, f"{index + 1}. {name}", bold=True)
        for line, each in enumerate(words):
            drawing.text(x + 10, y + 34 + 14 * line, each, size=11)
        drawing.text(430, y + 31, shared, anchor="middle", size=11, mono=True)
        if lane == "explorer":
            drawing.arrow(x + 256, y + 27, 309, y + 27, colour=colour)
        elif name in ("draw",):
            drawing.arrow(551, y + 27, x - 1, y + 27, colour=colour)
        else:
            drawing.arrow(x, y + 27, 551, y + 27, colour=colour)
    return drawing.to_text()


def processes() -> str:
    """Draw explorers, learner and the two segments."""
    drawing = Drawing(820, 330, "Processes and segments")
    for index in range(3):
        y = 40 + 84 * index
        drawing.rect(24, y, 170, 62, fill=PALE_ORANGE, stroke=ORANGE, round_by=8)
        drawing.text(
            109,
            y + 26,
            f"explorer {index}" if index < 2 else "explorer n",
            anchor="middle",
            bold=True,
        )
        drawing.text(109, y + 45, "environment, policy", anchor="middle", size=11)
        drawing.arrow(194, y + 24, 298, 86 + 22 * index, colour=ORANGE, width=1.8)
        drawing.arrow(298, 232 + 16 * index, 196, y + 46, colour=GREEN)
    drawing.text(246, 62, "add", anchor="middle", colour=ORANGE, bold=True)
    drawing.text(246, 312, "read weights", anchor="middle", colour=GREEN, bold=True)
    drawing.rect(300, 40, 250, 142, fill=PALE_BLUE, stroke=BLUE, round_by=8)
    drawing.text(425, 62, "segment of a buffer", anchor="middle", bold=True)
    for index, words in enumerate(
        ["process table", "counters", "slot words, leaves", "row records"]
    ):
        drawing.rect(318, 74 + 25 * index, 214, 21, fill="#ffffff", stroke=BLUE)
        drawing.text(425, 89 + 25 * index, words, anchor="middle", size=11)
    drawing.rect(300, 206, 250, 84, fill=PALE_GREEN, stroke=GREEN, round_by=8)
    drawing.text(425, 228, "segment of weights", anchor="middle", bold=True)
    for index in range(4):
        drawing.rect(318 + 54 * index, 240, 48, 34, fill="#ffffff", stroke=GREEN)
        drawing.text(342 + 54 * index, 261, f"v{(41, 42, 39, 40)[index]}", anchor="middle", size=11)
    drawing.rect(640, 84, 156, 150, fill=PALE_RED, stroke=RED, round_by=8)
    for index, (words, bold) in enumerate(
        [
            ("learner", True),
            ("sum tree (private)", False),
            ("network, optimizer", False),
            ("supervises explorers", False),
        ]
    ):
        drawing.text(
            718, 116 + 28 * index, words, anchor="middle", bold=bold, size=13 if bold else 11
        )
    drawing.arrow(551, 104, 638, 122, colour=RED, width=1.8)
    drawing.text(596, 96, "sample", anchor="middle", colour=RED, bold=True)
    drawing.arrow(639, 150, 552, 156, colour=RED)
    drawing.text(596, 144, "update", anchor="middle", colour=RED, bold=True)
    drawing.arrow(639, 214, 552, 248, colour=RED)
    drawing.text(608, 252, "publish", anchor="middle", colour=RED, bold=True)
    drawing.text(24, 24, "One machine: each arrow is a copy of memory, no message", colour=GREY)
    return drawing.to_text()


def pictures() -> dict[str, str]:
    """Return the pictures by file name."""
    return {"transition.svg": transition(), "processes.svg": processes()}
