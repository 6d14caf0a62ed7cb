"""Has the foundry improved its model? Gains of each generation, from its own signed statement.

Every gain is paired: opponent's loss minus the generation's, family by family, on the held-out pool
and noise of that generation's own measurement, with a 95 % interval (Student t over families). The
opponents: the champion that it replaced; the first generation, never trained again; and, where the
control was run ([daemon] scratch_control), the same plan and training budget from nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scf.proofs.verify_proof import VerifiedStatement
from scf.verification.report import Loss
from scf.verification.student_t import quantile
from scf.zoo.registry import Generation


@dataclass(frozen=True)
class Gain:
    """A paired difference of two losses; positive is better.

    Attributes:
        over: Whose loss it was taken from.
        mean: Over families.
        low, high: 95 % interval; both the mean where one family was all there was.
    """

    over: str
    mean: float
    low: float
    high: float
    families: int

    def text(self) -> str:
        """`+0.0123 (0.011 to 0.014)`."""
        return f"{self.mean:+.4f} ({self.low:.4f} to {self.high:.4f})"

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "over": self.over,
            "mean": self.mean,
            "ci95": [self.low, self.high],
            "families": self.families,
        }


@dataclass(frozen=True)
class Step:
    """One generation.

    Attributes:
        over_champion: None for the first generation.
        over_frozen: Over the first generation; None for itself, or where it was not measured.
        over_scratch: Over training from nothing; None where that control was not run.
        scratch_over_frozen: What that control would have gained over the first generation.
    """

    generation: str
    promoted_at: str
    fossils: int
    loss: float | None
    over_champion: Gain | None
    over_frozen: Gain | None
    over_scratch: Gain | None
    scratch_over_frozen: Gain | None

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        gains = ("over_champion", "over_frozen", "over_scratch", "scratch_over_frozen")
        return {
            "generation": self.generation,
            "promoted_at": self.promoted_at,
            "fossils": self.fossils,
            "dsm_loss": self.loss,
            **{name: gain and gain.to_json() for name in gains for gain in [getattr(self, name)]},
        }


def improvement(
    generations: Iterable[tuple[Generation, VerifiedStatement]], champions: Mapping[str, str]
) -> tuple[Step, ...]:
    """The steps of these generations, oldest first.

    Args:
        generations: Each with its verified statement.
        champions: Whom each generation replaced, by its name.
    """
    steps: list[Step] = []
    first: str | None = None
    for generation, record in generations:
        report = record.statement.report
        own, champion = report.dsm_loss, report.champion
        replaced = champions.get(generation.name)
        frozen = next((e.loss for e in report.earlier if e.name == first), None)
        if replaced == first and champion is not None:
            frozen = champion
        steps.append(
            Step(
                generation=generation.name,
                promoted_at=generation.promoted_at,
                fossils=generation.fossils,
                loss=own.mean if own else None,
                over_champion=paired(replaced or "the champion", champion, own),
                over_frozen=paired(first or "", frozen, own) if first else None,
                over_scratch=paired("the same from nothing", report.scratch, own),
                scratch_over_frozen=paired(first or "", frozen, report.scratch) if first else None,
            )
        )
        first = first or generation.name
    return tuple(steps)


def paired(over: str, other: Loss | None, own: Loss | None) -> Gain | None:
    """How much lower `own` is, family by family; None where the two share no families."""
    if other is None or own is None:
        return None
    shared = sorted(set(other.by_family) & set(own.by_family))
    if not shared:
        return None
    gains = [other.by_family[family] - own.by_family[family] for family in shared]
    mean, half = fmean(gains), 0.0
    if len(gains) > 1:
        half = quantile(0.975, len(gains) - 1) * stdev(gains) / math.sqrt(len(gains))
    return Gain(over, mean, mean - half, mean + half, len(gains))


def improvement_text(steps: Sequence[Step], standing: str) -> str:
    """A section of the notes about the model that stands; "" before there is a second one."""
    if len(steps) < 2:
        return ""
    rows = [
        f"| {step.generation} | {step.promoted_at[:10]} | {step.fossils:,} | "
        f"{_cell(step.over_champion)} | {_cell(step.over_frozen)} | {_cell(step.over_scratch)} |"
        for step in steps
    ]
    return (
        "## Has the model improved?\n\n"
        f"{_answer(steps, standing)} Gains are differences of held-out loss, family by family, on "
        "the noise and the fossils that no generation was trained on, with 95 % intervals; above 0 "
        "is better. Frozen is "
        f"{steps[0].generation}, as if it had never been trained again. From nothing is the same "
        "plan and the training budget of that one run without a parent, where that was run; going "
        "on has had the budgets of the runs before as well.\n\n"
        "| generation | promoted | fossils | gain over the one before | over frozen | "
        "over from nothing |\n| --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n![gain by generation](plots/improvement.svg)"
    )


def _answer(steps: Sequence[Step], standing: str) -> str:
    """The section's first sentence."""
    first = steps[0]
    if standing == first.generation:
        return f"No: {standing}, the first, stands again; what came after it was rolled back."
    last = next((step for step in steps if step.generation == standing), steps[-1])
    gain = last.over_frozen
    if gain is None:
        return f"{last.generation} was not measured beside {first.generation}."
    if gain.low > 0:
        said = f"Yes: {last.generation} is better than {first.generation} by {gain.text()}"
    else:
        said = f"Not shown: {last.generation} against {first.generation} is {gain.text()}"
    scratch = last.over_scratch
    if scratch is None:
        return f"{said}."
    side = "better" if scratch.mean > 0 else "worse"
    return f"{said}, and {side} than from nothing within the same budget by {scratch.text()}."


def _cell(gain: Gain | None) -> str:
    return gain.text() if gain else "-"
