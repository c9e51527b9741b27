"""The few shapes that the pictures of these pages are made of, as SVG text."""

from __future__ import annotations

import html

INK, GREY, PALE, PAPER = "#222222", "#8a8f98", "#eef0f3", "#ffffff"
BLUE, GREEN, ORANGE, RED = "#2f6fb3", "#2c8a57", "#c8741a", "#b83232"
PALE_BLUE, PALE_GREEN, PALE_ORANGE, PALE_RED = "#dde9f6", "#dcf0e4", "#f9e8d2", "#f6dcdc"


def number(value: float) -> str:
    """Write a coordinate the same way on every machine."""
    return f"{value:.1f}".removesuffix(".0")


class Drawing:
    """A picture of a fixed size; shapes are drawn in the order of the calls."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self._head = (
            '<svg xmlns="http://www.w3.org/2000/svg"'
            f' viewBox="0 0 {number(width)} {number(height)}"'
            f' width="{number(width)}" height="{number(height)}" role="img"'
            ' font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13">'
        )
        self._shapes = [f"<title>{html.escape(title)}</title>"]
        self.rect(0, 0, width, height, fill=PAPER, stroke="none")

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = PALE,
        stroke: str = GREY,
        round_by: float = 0,
        dash: str = "",
    ) -> None:
        """Draw a box."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._shapes.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}"'
            f' height="{number(height)}" rx="{number(round_by)}" fill="{fill}"'
            f' stroke="{stroke}"{dashes}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        size: float = 13,
        colour: str = INK,
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """Write one line; y is its base line."""
        weight = ' font-weight="bold"' if bold else ""
        family = ' font-family="DejaVu Sans Mono, monospace"' if mono else ""
        self._shapes.append(
            f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
            f' font-size="{number(size)}" fill="{colour}"{weight}{family}>'
            f"{html.escape(words)}</text>"
        )

    def path(
        self,
        shape: str,
        *,
        colour: str = INK,
        width: float = 1.3,
        fill: str = "none",
        dash: str = "",
    ) -> None:
        """Draw a line by the commands of SVG's paths."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._shapes.append(
            f'<path d="{shape}" fill="{fill}" stroke="{colour}"'
            f' stroke-width="{number(width)}"{dashes}/>'
        )

    def arrow(
        self,
        x: float,
        y: float,
        to_x: float,
        to_y: float,
        *,
        colour: str = INK,
        width: float = 1.3,
        dash: str = "",
    ) -> None:
        """Draw a straight arrow."""
        self.path(
            f"M{number(x)} {number(y)}L{number(to_x)} {number(to_y)}",
            colour=colour,
            width=width,
            dash=dash,
        )
        self.head(x, y, to_x, to_y, colour=colour)

    def head(self, x: float, y: float, to_x: float, to_y: float, *, colour: str = INK) -> None:
        """Draw the head of an arrow that comes from one point to another."""
        length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
        along_x, along_y = (to_x - x) / length * 8, (to_y - y) / length * 8
        points = [
            (to_x, to_y),
            (to_x - along_x - along_y / 2, to_y - along_y + along_x / 2),
            (to_x - along_x + along_y / 2, to_y - along_y - along_x / 2),
        ]
        corners = "L".join(f"{number(a)} {number(b)}" for a, b in points)
        self._shapes.append(f'<path d="M{corners}Z" fill="{colour}"/>')

    def to_text(self) -> str:
        """Return the SVG file."""
        return "\n".join([self._head, *self._shapes, "</svg>"]) + "\n"
