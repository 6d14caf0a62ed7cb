"""A paired, blocked, group-sequential test: is the gain above 0, or not worth having? Pure.

The gains of held-out families (opponent's loss - candidate's) are looked at one family after
another. After each, the log-likelihood ratio of "the mean gain is `high_sigma`" against "it is
`low_sigma`" is compared with Wald's two bounds (1945): above the upper one the candidate is better,
below the lower one it is not; in between the next family is looked at. The variance is that of the
family means so far, as Stockfish's fishtest does for pairs of games (generalised SPRT, Kulldorff et
al. 2011): fossils of one family resemble each other, and a test over single fossils promoted models
that were no better in 20 to 30 % of simulated cases (rho = 0.3, benchmarks/bench_gate.py).

Measured there, blocks of ten fossils with rho = 0.3, 4,000 trials each: see
benchmarks/results/gate.json.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# numpy is imported by the test itself, so that a conductor that only knows of the gate is smaller.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Shapes: T trials, N blocks in the order in which they are looked at.

BETTER, NO_BETTER, UNDECIDED = "better", "no better", "undecided"

# JSON has no infinity; beyond this a log-likelihood ratio says nothing more.
_LLR_MAX = 999.0


@dataclass(frozen=True)
class SequentialLimits:
    """What the test distinguishes, and how surely.

    Attributes:
        alpha: Chance of calling better what has a gain of `low_sigma`.
        beta: Chance of calling no better what has a gain of `high_sigma`.
        low_sigma, high_sigma: Gains, in standard deviations of a single fossil's paired gain.
        blocks_min: The first look; a variance of fewer blocks is no variance.
        blocks_max: Where it stops undecided, which does not promote.
    """

    alpha: float = 0.05
    beta: float = 0.05
    low_sigma: float = 0.0
    high_sigma: float = 0.1
    blocks_min: int = 20
    blocks_max: int = 440

    @property
    def llr_high(self) -> float:
        """Upper bound: at or above it the candidate is better."""
        return math.log((1 - self.beta) / self.alpha)

    @property
    def llr_low(self) -> float:
        """Lower bound: at or below it the candidate is no better."""
        return math.log(self.beta / (1 - self.alpha))


@dataclass(frozen=True)
class SequentialResult:
    """How the test went.

    Attributes:
        decision: `better`, `no better` or `undecided`.
        blocks: Families looked at; `blocks_there` were there.
        llr: The last log-likelihood ratio; `path` holds them all, 0 before the first look.
        sigma: The unit of gains; `sigma_of` says whether of `fossils` or of `families`.
        needed_about: Families that a true gain of `high_sigma` takes, about.
        visible_sigma: The gain that the families there could show.
    """

    limits: SequentialLimits
    decision: str
    blocks: int
    blocks_there: int
    llr: float
    path: tuple[float, ...]
    sigma: float
    sigma_of: str
    needed_about: int
    visible_sigma: float

    def sentence(self, opponent: str) -> str:
        """The result in words."""
        limits = self.limits
        ratio = f"log-likelihood ratio {self.llr:.3g} after {self.blocks} families"
        if self.decision == BETTER:
            return f"better than the {opponent} on the sealed pool: {ratio}, {self._bound()}"
        if self.decision == NO_BETTER:
            return (
                f"not better than the {opponent} on the sealed pool by {limits.high_sigma:g} "
                f"sigma: {ratio}, {limits.llr_low:.3g} ends it"
            )
        if self.blocks >= limits.blocks_max:
            return (
                f"not shown to be better than the {opponent}: undecided after the most families "
                f"that are looked at, {ratio}, {self._bound()}"
            )
        return (
            f"not shown to be better than the {opponent}: {self.blocks_there} held-out families "
            f"are all there are, and they do not decide it ({ratio}, {self._bound()}). So few can "
            f"only show a gain of about {self.visible_sigma:.2g} sigma; one of "
            f"{limits.high_sigma:g} sigma takes about {self.needed_about:,} families{self._cap()} "
            f"(sigma: how much the gains of {self.sigma_of} vary)"
        )

    def _cap(self) -> str:
        most = self.limits.blocks_max
        return f", of which at most {most} are looked at" if self.needed_about > most else ""

    def _bound(self) -> str:
        return f"{self.limits.llr_high:.3g} promotes"

    def to_json(self) -> dict[str, Any]:
        """Every number of the test."""
        limits = self.limits
        return {
            "test": "paired group-sequential test of family means (GSPRT)",
            "alpha": limits.alpha,
            "beta": limits.beta,
            "bounds_sigma": [limits.low_sigma, limits.high_sigma],
            "blocks_min": limits.blocks_min,
            "blocks_max": limits.blocks_max,
            "llr_low": limits.llr_low,
            "llr_high": limits.llr_high,
            "decision": self.decision,
            "blocks": self.blocks,
            "blocks_there": self.blocks_there,
            "llr": self.llr,
            "path": list(self.path),
            "sigma": self.sigma,
            "sigma_of": self.sigma_of,
            "needed_about": self.needed_about,
            "visible_sigma": self.visible_sigma,
        }


def llr_paths(gains_TN: "Floats", sigma_T: "Floats", limits: SequentialLimits) -> "Floats":
    """Log-likelihood ratios after each block, (T, N); 0 before `blocks_min`.

    Args:
        gains_TN: Mean gain of each block, in the order in which they are looked at.
        sigma_T: Standard deviation of a single fossil's gain.
        limits: Which two gains are told apart.
    """
    import numpy as np

    n_N = np.arange(1, gains_TN.shape[1] + 1)
    mean_TN = gains_TN.cumsum(axis=1) / n_N
    squares_TN = np.square(gains_TN).cumsum(axis=1) - n_N * np.square(mean_TN)
    variance_TN = np.maximum(squares_TN, 0.0) / np.maximum(n_N - 1, 1)
    low_T1, high_T1 = (s * sigma_T[:, None] for s in (limits.low_sigma, limits.high_sigma))
    # log N(mean | high, v/n) - log N(mean | low, v/n), with the variance v estimated.
    top_TN = n_N * (high_T1 - low_T1) * (2 * mean_TN - low_T1 - high_T1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        llr_TN: Floats = np.nan_to_num(top_TN / variance_TN, nan=0.0, posinf=1e9, neginf=-1e9)
    llr_TN[:, : limits.blocks_min - 1] = 0.0
    return np.clip(llr_TN, -_LLR_MAX, _LLR_MAX)


def stops(llr_TN: "Floats", limits: SequentialLimits) -> "tuple[NDArray[np.int64], Floats]":
    """(blocks looked at, last ratio) of each trial, (T,) both."""
    import numpy as np

    llr_TN = llr_TN[:, : limits.blocks_max]
    crossed_TN = (llr_TN >= limits.llr_high) | (llr_TN <= limits.llr_low)
    last = llr_TN.shape[1] - 1
    at_T = np.where(crossed_TN.any(axis=1), crossed_TN.argmax(axis=1), last)
    return at_T + 1, llr_TN[np.arange(len(llr_TN)), at_T]


def sequential_test(
    gains: Sequence[float], *, fossil_sigma: float | None, limits: SequentialLimits
) -> SequentialResult:
    """Test one candidate.

    Args:
        gains: By family, in an order that nobody could choose.
        fossil_sigma: Standard deviation of a single fossil's gain where it was measured. Without
            it, that of the family means stands in: smaller, so that more families are asked for.
        limits: What the test distinguishes.
    """
    import numpy as np

    gains_1N = np.array([gains], dtype=np.float64)
    block_sigma = float(gains_1N.std(ddof=1)) if len(gains) > 1 else 0.0
    sigma = fossil_sigma or block_sigma
    llr_1N = llr_paths(gains_1N, np.array([sigma or 1.0]), limits)
    blocks_1, llr_1 = stops(llr_1N, limits)
    blocks, llr = int(blocks_1[0]), float(llr_1[0])
    if llr >= limits.llr_high:
        decision = BETTER
    else:
        decision = NO_BETTER if llr <= limits.llr_low else UNDECIDED
    step = (limits.high_sigma - limits.low_sigma) * (sigma or 1.0)
    # Wald's mean sample number where the gain is the upper one, and the gain that reaches the
    # upper bound with the last family that is there.
    reach = (1 - limits.beta) * limits.llr_high + limits.beta * limits.llr_low
    needed = 2 * reach * block_sigma**2 / step**2
    looked_at = min(len(gains), limits.blocks_max)
    visible = limits.llr_high * block_sigma**2 / (max(1, looked_at) * step) + step / 2
    return SequentialResult(
        limits=limits,
        decision=decision,
        blocks=blocks,
        blocks_there=len(gains),
        llr=round(llr, 4),
        path=tuple(round(value, 3) for value in llr_1N[0, :blocks].tolist()),
        sigma=sigma,
        sigma_of="fossils" if fossil_sigma else "families",
        needed_about=math.ceil(needed),
        visible_sigma=visible / (sigma or 1.0),
    )
