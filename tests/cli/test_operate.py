"""The operator's commands: what they print, and how they end."""

import json
from pathlib import Path

import pytest

from scf.cli.main import run as scf_command
from support.conducting import Works


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works(tmp_path)


def test_status_of_a_new_foundry(works: Works, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is there, with null where nothing is yet; looking makes no database."""
    assert works.cli("status", "--json") == 0
    told = json.loads(capsys.readouterr().out)

    assert told["schema_version"] == 1
    assert (told["state"], told["gear"], told["emergency_lock"]) == ("STOPPED", "STANDARD", False)
    assert told["generation"] is told["release"] is told["plan"] is None
    assert set(told["chain"].values()) == {None}
    assert not (works.home / "runs.db").exists()
    assert works.cli("runs") == 0
    assert works.cli("run", "show", "run-0") == 2


def test_the_chain_from_release_to_fossils(
    works: Works, capsys: pytest.CaptureFixture[str]
) -> None:
    """status shows release -> checkpoint -> run -> plan -> root; `run show --fossils` the CIDs."""
    works.drop("a.ndjson", range(120))
    works.until_idle()
    capsys.readouterr()

    works.cli("status", "--json")
    told = json.loads(capsys.readouterr().out)
    chain = told["chain"]
    release = works.root / "release_history" / chain["release"]
    about = json.loads((release / "RELEASE.json").read_text())
    assert about["generation"]["checkpoint_digest"] == chain["checkpoint_digest"]
    assert about["plan"]["merkle_root"] == chain["merkle_root"] == told["plan"]["merkle_root"]
    assert told["plan"]["fossils"] == 120
    assert told["runs"] == {"RELEASED": 1}

    assert works.cli("run", "show", chain["run"], "--json") == 0
    run = json.loads(capsys.readouterr().out)
    assert run["facts"]["plan_id"] == chain["plan_id"]
    assert [t["to"] for t in run["transitions"]][-1] == "RELEASED"
    assert [a["exit_reason"] for a in run["attempts"]] == ["completed", "completed"]
    assert run["attempts"][0]["receipt"]["usage"]["rss_max_bytes"] > 0

    assert works.cli("run", "show", chain["run"], "--fossils", "--json") == 0
    fossils = json.loads(capsys.readouterr().out)["fossils"]
    assert len({fossil["cid"] for fossil in fossils}) == 120
    assert {fossil["split"] for fossil in fossils} == {"train", "held_out"}
    for arguments in (["status"], ["runs"], ["run", "show", chain["run"]],
                      ["run", "show", chain["run"], "--fossils"]):  # fmt: skip
        assert works.cli(*arguments) == 0
        assert chain["run"][:3] in capsys.readouterr().out or arguments[-1] == "--fossils"


def test_commands_wait_in_the_file_when_no_daemon_runs(
    works: Works, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each keeps its place; `stop` has nobody to stop."""
    assert works.cli("pause") == 0
    assert works.cli("gear", "hyper") == 0
    assert works.cli("stop") == 3
    asked = json.loads((works.home / "control.json").read_text())["commands"]

    assert [command["command"] for command in asked] == ["PAUSE", "SHIFT_GEAR"]
    assert asked[1]["gear"] == "HYPER"
    assert "next one will read it" in capsys.readouterr().err
    assert works.cli("resume") == 0
    works.until_idle()
    told = json.loads((works.home / "control.ack.json").read_text())
    assert [ack["status"] for ack in told["acks"]] == ["done"] * 3


@pytest.mark.parametrize(
    "arguments",
    [["gear", "WARP"], ["stop", "--mode", "never"], ["daemon", "run", "--once", "--until-idle"],
     ["daemon", "run", "--gear", "WARP"], ["unlock"], ["run", "show"]],
)  # fmt: skip
def test_wrong_arguments_are_usage_errors(works: Works, arguments: list[str]) -> None:
    assert works.cli(*arguments) == 2


def test_without_a_home_commands_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["pause"], ["daemon", "run", "--once"], ["lock"]):
        assert scf_command([*arguments, "--home", str(tmp_path / "none")]) == 1
    assert "scf init" in capsys.readouterr().err
