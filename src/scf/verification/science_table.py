"""The table of `scf verify-science`: asked beside measured, a verdict for each, and one for all.

Verdicts of a figure:

* met: it keeps the bound that is asked for.
* short, known: it does not, and docs/science.md section 10 says so and how far. It is no worse.
* SHORT: it does not, and nothing says that it should not.

Verdicts of a check, which asks whether the code is right at all, not how good it is:

* sound, or DEFECT: the score points elsewhere than the truth's, energies are in another order, the
  sampler draws something else, or a figure is not a number.

Exit code 0 says: no SHORT and no DEFECT. Any of them gives 5.
"""

import math
from collections.abc import Mapping
from typing import Any

from scf.verification.science_cases import Case, Target

MET, KNOWN, SHORT = "met", "short, known", "SHORT"
SOUND, DEFECT = "sound", "DEFECT"

# Far from what any trained model shows, and near to it for none with a wrong sign, a wrong unit or
# a sampler that draws noise: those have a cosine and a correlation about 0 or below, and a distance
# about 1 (tests/verification/test_science_table.py).
CHECKS = (
    Target("score_cosine_min", 0.7, at_least=True),
    Target("energy_correlation_min", 0.7, at_least=True),
    Target("sampler_distance", 0.3),
)


def rows_of(case: Case, figures: Mapping[str, float]) -> list[dict[str, Any]]:
    """Figures asked for, then checks: what is asked, what was measured, the verdict."""
    rows = [_row(case, target, figures, is_check=False) for target in case.targets]
    rows += [
        _row(case, check, figures, is_check=True) for check in CHECKS if check.figure in figures
    ]
    return rows


def _row(
    case: Case, target: Target, figures: Mapping[str, float], *, is_check: bool
) -> dict[str, Any]:
    value = figures[target.figure]
    is_met = target.is_met(value)
    if is_check:
        verdict = SOUND if is_met else DEFECT
    elif is_met:
        verdict = MET
    elif not math.isfinite(value):
        verdict = DEFECT
    else:
        verdict = KNOWN if target.is_known(value) else SHORT
    return {
        "system": case.name,
        "figure": target.figure,
        "asked": f"{'>=' if target.at_least else '<='} {target.bound:g}",
        # A figure that is not a number stays none: JSON knows no NaN.
        "measured": value if math.isfinite(value) else None,
        "met": is_met,
        "verdict": verdict,
    }


def is_right(table: list[dict[str, Any]]) -> bool:
    """Whether nothing is missed beyond what is documented."""
    return not any(row["verdict"] in {SHORT, DEFECT} for row in table)


def summary_of(table: list[dict[str, Any]]) -> str:
    """One line: how many figures of each verdict."""
    counts = dict.fromkeys((MET, KNOWN, SHORT, SOUND, DEFECT), 0)
    for row in table:
        counts[row["verdict"]] += 1
    figures = sum(counts[word] for word in (MET, KNOWN, SHORT))
    return (
        f"{figures} figures: {counts[MET]} met, {counts[KNOWN]} short as docs/science.md says, "
        f"{counts[SHORT]} SHORT beyond it; {counts[SOUND] + counts[DEFECT]} checks: "
        f"{counts[SOUND]} sound, {counts[DEFECT]} DEFECT"
    )


def table_lines(report: dict[str, Any]) -> list[str]:
    """The table for people, then what each system took, then the summary."""
    table = report["table"]
    lines = [f"{'system':18} {'figure':26} {'asked':>10} {'measured':>10}  verdict"]
    for name in dict.fromkeys(row["system"] for row in table):
        lines += row_lines([row for row in table if row["system"] == name])
    lines += ["", f"{'system':18} {'records':>8} {'steps':>7} {'training':>10} {'measuring':>10}"]
    lines += [
        f"{took['system']:18} {took['records']:>8} {took['steps']:>7} "
        f"{took['cpu_seconds']:>8.1f} s {took['measuring_cpu_seconds']:>8.1f} s"
        for took in report["systems"]
    ]
    return [*lines, "", summary_of(table)]


def row_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of one system; its checks on one line while they are sound."""
    lines = [_line(row) for row in rows if row["verdict"] != SOUND]
    sound = sum(row["verdict"] == SOUND for row in rows)
    if sound:
        lines.append(f"{rows[0]['system']:18} {'checks':26} {'':>10} {sound:>10}  {SOUND}")
    return lines


def _line(row: Mapping[str, Any]) -> str:
    found = "none" if row["measured"] is None else f"{row['measured']:.5f}"
    return f"{row['system']:18} {row['figure']:26} {row['asked']:>10} {found:>10}  {row['verdict']}"
