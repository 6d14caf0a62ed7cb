"""Measuring a checkpoint: the report holds together, reads as scf.report/1, and is honest."""

import json
from pathlib import Path

import numpy as np
import pytest

from scf.core.identity import sha256_hex
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.batch_plan import make_plan, plan_fossils
from scf.fertilization.primordial_soup import PrimordialSoupIngestor
from scf.signing.keys import load_signer
from scf.storage.partitions import Drive, Folder
from scf.training.fossils import open_source
from scf.training.train_config import TrainConfig
from scf.training.train_ebdm import train
from scf.vault.journal import Vault
from scf.verification.denoising import HeldOut
from scf.verification.measure import main, measure
from scf.verification.report import read_report
from support.gaussian_records import POINT, gaussian_points, record_energy, write_points


def held_out(num: int) -> HeldOut:
    x = gaussian_points(num, seed=5)
    return HeldOut(
        x, np.zeros((num, 0)), [f"cid{i}" for i in range(num)], [f"f{i % 9}" for i in range(num)]
    )


def test_shuffling_correlated_points_raises_their_energy() -> None:
    """AUROC above one half where order carries meaning; samples are as likely as real points."""
    energy = record_energy(POINT, gaussian_points(2000))
    measured = measure(energy, held_out(600), sigma=0.1)
    assert measured.report["auroc"]["x_shuffled"] > 0.7
    real, sampled = (measured.report["energy"][name]["mean"] for name in ("real", "sampled"))
    assert sampled == pytest.approx(real, abs=0.2)


def test_a_champion_meets_the_same_noise() -> None:
    """Compared with itself, a model wins and loses nothing, family by family."""
    energy = record_energy(POINT, gaussian_points(500), noise=0.5)
    report = measure(energy, held_out(60), sigma=0.1, champion=energy).report
    assert report["champion_dsm_loss"] == {**report["dsm_loss"], "paired_sigma": 0.0}


def test_the_paired_sigma_is_that_of_single_fossils() -> None:
    """Much larger than that of family means, which is what the gate would have to do with."""
    energy = record_energy(POINT, gaussian_points(500), noise=0.1)
    champion = record_energy(POINT, gaussian_points(500), noise=0.5)
    report = measure(energy, held_out(180), sigma=0.1, champion=champion).report
    loss, own = report["champion_dsm_loss"], report["dsm_loss"]["by_family"]
    between = np.std([loss["by_family"][f] - own[f] for f in own], ddof=1)
    assert loss["paired_sigma"] > 2 * between


def test_a_model_that_is_not_finite_is_reported_so() -> None:
    """No number is invented: finite is false and the loss is null."""
    energy = record_energy(POINT, gaussian_points(500), noise=0.5)
    energy.model.body.head.weight.data[0, 0] = float("nan")
    report = measure(energy, held_out(20), sigma=0.1).report
    assert report["finite"] is False
    assert report["dsm_loss"] is None


def test_the_program_writes_a_report_and_a_picture(foundry: FoundryPlaces, tmp_path: Path) -> None:
    """From vault and plan to report.json (as the gate reads it) and report.png."""
    write_points(tmp_path / "points.ndjson", gaussian_points(400), families=20)
    drive = Drive.open(foundry.root)
    with Vault.open(drive, foundry.home, load_signer(foundry.home / "keys", "vault")) as vault:
        PrimordialSoupIngestor(vault).ingest(tmp_path / "points.ndjson")
        plan = make_plan(vault, seed=0)
    plan_path = tmp_path / "plan.json"
    plan_path.write_text(json.dumps(plan.to_json()))
    vault_root = foundry.root / "fossil_vault"
    config = TrainConfig(width=16, depth=1, max_steps=30, calibration_particles=64, device="cpu")
    source = open_source(
        None, plan=plan_path, vault=vault_root, batch_size=64, seed=0, memory_bytes=10**8
    )
    train(source, Folder.at(tmp_path / "model"), config)

    held = [f.cid for f in plan_fossils(plan, vault_root) if f.split == "held_out"]
    cids = sorted(held)[:5]
    anchor = tmp_path / "anchor.json"
    anchor.write_text(json.dumps({"schema": "scf.anchor/1", "cids": cids}))
    out = tmp_path / "report"
    code = main(
        [
            "--checkpoint", str(tmp_path / "model"), "--plan", str(plan_path), "--vault",
            str(vault_root), "--out", str(out), "--champion", str(tmp_path / "model"),
            "--earlier", "4", "ebdm_gen0001", str(tmp_path / "model"), "--anchor", str(anchor),
        ]
    )  # fmt: skip

    assert code == 0
    report = read_report(out / "report.json")
    assert report.finite
    assert report.plan_id == plan.plan_id
    assert report.families == len(report.dsm_loss.by_family) >= 1
    assert report.champion.by_family == report.dsm_loss.by_family
    assert report.champion.paired_sigma == 0.0
    assert set(report.slices.values()) == {"others"}
    assert [(e.name, e.weeks_ago) for e in report.earlier] == [("ebdm_gen0001", 4)]
    assert report.earlier[0].loss == report.dsm_loss
    own, champion = report.anchor
    assert own == champion
    assert report.raw["anchor"]["digest"] == sha256_hex(anchor.read_bytes())
    assert 0 < report.raw["anchor"]["fossils"] == len(cids)
    assert report.cost == report.champion_cost
    assert report.cost.num_parameters > 0
    # Points of two numbers: near ones are chance.
    assert report.near_duplicates.skipped
    assert report.dsm_loss.mean < report.baseline.mean
    assert report.files == ("report.png",)
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
