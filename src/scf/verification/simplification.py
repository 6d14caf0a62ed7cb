"""As good as the champion, and it costs less: the second way to replace it. Pure.

Cost is measured joules a fossil, or parameters; one must be lower and none higher. As good means
that a loss of `MARGIN_SIGMA` is improbable at `SIMPLER_ALPHA`: stricter than for a gain, since
nobody loses anything by waiting for a better proof.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scf.verification.report import Cost
from scf.verification.student_t import quantile

# What a simpler model may lose: in standard deviations of a single fossil's gain.
MARGIN_SIGMA = 0.05
SIMPLER_ALPHA = 0.01

# Measured costs differ by chance; at or below this share of the champion's a model is cheaper.
CHEAPER_SHARE = 0.95


@dataclass(frozen=True)
class Simplification:
    """What the rule says, with its numbers.

    Attributes:
        cheaper, dearer: What costs less, and what costs more, in words.
        lower_bound: Of the gain, at confidence 1 - alpha; None for too few families.
        margin: What may be lost.
    """

    cheaper: tuple[str, ...]
    dearer: tuple[str, ...]
    lower_bound: float | None
    margin: float

    @property
    def is_passed(self) -> bool:
        """Whether the candidate may replace the champion for being simpler."""
        is_as_good = self.lower_bound is not None and self.lower_bound > -self.margin
        return bool(self.cheaper) and not self.dearer and is_as_good

    def sentence(self) -> str:
        """The result in words."""
        sure = f"{100 * (1 - SIMPLER_ALPHA):g} % sure"
        if self.is_passed:
            return (
                f"as good as the champion and simpler ({', '.join(self.cheaper)}): {sure} that no "
                f"more than {MARGIN_SIGMA:g} sigma is lost"
            )
        if not self.cheaper:
            return "no lower cost was measured"
        if self.dearer:
            return f"cheaper in one way ({', '.join(self.cheaper)}), not in {self.dearer[0]}"
        bound = "nothing" if self.lower_bound is None else f"a gain above {self.lower_bound:.3g}"
        return (
            f"simpler ({', '.join(self.cheaper)}), but not shown to be as good: {sure} of {bound}, "
            f"at most {self.margin:.3g} may be lost"
        )

    def to_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "is_passed": self.is_passed,
            "cheaper": list(self.cheaper),
            "dearer": list(self.dearer),
            "alpha": SIMPLER_ALPHA,
            "margin": self.margin,
            "lower_bound": self.lower_bound,
            "detail": self.sentence(),
        }


def judge_simpler(
    gains: Sequence[float], cost: Cost, champion_cost: Cost, *, sigma: float, families_min: int
) -> Simplification:
    """Apply the rule.

    Args:
        gains: By family: how much lower the candidate's loss is.
        cost: The candidate's.
        champion_cost: The champion's; what is not known of both is not compared.
        sigma: Standard deviation of a single fossil's gain.
        families_min: With fewer, nothing is as good.
    """
    pairs = [
        ("J a fossil", cost.energy_j_per_fossil, champion_cost.energy_j_per_fossil),
        ("parameters", cost.num_parameters, champion_cost.num_parameters),
    ]
    known = [(what, own, other) for what, own, other in pairs if own is not None and other]
    told = {what: f"{own:,.6g} {what} for {other:,.6g}" for what, own, other in known}
    bound = None
    if len(gains) >= max(2, families_min):
        error = stdev(gains) / math.sqrt(len(gains))
        bound = fmean(gains) - quantile(1 - SIMPLER_ALPHA, len(gains) - 1) * error
    return Simplification(
        cheaper=tuple(told[w] for w, own, other in known if own <= CHEAPER_SHARE * other),
        dearer=tuple(told[w] for w, own, other in known if own > other),
        lower_bound=bound,
        margin=MARGIN_SIGMA * sigma,
    )
