"""Decide whether a measured checkpoint is promoted. Pure: a report in, a decision out.

In this order; what stands against promotion anywhere ends it, and all of it is said:

1. Vetoes: the report is about this checkpoint and plan, everything is finite, samples keep the
   physics, the energy is not upside down, nothing sealed was trained on, the sealed pool was not
   looked at too often.
2. A first generation replaces nothing, so it must only be shown not to be worse than the Gaussian
   baseline by `FIRST_MARGIN` of its loss: where records are Gaussian, nothing beats a Gaussian, and
   the model is right all the same. (Paired one-sided t test over families at level `alpha`.)
3. A later one must be better than the champion on the sealed pool, the held-out families that no
   run has trained on: a paired, blocked, group-sequential test (`sequential.py`). Or, where that
   does not call it better, it must be as good and cost less: the simplification rule.
4. It must not be worse on any slice of the domain, on the frozen anchor set, or than the champions
   of 1, 4 and 12 weeks ago, as far as the report holds these (`harm.py`).

Fossils of one family (a station-week, a trajectory) resemble each other, so each held-out family
counts once, by its mean. Measured error rates: benchmarks/results/gate.json.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Protocol

from scf.verification.harm import Harm, find_harm, slices_of
from scf.verification.report import Loss, Report
from scf.verification.sequential import (
    BETTER,
    SequentialLimits,
    sequential_test,
)
from scf.verification.simplification import MARGIN_SIGMA, judge_simpler
from scf.verification.student_t import quantile, survival

SCHEMA = "scf.gate/2"

# The t test needs a variance, so two families; it pays for so few with a quantile of 6.3.
_FAMILIES_MIN_FIRST = 2

# What a first generation may lose to the baseline, as a share of the baseline's loss.
FIRST_MARGIN = 0.02

# An AUROC this many standard errors below 1/2 means that the energy is upside down.
_AUROC_SIGMAS = 3.0

# gain, standard_error, t, p_value and lower_bound of a comparison that could not be made.
_NOTHING = (None, None, None, None, None)


@dataclass(frozen=True)
class Looks:
    """How often the sealed pool was looked at; each look spends an alpha of false promotion.

    Attributes:
        used: Candidates judged on it before this one, in the last `days` days.
        budget: How many may be.
    """

    used: int
    budget: int
    days: int

    @property
    def is_spent(self) -> bool:
        """Whether no look is left."""
        return self.used >= self.budget

    @classmethod
    def of_trace(cls, trace: Mapping[str, Any]) -> "Looks | None":
        """What a decision was made with, so that it can be made again."""
        looks = trace.get("looks")
        return None if looks is None else cls(looks["used"], looks["budget"], looks["days"])


class GateLimits(Protocol):
    """What a candidate must show; `config.GateSettings` is one."""

    @property
    def alpha(self) -> float:
        """Chance of promoting a candidate that is no better."""

    @property
    def min_families(self) -> int:
        """Held-out families needed before a champion can be replaced."""


@dataclass(frozen=True)
class GateDecision:
    """Promote or not, why, and every number that led there.

    Attributes:
        promote: The decision.
        reasons: Sentences; each that speaks against promotion if there are any, else those for it.
        trace: A JSON object (schema scf.gate/1) with vetoes and the test, kept in the statement.
    """

    promote: bool
    reasons: tuple[str, ...]
    trace: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The decision as kept in statements and generations."""
        return {"promote": self.promote, "reasons": list(self.reasons), "trace": self.trace}


@dataclass(frozen=True)
class Comparison:
    """A paired one-sided t test over families of (opponent's loss - candidate's loss).

    Attributes:
        opponent: `baseline` or `champion`.
        gain: Mean difference; positive is better.
        lower_bound: One-sided confidence bound of the gain at level 1 - alpha.
        margin: What may be lost; 0 asks for a gain.
        p_value: Chance of such a gain, were the candidate no better.
        families_needed: Fewer families than this decide nothing.
    """

    opponent: str
    families: int
    families_needed: int
    alpha: float
    gain: float | None
    standard_error: float | None
    t: float | None
    p_value: float | None
    lower_bound: float | None
    margin: float = 0.0
    fault: str | None = None

    @property
    def is_better(self) -> bool:
        """Whether the candidate is better beyond chance."""
        return self.fault is None and self.lower_bound is not None and self.lower_bound > 0

    @property
    def is_passed(self) -> bool:
        """Whether the loss, beyond chance, is not above the opponent's by the margin or more."""
        bound = self.lower_bound
        return self.fault is None and bound is not None and bound > -self.margin

    def sentence(self) -> str:
        """The result in words."""
        if self.fault is not None:
            return self.fault
        assert self.gain is not None
        assert self.p_value is not None
        verdict = "lower than" if self.is_better else "not shown to be lower than"
        aside = ""
        if self.margin > 0 and not self.is_better:
            shown = "but is" if self.is_passed else "nor"
            aside = f" ({shown} within the margin of {self.margin:.3g} for a first generation)"
        return (
            f"held-out loss is {verdict} that of the {self.opponent}{aside}: gain {self.gain:.4g} "
            f"({100 * (1 - self.alpha):.4g} % sure it is above {self.lower_bound:.4g}; "
            f"p = {self.p_value:.2g}, {self.families} families)"
        )

    def to_json(self) -> dict[str, Any]:
        """Every number of the test."""
        return {
            "test": "paired one-sided Student t over held-out families",
            "opponent": self.opponent,
            "alpha": self.alpha,
            "families": self.families,
            "families_needed": self.families_needed,
            "gain": self.gain,
            "standard_error": self.standard_error,
            "t": self.t,
            "p_value": self.p_value,
            "lower_bound": self.lower_bound,
            "margin": self.margin,
            "is_better": self.is_better,
            "is_passed": self.is_passed,
            "fault": self.fault,
        }


def decide(
    report: Report,
    *,
    settings: GateLimits,
    checkpoint_digest: str,
    plan_id: str,
    has_champion: bool,
    looks: Looks | None = None,
) -> GateDecision:
    """Judge a candidate by its report.

    Args:
        report: What was measured (`verification.report.parse_report`).
        settings: alpha and min_families.
        checkpoint_digest: Of the checkpoint at hand; a report about another one is no evidence.
        plan_id: Of the plan that the run was given.
        has_champion: Whether a generation stands. Then the report must compare with it: one without
            the comparison never passes as a first generation.
        looks: How often the sealed pool was looked at (`zoo.looks`); None leaves it uncounted.
    """
    vetoes = _vetoes(report, checkpoint_digest=checkpoint_digest, plan_id=plan_id)
    if has_champion and looks is not None:
        vetoes.append(_look_veto(looks))
    comparison = _compare(report, settings, has_champion=has_champion)
    against = [detail for _, ok, detail in vetoes if not ok]
    trace: dict[str, Any] = {
        "schema": SCHEMA,
        "vetoes": [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in vetoes],
        "comparison": comparison.to_json(),
        "looks": looks and {"used": looks.used, "budget": looks.budget, "days": looks.days},
    }
    reasons = [comparison.sentence()]
    if not has_champion or comparison.fault is not None:
        if not comparison.is_passed:
            against.append(comparison.sentence())
    else:
        later = _judge_later(report, settings)
        against += later.against
        reasons = [*later.reasons, comparison.sentence()]
        trace |= later.trace
    promote = not against
    return GateDecision(promote, tuple(against or reasons), {**trace, "promote": promote})


@dataclass(frozen=True)
class _Later:
    """What there is to say about a candidate that can be compared with a champion."""

    against: list[str]
    reasons: list[str]
    trace: dict[str, Any]


def _judge_later(report: Report, settings: GateLimits) -> _Later:
    """Superiority or simplification, then harm. The comparison is known to be possible."""
    assert report.dsm_loss is not None
    assert report.champion is not None
    gains = _gains(report.dsm_loss, report.champion)
    limits = SequentialLimits(alpha=settings.alpha, blocks_min=settings.min_families)
    test = sequential_test(
        sealed_order(gains), fossil_sigma=report.champion.paired_sigma, limits=limits
    )
    simpler = judge_simpler(
        list(gains.values()),
        report.cost,
        report.champion_cost,
        sigma=test.sigma,
        families_min=limits.blocks_min,
    )
    against, reasons = [], []
    if test.decision == BETTER:
        reasons.append(test.sentence("champion"))
    elif simpler.is_passed:
        reasons.append(simpler.sentence())
    else:
        is_tie = not any(gains.values())
        against.append(_tie_sentence(gains) if is_tie else test.sentence("champion"))
        if simpler.cheaper:
            against.append(simpler.sentence())
    margin = MARGIN_SIGMA * test.sigma
    slices = find_harm(slices_of(gains, report.slices), margin=margin, alpha=settings.alpha)
    earlier = find_harm(_earlier_gains(report), margin=margin, alpha=settings.alpha)
    against += [_harm_sentence(harm, "on", margin) for harm in slices if harm.is_harmed]
    against += [_harm_sentence(harm, "against", margin) for harm in earlier if harm.is_harmed]
    trace = {
        "superiority": test.to_json(),
        "simplification": simpler.to_json(),
        "margin": margin,
        "slices": [harm.to_json() for harm in slices],
        "regression": [harm.to_json() for harm in earlier],
    }
    return _Later(against, reasons, trace)


def _tie_sentence(gains: Mapping[str, float]) -> str:
    return (
        f"exactly as good as the champion on each of {len(gains)} held-out families: "
        "a tie replaces nothing"
    )


def sealed_order(gains: Mapping[str, float]) -> list[float]:
    """Gains in the order of their families' digests: fixed, and chosen by nobody."""

    def key(family: str) -> str:
        return hashlib.sha256(family.encode()).hexdigest()

    return [gains[family] for family in sorted(gains, key=key)]


def _gains(candidate: Loss, opponent: Loss) -> dict[str, float]:
    """By family: how much lower the candidate's loss is, where both have one."""
    shared = set(candidate.by_family) & set(opponent.by_family)
    return {f: opponent.by_family[f] - candidate.by_family[f] for f in sorted(shared)}


def _earlier_gains(report: Report) -> dict[str, list[float]]:
    """Gains over champions of some weeks ago, and over the champion on the anchor set."""
    assert report.dsm_loss is not None
    found = {
        f"{earlier.name} of {earlier.weeks_ago} weeks ago": list(
            _gains(report.dsm_loss, earlier.loss).values()
        )
        for earlier in report.earlier
    }
    if report.anchor is not None:
        found["the champion on the anchor set"] = list(_gains(*report.anchor).values())
    return found


def _harm_sentence(harm: Harm, word: str, margin: float) -> str:
    return (
        f"worse {word} {harm.name}: gain {harm.gain:.4g}, a loss of more than the {margin:.2g} "
        f"that is allowed (p = {harm.p_worse:.2g} after Holm, {harm.families} families)"
    )


def _look_veto(looks: Looks) -> tuple[str, bool, str]:
    detail = (
        f"the sealed pool was looked at {looks.used} times in {looks.days} days, {looks.budget} "
        "are allowed ([gate] looks): time makes room for more"
    )
    return "sealed_pool.looks", not looks.is_spent, detail


def paired_gain(
    candidate: Mapping[str, float],
    opponent: Mapping[str, float] | float,
    *,
    alpha: float,
    families_needed: int,
    name: str,
    margin: float = 0.0,
) -> Comparison:
    """Test whether the candidate's losses lie below the opponent's, family by family.

    `opponent` is a loss for each family, or one number that all families are held against.
    """

    def undecided(fault: str) -> Comparison:
        return Comparison(
            name, len(candidate), families_needed, alpha, *_NOTHING, margin=margin, fault=fault
        )

    if isinstance(opponent, Mapping):
        if set(candidate) != set(opponent):
            odd = min(set(candidate) ^ set(opponent))
            return undecided(
                f"candidate and {name} were not measured on the same families (such as {odd!r})"
            )
        gains = [opponent[family] - loss for family, loss in sorted(candidate.items())]
    else:
        gains = [opponent - loss for _, loss in sorted(candidate.items())]
    if len(gains) < families_needed:
        return undecided(
            f"{len(gains)} held-out families are too few to compare with the {name}; "
            f"{families_needed} are needed"
        )
    gain = fmean(gains)
    standard_error = stdev(gains) / math.sqrt(len(gains))
    degrees = len(gains) - 1
    if standard_error > 0:
        t = gain / standard_error
        p_value = survival(t, degrees)
    else:  # every family gained exactly the same
        t = None
        p_value = 0.0 if gain > 0 else 1.0
    lower_bound = gain - quantile(1 - alpha, degrees) * standard_error
    return Comparison(
        name,
        len(gains),
        families_needed,
        alpha,
        gain,
        standard_error,
        t,
        p_value,
        lower_bound,
        margin=margin,
    )


def _compare(report: Report, settings: GateLimits, *, has_champion: bool) -> Comparison:
    name = "champion" if has_champion else "baseline"
    needed = max(_FAMILIES_MIN_FIRST, settings.min_families if has_champion else 0)
    opponent: Loss | None = report.champion if has_champion else report.baseline
    fault = None
    if report.dsm_loss is None:
        fault = "the held-out loss is not finite"
    elif opponent is None or (has_champion and not opponent.by_family):
        fault = "the report does not compare with the champion family by family"
    if fault is not None or report.dsm_loss is None or opponent is None:
        return Comparison(name, report.families, needed, settings.alpha, *_NOTHING, fault=fault)
    return paired_gain(
        report.dsm_loss.by_family,
        opponent.by_family or opponent.mean,
        alpha=settings.alpha,
        families_needed=needed,
        name=name,
        margin=0.0 if has_champion else FIRST_MARGIN * abs(opponent.mean),
    )


def _vetoes(report: Report, *, checkpoint_digest: str, plan_id: str) -> list[tuple[str, bool, str]]:
    """(name, ok, sentence) of each hard veto."""
    about, plan = report.checkpoint_digest[:16], report.plan_id[:16]
    finite = "finite" if report.finite else "not all finite"
    vetoes = [
        (
            "checkpoint",
            report.checkpoint_digest == checkpoint_digest,
            f"the report is about checkpoint {about}, the candidate is {checkpoint_digest[:16]}",
        ),
        (
            "plan",
            report.plan_id == plan_id,
            f"the report is about plan {plan}, the run was given {plan_id[:16]}",
        ),
        ("finite", report.finite, f"energies and scores on held-out fossils are {finite}"),
    ]
    if report.near_duplicates is not None:
        near = report.near_duplicates
        vetoes.append(("sealed_pool.near_duplicates", near.is_harmless, near.sentence()))
    for name, check in sorted(report.physics.items()):
        sampled = "unmeasured" if check.sampled is None else f"{check.sampled:.4g} {check.unit}"
        limit = "" if check.tolerance is None else f" (tolerance {check.tolerance:.4g})"
        verb = "keep" if check.is_kept else "break"
        vetoes.append(
            (f"physics.{name}", check.is_kept, f"samples {verb} {name}: residual {sampled}{limit}")
        )
    # Under exchangeability the standard error of an AUROC of n against n is about 1/sqrt(6 n)
    # (Mann-Whitney); n is the number of families, since fossils within one are alike.
    floor = 0.5 - _AUROC_SIGMAS / math.sqrt(6 * max(1, report.families))
    for name, auroc in sorted(report.auroc.items()):
        meaning = f"energy tells real from {name} fossils with AUROC {auroc:.3f}"
        limit = f"(below {floor:.3f} it would be upside down)" if floor > 0 else ""
        vetoes.append((f"auroc.{name}", auroc >= floor, f"{meaning} {limit}".rstrip()))
    return vetoes
