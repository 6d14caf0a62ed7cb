"""The gate promotes what is better beyond chance, and nothing else."""

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
from scipy import stats

from scf.verification.gate import GateDecision, Looks, decide, paired_gain
from scf.verification.report import parse_report
from support.reports import DIGEST, PLAN_ID, report_json


@dataclass(frozen=True)
class Limits:
    alpha: float = 0.05
    min_families: int = 20


def judge(report: dict[str, Any], *, has_champion: bool = False, **settings: Any) -> GateDecision:
    return decide(
        parse_report(report),
        settings=Limits(**settings),
        checkpoint_digest=DIGEST,
        plan_id=PLAN_ID,
        has_champion=has_champion,
    )


def test_a_first_generation_that_beats_the_baseline_is_promoted() -> None:
    """Clearly lower held-out loss than a Gaussian, no veto: promoted, with the reason in words."""
    decision = judge(report_json(gain=0.2))

    assert decision.promote
    assert "lower than that of the baseline" in decision.reasons[0]
    assert decision.trace["comparison"]["families"] == 24
    assert decision.trace["comparison"]["lower_bound"] > 0.1


def test_the_numbers_are_those_of_the_paired_t_test() -> None:
    """scipy's paired t test gives the same t, p and confidence bound."""
    report = report_json(gain=0.03, spread=0.1)
    candidate = report["dsm_loss"]["by_family"]
    baseline = report["baseline_dsm_loss"]["by_family"]
    expected = stats.ttest_rel(
        [baseline[f] for f in candidate], list(candidate.values()), alternative="greater"
    )

    comparison = judge(report).trace["comparison"]

    assert comparison["t"] == pytest.approx(expected.statistic, rel=1e-9)
    assert comparison["p_value"] == pytest.approx(expected.pvalue, rel=1e-9)
    bound = expected.confidence_interval(0.95).low
    assert comparison["lower_bound"] == pytest.approx(bound, rel=1e-9)
    assert comparison["is_better"] == (expected.pvalue < 0.05)


@pytest.mark.parametrize("gain", [-0.03, -0.2])
def test_a_first_generation_worse_than_the_baseline_is_not_promoted(gain: float) -> None:
    """Worse by more than the margin: rejected."""
    decision = judge(report_json(gain=gain))

    assert not decision.promote
    assert "not shown to be lower" in decision.reasons[0]


def test_a_first_generation_as_good_as_a_gaussian_is_promoted_and_it_is_said() -> None:
    """Where records are Gaussian nothing beats a Gaussian: equal within 2 % passes, in words."""
    decision = judge(report_json(gain=0.0))

    assert decision.promote
    assert "within the margin" in decision.reasons[0]
    assert not decision.trace["comparison"]["is_better"]


def test_a_tie_is_no_gain() -> None:
    """The champion's own losses do not beat the champion."""
    report = report_json(champion_gain=0.1)
    report["champion_dsm_loss"]["by_family"] = dict(report["dsm_loss"]["by_family"])

    assert not judge(report, has_champion=True).promote


def test_a_later_generation_is_held_against_the_champion() -> None:
    """Better than the champion is promoted; better than the baseline alone is not."""
    assert judge(report_json(champion_gain=0.1), has_champion=True).promote
    decision = judge(report_json(gain=0.5, champion_gain=0.0), has_champion=True)
    assert not decision.promote
    assert "not shown to be better than the champion" in decision.reasons[0]


def test_too_few_families_decide_nothing_against_a_champion() -> None:
    """Below `min_families` no gain is large enough."""
    decision = judge(report_json(families=19, champion_gain=0.5), has_champion=True)

    assert not decision.promote
    assert decision.reasons == (
        "19 held-out families are too few to compare with the champion; 20 are needed",
    )


@pytest.mark.parametrize("families", [0, 1])
def test_a_first_generation_needs_two_families(families: int) -> None:
    """One family has no variance: it decides nothing."""
    assert not judge(report_json(families=families, gain=5.0)).promote
    assert judge(report_json(families=2, gain=5.0)).promote


def test_a_report_without_the_champion_does_not_pass_as_a_first_generation() -> None:
    """A missing comparison is a reason against promotion, never a way round it."""
    decision = judge(report_json(gain=0.5), has_champion=True)

    assert not decision.promote
    assert "does not compare with the champion" in decision.reasons[0]


def test_families_must_be_the_same_on_both_sides() -> None:
    """A champion measured on other families proves nothing."""
    report = report_json(champion_gain=0.1)
    families = report["champion_dsm_loss"]["by_family"]
    families["elsewhere"] = families.pop(next(iter(families)))

    decision = judge(report, has_champion=True)

    assert not decision.promote
    assert "same families" in decision.reasons[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finite": False}, "not all finite"),
        ({"checkpoint_digest": "e" * 64}, "the report is about checkpoint eeee"),
        ({"plan_id": "e" * 64}, "the report is about plan eeee"),
        ({"auroc": {"shuffled": 0.1}}, "AUROC 0.100"),
        (
            {
                "physics": {
                    "dew_point": {
                        "real": 0.0, "sampled": 7.0, "unit": "degC", "tolerance": 1.0, "ok": False,
                    }
                }
            },
            "samples break dew_point: residual 7 degC",
        ),
        (
            {
                "physics": {
                    "closure": {
                        "real": 0.7, "sampled": 34.0, "unit": "W/m2", "tolerance": 15.0, "ok": True,
                    }
                }
            },
            "samples break closure: residual 34 W/m2 (tolerance 15)",
        ),
    ],
)  # fmt: skip
def test_each_veto_ends_it(change: dict[str, Any], reason: str) -> None:
    """However good the loss, one veto is enough, and it is named."""
    decision = judge(report_json(gain=0.5) | change)

    assert not decision.promote
    assert len(decision.reasons) == 1
    assert reason in decision.reasons[0]


def test_chance_level_auroc_is_no_veto() -> None:
    """Where a corruption changes nothing (exchangeable channels), 0.5 is the honest answer."""
    assert judge(report_json() | {"auroc": {"shuffled": 0.47}}).promote


def test_a_baseline_of_one_number_can_be_tested_against() -> None:
    """Without a baseline by family, each family is held against the overall baseline."""
    report = report_json(gain=0.3)
    report["baseline_dsm_loss"] = 0.9

    assert judge(report).promote


def test_equal_gains_in_every_family_are_a_gain() -> None:
    """No spread at all: any positive gain is certain, none is not."""
    candidate = {str(i): 1.0 for i in range(20)}
    better = paired_gain(candidate, 1.5, alpha=0.05, families_needed=20, name="champion")
    equal = paired_gain(candidate, 1.0, alpha=0.05, families_needed=20, name="champion")

    assert better.is_better
    assert better.p_value == 0.0
    assert not equal.is_better
    assert equal.p_value == 1.0


def test_false_promotions_stay_at_alpha_and_real_gains_pass() -> None:
    """With no true gain about 5 % of candidates pass, at 20 families; with 0.8 sd more than 90 %."""
    generator = random.Random(7)
    passed = {0.0: 0, 0.8: 0}
    trials = 1500
    for gain in passed:
        for _ in range(trials):
            losses = {str(i): generator.gauss(-gain, 1.0) for i in range(20)}
            passed[gain] += paired_gain(
                losses, 0.0, alpha=0.05, families_needed=20, name="champion"
            ).is_better

    # 1,500 trials at 5 %: standard error 0.6 %.
    assert passed[0.0] / trials == pytest.approx(0.05, abs=0.018)
    assert passed[0.8] / trials > 0.9
    assert math.isfinite(passed[0.8])


def test_the_decision_is_json() -> None:
    """It is kept in the statement, so it must be plain JSON."""
    from scf.core.canonical import canonical_json

    decision = judge(report_json())
    assert b'"promote":true' in canonical_json(decision.to_json())


# -- later generations -------------------------------------------------------------------------------


def later(families: int = 60, **settings: Any) -> dict[str, Any]:
    """A report on stations with weeks, whose candidate is clearly better than the champion."""
    report = report_json(families=families, champion_gain=0.1, **settings)
    for key in ("dsm_loss", "champion_dsm_loss", "baseline_dsm_loss"):
        losses = report[key]["by_family"].items()
        report[key]["by_family"] = {
            f"tmy3-{i % 3}/week-{i:02d}": loss for i, (_, loss) in enumerate(losses)
        }
    return report


def test_the_trace_holds_the_path_of_the_test() -> None:
    decision = judge(later(), has_champion=True)

    test = decision.trace["superiority"]
    assert decision.promote
    assert test["decision"] == "better"
    assert test["path"][-1] >= test["llr_high"]
    assert len(test["path"]) == test["blocks"] >= 20
    assert [harm["name"] for harm in decision.trace["slices"]] == ["tmy3-0", "tmy3-1", "tmy3-2"]
    assert decision.trace["promote"] is True


def test_a_gain_that_so_few_families_cannot_show_is_not_promoted_and_it_says_why() -> None:
    decision = judge(report_json(champion_gain=0.02), has_champion=True)

    assert not decision.promote
    assert "24 held-out families are all there are" in decision.reasons[0]


def test_a_slice_that_loses_stops_what_is_better_on_the_whole() -> None:
    report = later(families=300)
    for family, loss in report["champion_dsm_loss"]["by_family"].items():
        if family.startswith("tmy3-1/"):
            report["dsm_loss"]["by_family"][family] = loss + 0.02

    decision = judge(report, has_champion=True)

    assert not decision.promote
    assert "worse on tmy3-1" in decision.reasons[0]


def test_a_champion_of_a_month_ago_is_not_fallen_behind() -> None:
    report = later()
    own = report["dsm_loss"]["by_family"]
    better = {family: loss - 0.05 for family, loss in own.items()}
    report["earlier_champions"] = [
        {
            "generation": "ebdm_gen0003",
            "weeks_ago": 4,
            "dsm_loss": {"mean": 0.5, "by_family": better},
        }
    ]

    decision = judge(report, has_champion=True)

    assert not decision.promote
    assert "worse against ebdm_gen0003 of 4 weeks ago" in decision.reasons[0]


def test_the_anchor_set_is_held_to_the_same() -> None:
    report = later()
    own = {f"anchor-{i}": 0.5 + 0.01 * (i % 3) for i in range(30)}
    report["anchor"] = {
        "dsm_loss": {"mean": 0.5, "by_family": own},
        "champion_dsm_loss": {"mean": 0.4, "by_family": {f: v - 0.1 for f, v in own.items()}},
    }

    assert "on the anchor set" in judge(report, has_champion=True).reasons[0]


def test_a_simpler_model_as_good_may_pass() -> None:
    """No better, but half the joules and as good beyond doubt: promoted, and said."""
    report = later(families=400)
    own = report["dsm_loss"]["by_family"]
    noise = random.Random(3)
    champion = {family: loss + noise.gauss(0.0002, 0.0001) for family, loss in own.items()}
    report["champion_dsm_loss"] = {"mean": 0.6, "by_family": champion, "paired_sigma": 0.1}
    assert not judge(report, has_champion=True).promote

    report |= {
        "cost": {"num_parameters": 1000, "energy_j_per_fossil": 0.5},
        "champion_cost": {"num_parameters": 1000, "energy_j_per_fossil": 1.0},
    }
    decision = judge(report, has_champion=True)

    assert decision.promote
    assert "as good as the champion and simpler (0.5 J a fossil for 1)" in decision.reasons[0]
    report["cost"]["num_parameters"] = 2000
    assert not judge(report, has_champion=True).promote


def test_simpler_and_worse_does_not_pass() -> None:
    report = later(families=400)
    own = report["dsm_loss"]["by_family"]
    noise = random.Random(3)
    champion = {family: loss - noise.gauss(0.02, 0.05) for family, loss in own.items()}
    report["champion_dsm_loss"] = {"mean": 0.6, "by_family": champion, "paired_sigma": 0.1}
    report |= {"cost": {"num_parameters": 10}, "champion_cost": {"num_parameters": 1000}}

    decision = judge(report, has_champion=True)

    assert not decision.promote
    assert any("not shown to be as good" in reason for reason in decision.reasons)


def test_a_spent_budget_of_looks_ends_it() -> None:
    report = parse_report(later())

    def with_looks(used: int) -> GateDecision:
        return decide(
            report, settings=Limits(), checkpoint_digest=DIGEST, plan_id=PLAN_ID,
            has_champion=True, looks=Looks(used, 20, 28),
        )  # fmt: skip

    assert with_looks(19).promote
    assert with_looks(19).trace["looks"] == {"used": 19, "budget": 20, "days": 28}
    assert not with_looks(20).promote
    assert "looked at 20 times in 28 days" in with_looks(20).reasons[0]


def test_near_duplicates_are_refused_unless_they_were_left_out() -> None:
    """The trace says what was found either way."""

    def with_near(found: int, **other: object) -> GateDecision:
        near = {"found": found, **other}
        return judge(later() | {"near_duplicates": near}, has_champion=True)

    assert with_near(0).promote
    assert "2 held-out fossils lie within 1e-3" in with_near(2, left_out=False).reasons[0]
    left_out = with_near(2, left_out=True, is_complete=False)
    assert left_out.promote
    (veto,) = [v for v in left_out.trace["vetoes"] if v["name"] == "sealed_pool.near_duplicates"]
    assert "not all of them were compared" in veto["detail"]
    assert "left out of the pool" in veto["detail"]


def test_the_order_of_families_in_the_report_changes_nothing() -> None:
    report = later()
    shuffled = list(report["dsm_loss"]["by_family"].items())
    random.Random(1).shuffle(shuffled)
    other = report | {"dsm_loss": report["dsm_loss"] | {"by_family": dict(shuffled)}}

    assert judge(report, has_champion=True) == judge(other, has_champion=True)


def test_the_whole_trace_of_400_families_fits_into_an_audit_entry() -> None:
    """Entries hold 65,535 bytes; the conductor logs the decision."""
    from scf.core.canonical import canonical_json

    report = later(families=400)
    decision = judge(report, has_champion=True)
    decision.trace["superiority"]["path"] = [-0.123] * 400  # the longest there is

    assert len(canonical_json(decision.to_json())) < 20_000
