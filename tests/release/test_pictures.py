"""Pictures are whole SVG files that say their numbers, whatever the numbers are."""

import xml.etree.ElementTree as ET
from pathlib import Path

from scf.release.pictures import gate_picture, loss_picture
from support.foundries import small_foundry
from support.runs import fill_vault, measured_run


def words(svg: bytes) -> str:
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return " ".join(text for text in root.itertext() if text.strip())


def test_a_comparison_is_drawn_with_its_numbers() -> None:
    comparison = {
        "opponent": "baseline", "alpha": 0.05, "families": 24, "gain": 0.21, "lower_bound": 0.18,
        "margin": 0.018,
    }  # fmt: skip
    gate = {"promote": True, "reasons": ["lower <than> & so"], "trace": {"comparison": comparison}}

    shown = words(gate_picture("ebdm_gen0001", gate))

    assert "gain over the baseline: 0.21, 95 % sure above 0.18 (24 families)" in shown
    assert "lower <than> & so" in shown
    assert "ebdm_gen0001: promoted" in shown


def test_a_path_is_drawn_between_its_bounds() -> None:
    test = {
        "path": [0.1, -0.3, 0.9, 3.1], "llr_low": -2.94, "llr_high": 2.94, "blocks_min": 20,
        "bounds_sigma": [0.0, 0.1], "alpha": 0.05, "beta": 0.05, "decision": "better",
    }  # fmt: skip
    gate = {"promote": False, "reasons": [], "trace": {"superiority": test}}

    svg = gate_picture("run-1", gate)

    assert b"<polyline" in svg
    assert "log-likelihood ratio 3.1 after 4 families" in words(svg)
    assert gate_picture("run-1", gate) == svg


def test_a_gate_without_a_comparison_says_so() -> None:
    gate = {"promote": False, "reasons": ["not finite"], "trace": {}}

    assert "no comparison that could be made" in words(gate_picture("run-1", gate))


def test_losses_stand_side_by_side(tmp_path: Path) -> None:
    place = small_foundry(tmp_path)
    fill_vault(place)
    statement = measured_run(place, champion_gain=0.2).statement

    shown = words(loss_picture("ebdm_gen0002", statement))

    for who in ("this model", "independent Gaussians", "champion before it"):
        assert who in shown
    assert f"{statement.report.dsm_loss.mean:.4g}" in shown
