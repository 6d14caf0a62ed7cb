"""Pictures of a release, as SVG: the numbers stand in the picture and beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from scf.proofs.statement import Statement
from scf.release.canvas import BLUE, GREEN, GREY, LEFT, RED, RIGHT, Canvas, Scale
from scf.release.improvement import Gain, Step

# Generations whose names and numbers stand in the picture; metrics.json has all.
TOLD_MAX = 12


def gate_picture(title: str, gate: Mapping[str, Any]) -> bytes:
    """How the gate came to its decision: the path of the sequential test, or the interval.

    Args:
        title: Which run, against what.
        gate: The decision as JSON: `{promote, reasons, trace}`.
    """
    trace = gate.get("trace", {})
    test = trace.get("superiority") or {}
    verdict = "promoted" if gate.get("promote") else "not promoted"
    head = Canvas(f"{title}: {verdict}")
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
    canvas = Canvas(f"{title}: held-out loss (lower is better)")
    ends = [e for _, loss in shown for e in (*(loss.ci95 or ()), loss.mean)]
    scale = Scale(ends, 250, RIGHT)
    top = canvas.take(34 * len(shown) + 30)
    for number, (name, loss) in enumerate(shown):
        y = top + 20 + 34 * number
        canvas.text(12, y + 4, name)
        if loss.ci95 is not None:
            canvas.line(scale(loss.ci95[0]), y, scale(loss.ci95[1]), y, BLUE, width=3)
        canvas.dot(scale(loss.mean), y, BLUE)
        interval = f" ({loss.ci95[0]:.4g} to {loss.ci95[1]:.4g})" if loss.ci95 else ""
        canvas.text(12, y + 18, f"{loss.mean:.4g}{interval}", GREY)
    canvas.axis(scale, top + 34 * len(shown) + 12)
    return canvas.svg()


def _draw_path(canvas: "Canvas", test: Mapping[str, Any]) -> None:
    """The log-likelihood ratio, block by block, between its two bounds."""
    path: Sequence[float] = test["path"]
    low, high = float(test["llr_low"]), float(test["llr_high"])
    top = canvas.take(260)
    tall = Scale([low * 1.15, high * 1.15, *path], top + 230, top + 10)
    wide = Scale([0, max(len(path), int(test["blocks_min"]))], LEFT, RIGHT)
    for value, colour, name in (
        (high, GREEN, f"better: {high:.3g}"), (low, RED, f"no better: {low:.3g}"),
    ):  # fmt: skip
        canvas.line(LEFT, tall(value), RIGHT, tall(value), colour, dashed=True)
        canvas.text(LEFT + 6, tall(value) - 5, name, colour)
    canvas.line(LEFT, tall(0), RIGHT, tall(0), GREY)
    points = [(wide(0), tall(0))]
    points += [(wide(i), tall(value)) for i, value in enumerate(path, start=1)]
    canvas.curve(points, BLUE)
    canvas.text(12, tall(0) + 4, "LLR")
    canvas.axis(wide, top + 240)
    low_sigma, high_sigma = test["bounds_sigma"]
    canvas.words(
        f"log-likelihood ratio {path[-1]:.3g} after {len(path)} families "
        f"(gain of {high_sigma:g} sigma against {low_sigma:g}; "
        f"alpha {test['alpha']:g}, beta {test['beta']:g}): {test['decision']}"
    )


def _draw_interval(canvas: "Canvas", comparison: Mapping[str, Any]) -> None:
    """The gain over the opponent with its one-sided bound."""
    gain, bound = comparison.get("gain"), comparison.get("lower_bound")
    if gain is None or bound is None:
        canvas.words("there was no comparison that could be made")
        return
    margin = float(comparison.get("margin") or 0.0)
    scale = Scale([gain, bound, 0.0, -margin], LEFT, RIGHT)
    top = canvas.take(90)
    y = top + 40
    for value, name in ((0.0, "no gain"), (-margin, "margin")):
        if value or name == "no gain":
            canvas.line(scale(value), top + 14, scale(value), top + 64, GREY, dashed=True)
            canvas.text(scale(value) + 4, top + 22, name, GREY)
    canvas.line(scale(bound), y, scale(gain), y, BLUE, width=3)
    canvas.dot(scale(gain), y, BLUE)
    canvas.axis(scale, top + 70)
    canvas.words(
        f"gain over the {comparison.get('opponent')}: {gain:.4g}, "
        f"{100 * (1 - comparison['alpha']):.4g} % sure above {bound:.4g} "
        f"({comparison.get('families')} families)"
    )


def improvement_picture(steps: Sequence[Step]) -> bytes:
    """Gain over the first generation, by generation: going on, from nothing, never again."""
    canvas = Canvas(f"gain in held-out loss over {steps[0].generation} (higher is better)")
    series = [
        ("going on from the one before", BLUE, 0, [step.over_frozen for step in steps]),
        (
            "from nothing, within the budget of one run",
            RED,
            9,
            [step.scratch_over_frozen for step in steps],
        ),
    ]
    shown = [gain for _, _, _, gains in series for gain in gains if gain]
    top = canvas.take(250)
    tall = Scale(
        [0.0, *(end for gain in shown for end in (gain.low, gain.high))], top + 220, top + 10
    )
    wide = Scale([0, max(1, len(steps) - 1)], LEFT + 30, RIGHT - 40)
    for value in tall.ticks():
        canvas.line(LEFT, tall(value), RIGHT, tall(value), "#e4e4e4")
        canvas.text(12, tall(value) + 4, f"{value:.6g}", GREY, size=11)
    canvas.line(LEFT, tall(0), RIGHT, tall(0), GREY, dashed=True)
    for name, colour, aside, gains in series:
        places = [(wide(number) + aside, gain) for number, gain in enumerate(gains) if gain]
        if places:
            line = [(x, tall(gain.mean)) for x, gain in places]
            canvas.curve([(wide(0) + aside, tall(0)), *line], colour)
            for x, gain in places:
                _interval(canvas, x, gain, tall, colour)
            canvas.words(f"{_mark(colour)}: {name}")
    every = -(-len(steps) // TOLD_MAX)
    for number, step in enumerate(steps):
        if number % every == 0:
            canvas.text(wide(number) - 14, top + 240, _short(step), GREY, size=11)
    canvas.words(f"dashed: {steps[0].generation}, never trained again")
    for step in steps[1:][-TOLD_MAX:]:
        told = {"going on": step.over_frozen, "from nothing": step.scratch_over_frozen}
        parts = [f"{name} {gain.text()}" for name, gain in told.items() if gain]
        said = "; ".join(parts) or "not measured beside it"
        canvas.words(f"{_short(step)}, {step.fossils:,} fossils: {said}")
    return canvas.svg()


def _interval(canvas: Canvas, x: float, gain: Gain, tall: Scale, colour: str) -> None:
    canvas.line(x, tall(gain.low), x, tall(gain.high), colour, width=2)
    for end in (gain.low, gain.high):
        canvas.line(x - 4, tall(end), x + 4, tall(end), colour, width=2)
    canvas.dot(x, tall(gain.mean), colour)


def _short(step: Step) -> str:
    """`gen0007`."""
    return step.generation.rpartition("_")[2]


def _mark(colour: str) -> str:
    return {BLUE: "blue", RED: "red"}[colour]
