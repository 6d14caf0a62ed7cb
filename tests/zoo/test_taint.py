"""A fossil is taken back: who learned from it is marked, and a rollback is proposed, not done."""

import json
from datetime import date
from pathlib import Path

import pytest

from scf.cli.main import run as scf_command
from scf.core.errors import NothingToDo, UsageError
from scf.fertilization.batch_plan import BatchPlan, plan_fossils
from scf.proofs.statement import Parent
from scf.release.verify_release import verify_release
from scf.vault.journal import Vault
from scf.zoo.taint import keep, mark_tainted, propose, read_taints
from support.foundries import SmallFoundry
from support.releases import promote, releasable, release_week, zoo_of
from support.runs import fill_vault, measured_run, plan_json


@pytest.fixture
def place(tmp_path: Path) -> SmallFoundry:
    """Three generations: the second learned from fresh fossils, the third went on from it."""
    place = releasable(tmp_path / "foundry")
    fill_vault(place, fossils=20, origin="fresh.csv")
    parent = None
    for number in (2, 3):
        name = f"ebdm_gen{number - 1:04d}"
        parent = Parent(name, zoo_of(place).generation(name).checkpoint_digest)
        run = measured_run(
            place, number=number, plan=plan_json(place), champion_gain=5.0, parent=parent
        )
        promote(place, run)
    return place


def fresh_fossil(place: SmallFoundry, split: str) -> str:
    """One that the first plan does not have."""
    plans = [
        BatchPlan.from_json(json.loads((place.root / "model_zoo" / name / "plan.json").read_text()))
        for name in ("ebdm_gen0001", "ebdm_gen0003")
    ]
    first, last = (
        {f.cid: f.split for f in plan_fossils(p, place.root / "fossil_vault")} for p in plans
    )
    return next(cid for cid, where in last.items() if where == split and cid not in first)


def retract(place: SmallFoundry, cid: str, reason: str = "wrong calibration") -> None:
    with Vault.open(place.drive, place.home, place.signer("vault"), clock=place.clock) as vault:
        vault.retract(cid, reason)
        mark_tainted(zoo_of(place), vault, place.clock)


def test_who_learned_from_it_is_marked_and_the_last_sound_one_proposed(place: SmallFoundry) -> None:
    cid = fresh_fossil(place, "train")
    retract(place, cid)

    taints = read_taints(zoo_of(place).folder)
    assert [(t.generation, t.cid, t.split, t.reason) for t in taints] == [
        ("ebdm_gen0002", cid, "train", "wrong calibration"),
        ("ebdm_gen0003", cid, "train", "wrong calibration"),
    ]
    proposal = propose(zoo_of(place), taints)
    assert proposal is not None
    assert (proposal.generation, proposal.target, proposal.cids) == (
        "ebdm_gen0003", "ebdm_gen0001", (cid,),
    )  # fmt: skip
    assert zoo_of(place).champion().name == "ebdm_gen0003"  # nothing moved by itself


def test_marking_twice_is_once(place: SmallFoundry) -> None:
    retract(place, fresh_fossil(place, "train"))
    before = read_taints(zoo_of(place).folder)
    with Vault.open(place.drive, place.home) as vault:
        assert mark_tainted(zoo_of(place), vault, place.clock) == []
    assert read_taints(zoo_of(place).folder) == before


def test_what_was_only_measured_on_it_is_noted_and_stands(place: SmallFoundry) -> None:
    retract(place, fresh_fossil(place, "held_out"))
    taints = read_taints(zoo_of(place).folder)
    assert {t.split for t in taints} == {"held_out"}
    assert propose(zoo_of(place), taints) is None


def test_who_goes_on_from_a_tainted_one_is_tainted_by_descent(place: SmallFoundry) -> None:
    """Generation 4's plan leaves the fossil out; its weights come from generation 3 all the same."""
    cid = fresh_fossil(place, "train")
    retract(place, cid)
    parent = Parent("ebdm_gen0003", zoo_of(place).generation("ebdm_gen0003").checkpoint_digest)
    plan = plan_json(place) | {"excluded": [cid], "fossils": 59}
    promote(place, measured_run(place, number=4, plan=plan, champion_gain=5.0, parent=parent))

    proposal = propose(zoo_of(place), read_taints(zoo_of(place).folder))
    assert proposal is not None
    assert (proposal.generation, proposal.through, proposal.target) == (
        "ebdm_gen0004", "ebdm_gen0003", "ebdm_gen0001",
    )  # fmt: skip
    assert "by going on from ebdm_gen0003" in proposal.sentence()


def test_a_kept_one_stands_until_something_new_is_taken_back(place: SmallFoundry) -> None:
    cid = fresh_fossil(place, "train")
    retract(place, cid)
    zoo = zoo_of(place)
    with pytest.raises(UsageError, match="needs a reason"):
        keep(zoo, " ", place.clock)
    keep(zoo, "the error is within its uncertainty", place.clock)
    assert propose(zoo, read_taints(zoo.folder)) is None
    with pytest.raises(NothingToDo):
        keep(zoo, "again", place.clock)

    another = second_fossil(place, cid)
    retract(place, another, "the whole sensor")
    assert propose(zoo, read_taints(zoo.folder)) is not None


def second_fossil(place: SmallFoundry, cid: str) -> str:
    plan = BatchPlan.from_json(
        json.loads((place.root / "model_zoo" / "ebdm_gen0003" / "plan.json").read_text())
    )
    fossils = plan_fossils(plan, place.root / "fossil_vault")
    return next(f.cid for f in fossils if f.split == "train" and f.cid != cid)


def test_without_a_sound_one_it_says_what_to_do_instead(tmp_path: Path) -> None:
    place = releasable(tmp_path / "foundry")
    plan = BatchPlan.from_json(plan_json(place))
    fossils = plan_fossils(plan, place.root / "fossil_vault")
    retract(place, next(f.cid for f in fossils if f.split == "train"))
    proposal = propose(zoo_of(place), read_taints(zoo_of(place).folder))
    assert proposal is not None
    assert proposal.target is None
    assert "no earlier sound generation" in proposal.sentence()


def test_from_the_command_line_to_the_next_release(place: SmallFoundry, capsys) -> None:
    """Retract, see it in status, list and notes; accept with one command; the release tells it."""
    cid = fresh_fossil(place, "train")
    at = ["--home", str(place.home), "--root", str(place.root)]

    assert scf_command(["fossil", "retract", cid, "--reason", "wrong calibration", *at]) == 0
    assert "a rollback to ebdm_gen0001 is proposed" in capsys.readouterr().out
    assert scf_command(["status", *at]) == 0
    assert "proposed    ebdm_gen0003 learned from a fossil" in capsys.readouterr().out
    assert scf_command(["zoo", "list", *at]) == 0
    listed = capsys.readouterr().out
    assert listed.count("TAINTED") == 2
    assert "! ebdm_gen0003 learned from a fossil that was taken back since" in listed
    first = release_week(place, week=date(2026, 11, 16))
    notes = (first.path / "NOTES.md").read_text()
    assert "**ebdm_gen0003 learned from a fossil that was taken back since: a rollback" in notes
    assert f"(`{cid}`)" in notes

    assert scf_command(["zoo", "rollback", *at]) == 2
    assert scf_command(["zoo", "rollback", "--proposed", *at]) == 0
    capsys.readouterr()
    assert scf_command(["zoo", "rollback", "--proposed", *at]) == 3
    assert scf_command(["zoo", "list", "--json", *at]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["champion"], listed["proposal"]) == ("ebdm_gen0001", None)
    second = release_week(place, week=date(2026, 11, 23))
    assert second.kind == "rollback"
    notes = (second.path / "NOTES.md").read_text()
    assert "ebdm_gen0001 stands again in place of ebdm_gen0003" in notes
    assert "Reason: ebdm_gen0003 learned from a fossil that was taken back since." in notes
    for release in (first, second):
        assert verify_release(release.path, place.keys["foundry"].to_pem()).ok
    events = [logged.entry.event for logged in place.log().entries()]
    assert events.count("zoo.tainted") == 2
    assert events.count("zoo.rollback_proposed") == events.count("zoo.rolled_back") == 1
