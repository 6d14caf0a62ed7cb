"""Drawing by hand: an SVG from top to bottom, with round numbers on its axes.

No drawing library, so that packing needs none and the same numbers give the same bytes. Colours
say nothing that the words beside them do not say.
"""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 760, 70, 740
INK, GREY, BLUE, RED, GREEN = "#1a1a1a", "#8a8a8a", "#1f5fa8", "#a83232", "#2c7a3f"


class Scale:
    """Numbers to places on the page."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = min(values), max(values)
        if self.high <= self.low:
            self.low, self.high = self.low - 1, self.high + 1
        pad = 0.0 if self.low == 0 else 0.05 * (self.high - self.low)
        self.low, self.high = self.low - pad, self.high + 0.05 * (self.high - self.low)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self._start + share * (self._end - self._start), 2)

    def ticks(self) -> list[float]:
        """About six round numbers on it: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(n * step, 12) for n in range(first, last + 1)]


class Canvas:
    """Shapes from top to bottom, then the whole file."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self._y = 20
        self.text(12, self._y, title, size=15)
        self._y += 14

    def take(self, height: int) -> int:
        """Room for a drawing; returns where it begins."""
        top = self._y
        self._y += height
        return top

    def words(self, text: str) -> None:
        """A paragraph, broken to the width of the page."""
        line = ""
        for word in text.split():
            if len(line) + len(word) > 104:
                self._y += 17
                self.text(12, self._y, line.strip())
                line = ""
            line += f" {word}"
        self._y += 17
        self.text(12, self._y, line.strip())

    def text(self, x: float, y: float, text: str, colour: str = INK, size: int = 13) -> None:
        """One line of text."""
        self._parts.append(
            f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, colour: str,
        *, width: int = 1, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A straight line."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" '
            f'stroke-width="{width}"{dash}/>'
        )

    def dot(self, x: float, y: float, colour: str) -> None:
        """A point."""
        self._parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')

    def curve(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """A line through points."""
        joined = " ".join(f"{x},{y}" for x, y in points)
        self._parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )

    def axis(self, scale: Scale, y: float) -> None:
        """A scale with round numbers on it."""
        self.line(scale(scale.low), y, scale(scale.high), y, GREY)
        for value in scale.ticks():
            self.line(scale(value), y - 3, scale(value), y + 3, GREY)
            self.text(scale(value) - 8, y + 16, f"{value:.6g}", GREY, size=11)

    def svg(self) -> bytes:
        """The file."""
        height = self._y + 30
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" '
            f'font-family="system-ui, sans-serif">\n<title>{escape(self._title)}</title>\n'
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        ).encode()
