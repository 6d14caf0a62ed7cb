"""The card tells a stranger what the model is, with the numbers that were measured."""

from pathlib import Path

import pytest

from scf.proofs.verify_proof import verify_record
from scf.zoo.model_card import model_card
from support.foundries import small_foundry
from support.runs import attested, fill_vault, measured_run


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = small_foundry(tmp_path_factory.mktemp("foundry"))
    fill_vault(place)
    run = measured_run(place)
    record = verify_record(attested(place, run), [place.keys["foundry"]])
    return model_card("ebdm_gen0001", record, run.facts, promoted_at="2026-11-18T12:00:00Z")


def test_it_names_what_was_measured(card: str) -> None:
    assert "# ebdm_gen0001" in card
    assert "made from 40 physics records" in card
    assert "168 held-out fossils from 24 families" in card
    assert "| independent Gaussians (the baseline) | 0.9 |" in card
    assert "| closure | 0.970 |" in card
    assert "| closure | 0.8 W/m2 | 2.1 W/m2 | 9 W/m2 | yes |" in card
    assert "![energies](plots/energies.png)" in card
    assert "The gate: held-out loss is lower than that of the baseline" in card
    assert "| ghi | W/m2 | 24 | modelled |" in card


def test_its_head_is_read_by_machines(card: str, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    head = yaml.safe_load(card.split("---")[1])

    assert head["library_name"] == "scf"
    (model,) = head["model-index"]
    assert model["name"] == "ebdm_gen0001"
    metrics = {m["type"]: m["value"] for m in model["results"][0]["metrics"]}
    assert metrics["auroc_closure"] == 0.97


def test_it_is_plain_text_without_gaps(card: str) -> None:
    assert "None" not in card
    assert " nan" not in card
    assert card.endswith("\n")
    assert "\n\n\n" not in card
