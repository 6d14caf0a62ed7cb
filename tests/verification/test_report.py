"""A report is believed about nothing, its form included."""

from pathlib import Path
from typing import Any

import pytest

from scf.verification.report import ReportInvalid, parse_report, read_report
from support.reports import report_json


def test_a_whole_report_is_read() -> None:
    """Every number that the gate needs arrives."""
    report = parse_report(report_json(champion_gain=0.1))

    assert report.finite
    assert report.families == len(report.dsm_loss.by_family) == 24
    assert report.physics["closure"].unit == "W/m2"
    assert report.auroc["closure"] == 0.97
    assert report.champion is not None
    assert report.files == ("energies.png",)


def test_a_baseline_may_be_one_number() -> None:
    """A baseline that was only measured overall is a loss without families."""
    value = report_json()
    value["baseline_dsm_loss"] = 0.9

    assert parse_report(value).baseline.mean == 0.9
    assert parse_report(value).baseline.by_family == {}


def test_a_diverged_model_has_no_loss() -> None:
    """A report may say that the model was not finite, and then need not have a loss."""
    value = report_json() | {"finite": False, "dsm_loss": None, "auroc": {"closure": None}}

    assert parse_report(value).dsm_loss is None
    assert parse_report(value).auroc == {}


def _set(path: str, value: Any) -> dict[str, Any]:
    report: dict[str, Any] = report_json()
    *above, last = path.split(".")
    target = report
    for name in above:
        target = target[name]
    target[last] = value
    return report


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "scf.report/2", "schema is 'scf.report/2'"),
        ("checkpoint_digest", "C" * 64, "checkpoint_digest"),
        ("plan_id", None, "plan_id"),
        ("finite", 1, "finite is 1, expected true or false"),
        ("dsm_loss", None, "dsm_loss is absent"),
        ("dsm_loss.mean", "0.5", "dsm_loss.mean is '0.5', expected a finite number"),
        ("dsm_loss.mean", float("nan"), "expected a finite number"),
        ("dsm_loss.ci95", [0.1], "expected \\[low, high\\]"),
        ("dsm_loss.by_family", {"a": 1.0}, "names 1 families, held_out.families says 24"),
        ("baseline_dsm_loss", True, "expected a finite number"),
        ("held_out.fossils", -1, "expected a count"),
        ("auroc.closure", 1.5, "expected a chance between 0 and 1"),
        ("physics.closure.ok", "yes", "physics.closure.ok"),
        ("physics.closure.unit", None, "physics.closure.unit"),
        ("files", ["../../etc/passwd"], "not a plain file name"),
        ("files", "energies.png", "expected a list"),
    ],
)
def test_each_fault_is_named(path: str, value: Any, message: str) -> None:
    """The message names the key and what stood there."""
    with pytest.raises(ReportInvalid, match=message):
        parse_report(_set(path, value))


@pytest.mark.parametrize("value", [None, [], "report", 3])
def test_other_json_is_no_report(value: Any) -> None:
    """Only an object can be one."""
    with pytest.raises(ReportInvalid, match="expected a JSON object"):
        parse_report(value)


def test_a_file_is_named_with_its_fault(tmp_path: Path) -> None:
    """The path leads the message."""
    path = tmp_path / "report.json"
    path.write_text('{"schema": "other"}')

    with pytest.raises(ReportInvalid, match=r"report\.json: schema is 'other'"):
        read_report(path)
