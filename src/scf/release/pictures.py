"""Pictures of a release, as SVG written by hand: the numbers stand in the picture and beside it.

No drawing library, so that packing needs none and the same numbers give the same bytes. Colours
say nothing that the words beside them do not say.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from scf.proofs.statement import Statement

_WIDTH, _LEFT, _RIGHT = 760, 70, 740
_INK, _GREY, _BLUE, _RED, _GREEN = "#1a1a1a", "#8a8a8a", "#1f5fa8", "#a83232", "#2c7a3f"


def gate_picture(title: str, gate: Mapping[str, Any]) -> bytes:
    """How the gate came to its decision: the path of the sequential test, or the interval.

    Args:
        title: Which run, against what.
        gate: The decision as JSON: `{promote, reasons, trace}`.
    """
    trace = gate.get("trace", {})
    test = trace.get("superiority") or {}
    verdict = "promoted" if gate.get("promote") else "not promoted"
    head = _Canvas(f"{title}: {verdict}")
    if test.get("path"):
        _draw_path(head, test)
    else:
        _draw_interval(head, trace.get("comparison") or {})
    for reason in gate.get("reasons", []):
        head.words(str(reason))
    return head.svg()


def loss_picture(title: str, statement: Statement) -> bytes:
    """Held-out losses side by side, each with its 95 % interval."""
    report = statement.report
    rows = [
        ("this model", report.dsm_loss),
        ("Gaussian, full covariance", report.gaussian),
        ("independent Gaussians", report.baseline),
        ("champion before it", report.champion),
    ]
    shown = [(name, loss) for name, loss in rows if loss is not None]
    canvas = _Canvas(f"{title}: held-out loss (lower is better)")
    ends = [e for _, loss in shown for e in (*(loss.ci95 or ()), loss.mean)]
    scale = _Scale(ends, 250, _RIGHT)
    top = canvas.take(34 * len(shown) + 30)
    for number, (name, loss) in enumerate(shown):
        y = top + 20 + 34 * number
        canvas.text(12, y + 4, name)
        if loss.ci95 is not None:
            canvas.line(scale(loss.ci95[0]), y, scale(loss.ci95[1]), y, _BLUE, width=3)
        canvas.dot(scale(loss.mean), y, _BLUE)
        interval = f" ({loss.ci95[0]:.4g} to {loss.ci95[1]:.4g})" if loss.ci95 else ""
        canvas.text(12, y + 18, f"{loss.mean:.4g}{interval}", _GREY)
    canvas.axis(scale, top + 34 * len(shown) + 12)
    return canvas.svg()


def _draw_path(canvas: "_Canvas", test: Mapping[str, Any]) -> None:
    """The log-likelihood ratio, block by block, between its two bounds."""
    path: Sequence[float] = test["path"]
    low, high = float(test["llr_low"]), float(test["llr_high"])
    top = canvas.take(260)
    tall = _Scale([low * 1.15, high * 1.15, *path], top + 230, top + 10)
    wide = _Scale([0, max(len(path), int(test["blocks_min"]))], _LEFT, _RIGHT)
    for value, colour, name in (
        (high, _GREEN, f"better: {high:.3g}"), (low, _RED, f"no better: {low:.3g}"),
    ):  # fmt: skip
        canvas.line(_LEFT, tall(value), _RIGHT, tall(value), colour, dashed=True)
        canvas.text(_LEFT + 6, tall(value) - 5, name, colour)
    canvas.line(_LEFT, tall(0), _RIGHT, tall(0), _GREY)
    points = [(wide(0), tall(0))]
    points += [(wide(i), tall(value)) for i, value in enumerate(path, start=1)]
    canvas.curve(points, _BLUE)
    canvas.text(12, tall(0) + 4, "LLR")
    canvas.axis(wide, top + 240)
    low_sigma, high_sigma = test["bounds_sigma"]
    canvas.words(
        f"log-likelihood ratio {path[-1]:.3g} after {len(path)} families "
        f"(gain of {high_sigma:g} sigma against {low_sigma:g}; "
        f"alpha {test['alpha']:g}, beta {test['beta']:g}): {test['decision']}"
    )


def _draw_interval(canvas: "_Canvas", comparison: Mapping[str, Any]) -> None:
    """The gain over the opponent with its one-sided bound."""
    gain, bound = comparison.get("gain"), comparison.get("lower_bound")
    if gain is None or bound is None:
        canvas.words("there was no comparison that could be made")
        return
    margin = float(comparison.get("margin") or 0.0)
    scale = _Scale([gain, bound, 0.0, -margin], _LEFT, _RIGHT)
    top = canvas.take(90)
    y = top + 40
    for value, name in ((0.0, "no gain"), (-margin, "margin")):
        if value or name == "no gain":
            canvas.line(scale(value), top + 14, scale(value), top + 64, _GREY, dashed=True)
            canvas.text(scale(value) + 4, top + 22, name, _GREY)
    canvas.line(scale(bound), y, scale(gain), y, _BLUE, width=3)
    canvas.dot(scale(gain), y, _BLUE)
    canvas.axis(scale, top + 70)
    canvas.words(
        f"gain over the {comparison.get('opponent')}: {gain:.4g}, "
        f"{100 * (1 - comparison['alpha']):.4g} % sure above {bound:.4g} "
        f"({comparison.get('families')} families)"
    )


class _Scale:
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


class _Canvas:
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

    def text(self, x: float, y: float, text: str, colour: str = _INK, size: int = 13) -> None:
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

    def axis(self, scale: _Scale, y: float) -> None:
        """A scale with round numbers on it."""
        self.line(scale(scale.low), y, scale(scale.high), y, _GREY)
        for value in scale.ticks():
            self.line(scale(value), y - 3, scale(value), y + 3, _GREY)
            self.text(scale(value) - 8, y + 16, f"{value:.6g}", _GREY, size=11)

    def svg(self) -> bytes:
        """The file."""
        height = self._y + 30
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img" '
            f'font-family="system-ui, sans-serif">\n<title>{escape(self._title)}</title>\n'
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        ).encode()
