"""Is the candidate worse somewhere? One-sided tests, several at once, with Holm's correction. Pure.

A gain on the whole may hide a loss on one station, one source, or against a champion of a month
ago. For each of these comparisons: a candidate that is surely worse (one-sided t over families,
Holm 1979 over all comparisons of a kind) by more than the margin is refused.

It is refused for a loss that is shown, rather than for safety that is not: with 400 families in
five slices, a loss beyond 0.05 sigma can be ruled out on all five in only 16 % of cases where the
true gain is 0.1 sigma everywhere (benchmarks/bench_gate.py). The trace says of each comparison
whether non-inferiority was shown, or is merely not contradicted.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scf.verification.student_t import quantile, survival

# Slices of fewer families are put together: a t test of three numbers finds nothing.
SLICE_MIN = 5
OTHERS = "others"


@dataclass(frozen=True)
class Harm:
    """One comparison.

    Attributes:
        name: The slice, or the earlier champion.
        gain: Mean over families; negative is worse.
        p_worse: Chance of such a loss, were nothing lost.
        is_harmed: Surely worse, by more than the margin.
        is_non_inferior: Surely not worse by more than the margin.
    """

    name: str
    families: int
    gain: float
    p_worse: float
    lower_bound: float
    is_harmed: bool
    is_non_inferior: bool

    def to_json(self) -> dict[str, Any]:
        """Every number."""
        return {
            "name": self.name,
            "families": self.families,
            "gain": self.gain,
            "p_worse": self.p_worse,
            "lower_bound": self.lower_bound,
            "is_harmed": self.is_harmed,
            "is_non_inferior": self.is_non_inferior,
        }


def find_harm(
    gains: Mapping[str, Iterable[float]], *, margin: float, alpha: float
) -> tuple[Harm, ...]:
    """Test each group of family gains; groups of one family have no variance and are left out."""
    groups = {name: list(values) for name, values in sorted(gains.items())}
    groups = {name: values for name, values in groups.items() if len(values) > 1}
    p_values = {name: _p_worse(values) for name, values in groups.items()}
    worse = holm(p_values, alpha)
    found = []
    for name, values in groups.items():
        gain = fmean(values)
        error = stdev(values) / math.sqrt(len(values))
        bound = gain - quantile(1 - alpha, len(values) - 1) * error
        found.append(
            Harm(
                name,
                len(values),
                gain,
                p_values[name],
                bound,
                is_harmed=name in worse and gain < -margin,
                is_non_inferior=bound > -margin,
            )
        )
    return tuple(found)


def holm(p_values: Mapping[str, float], alpha: float) -> set[str]:
    """The hypotheses rejected at familywise level `alpha` (Holm 1979, step-down)."""
    rejected: set[str] = set()
    for name in sorted(p_values, key=lambda name: p_values[name]):
        if p_values[name] > alpha / (len(p_values) - len(rejected)):
            break
        rejected.add(name)
    return rejected


def slices_of(
    gains: Mapping[str, float], named: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Family gains by slice: as the report names them, else what stands before the last `/` or `#`.

    Slices of fewer than `SLICE_MIN` families become one; a single slice is no slice.
    """
    slices: dict[str, list[float]] = {}
    for family, gain in sorted(gains.items()):
        name = (named or {}).get(family) or prefix_of(family)
        slices.setdefault(name, []).append(gain)
    joined = {name: values for name, values in slices.items() if len(values) >= SLICE_MIN}
    rest = [gain for name, values in slices.items() if name not in joined for gain in values]
    if rest:
        joined[OTHERS] = joined.get(OTHERS, []) + rest
    return joined if len(joined) > 1 else {}


def prefix_of(family: str) -> str:
    """The part of a family's name that it shares with its kin, such as a station."""
    head = max(family.rpartition(mark)[0] for mark in "/#")
    return head or OTHERS


def _p_worse(values: list[float]) -> float:
    mean, error = fmean(values), stdev(values) / math.sqrt(len(values))
    if error == 0:  # each family lost, or gained, exactly the same
        return 0.0 if mean < 0 else 1.0
    return survival(-mean / error, len(values) - 1)
