"""The zoo grows by whole generations, its pointer moves atomically, and nothing is forgotten."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scf.core.errors import BudgetExceeded, DriveError, NothingToDo, UsageError
from scf.signing.verify import SignatureInvalid
from scf.storage import failpoint
from scf.verification.verify_checkpoint import CheckpointInvalid
from scf.zoo.entry import Generation, GenerationDamaged
from scf.zoo.promotion import PromotionRefused
from scf.zoo.registry import UnknownGeneration, Zoo
from support.foundries import SmallFoundry, small_foundry, tree_bytes
from support.processes import python_env
from support.runs import MeasuredRun, attested, fill_vault, measured_run


@pytest.fixture
def place(tmp_path: Path) -> SmallFoundry:
    place = small_foundry(tmp_path)
    fill_vault(place)
    return place


def zoo_of(place: SmallFoundry) -> Zoo:
    return Zoo.open(place.drive.folder("model_zoo"), clock=place.clock)


def promote(place: SmallFoundry, run: MeasuredRun) -> Generation:
    return zoo_of(place).promote(
        run_id=run.run_id,
        checkpoint=run.checkpoint,
        report_folder=run.report_folder,
        plan=run.plan,
        proof=attested(place, run),
        keys=[place.keys["foundry"]],
    )


def pointer(place: SmallFoundry) -> str:
    return json.loads((place.root / "model_zoo" / "champion.json").read_text())["generation"]


def test_an_empty_zoo(place: SmallFoundry) -> None:
    zoo = zoo_of(place)

    assert zoo.generations() == []
    assert zoo.champion() is None
    with pytest.raises(UnknownGeneration, match="no generation 'ebdm_gen0001'"):
        zoo.generation("ebdm_gen0001")


def test_a_promoted_run_is_the_champion(place: SmallFoundry) -> None:
    """Its folder holds everything that it is, each file by digest."""
    run = measured_run(place)

    generation = promote(place, run)

    assert generation.name == "ebdm_gen0001"
    assert zoo_of(place).champion() == generation
    assert pointer(place) == "ebdm_gen0001"
    assert set(tree_bytes(generation.path)) == {*generation.files, "entry.json"}
    assert set(generation.files) == {
        "MODEL_CARD.md", "plan.json", "report.json", "statement.json", "plots/energies.png",
        *(f"checkpoint/{name}" for name in run.facts.files), "checkpoint/digests.json",
    }  # fmt: skip
    assert generation.checkpoint_digest == run.facts.digest
    assert generation.files["plan.json"] == generation.plan_id
    generation.verify()


def test_generations_are_numbered_and_the_history_is_kept(place: SmallFoundry) -> None:
    promote(place, measured_run(place, number=1))
    promote(place, measured_run(place, number=2))
    zoo = zoo_of(place)

    assert [g.name for g in zoo.generations()] == ["ebdm_gen0001", "ebdm_gen0002"]
    assert [(m.action, m.generation, m.previous) for m in zoo.history()] == [
        ("promoted", "ebdm_gen0001", None),
        ("promoted", "ebdm_gen0002", "ebdm_gen0001"),
    ]


def test_promoting_a_run_twice_is_promoting_it_once(place: SmallFoundry) -> None:
    run = measured_run(place)
    first = promote(place, run)
    before = tree_bytes(place.root / "model_zoo")

    assert promote(place, run) == first
    assert tree_bytes(place.root / "model_zoo") == before


def test_a_repeated_promotion_does_not_undo_a_rollback(place: SmallFoundry) -> None:
    """The pointer was moved on since: it stays where the operator put it."""
    promote(place, measured_run(place, number=1))
    second = measured_run(place, number=2)
    promote(place, second)
    zoo_of(place).rollback("ebdm_gen0001", "the second one drifts at night")

    promote(place, second)

    assert zoo_of(place).champion().name == "ebdm_gen0001"
    assert pointer(place) == "ebdm_gen0001"


def test_a_rollback_is_one_more_line_with_its_reason(place: SmallFoundry) -> None:
    promote(place, measured_run(place, number=1))
    promote(place, measured_run(place, number=2))

    zoo_of(place).rollback("ebdm_gen0001", "  worse in winter ")

    last = zoo_of(place).history()[-1]
    assert (last.action, last.reason, last.previous) == (
        "rolled_back", "worse in winter", "ebdm_gen0002",
    )  # fmt: skip
    assert len(zoo_of(place).generations()) == 2


def test_a_rollback_that_cannot_be_done_changes_nothing(place: SmallFoundry) -> None:
    promote(place, measured_run(place, number=1))
    promote(place, measured_run(place, number=2))
    zoo = zoo_of(place)

    with pytest.raises(UsageError, match="needs a reason"):
        zoo.rollback("ebdm_gen0001", " ")
    with pytest.raises(NothingToDo):
        zoo.rollback("ebdm_gen0002", "why not")
    with pytest.raises(UnknownGeneration) as caught:
        zoo.rollback("ebdm_gen0009", "typing")
    assert "ebdm_gen0001, ebdm_gen0002" in str(caught.value.remedy)
    weights = place.root / "model_zoo" / "ebdm_gen0001" / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(GenerationDamaged, match=r"model\.safetensors"):
        zoo.rollback("ebdm_gen0001", "damaged meanwhile")
    assert zoo.champion().name == "ebdm_gen0002"


def test_one_can_roll_back_from_a_champion_that_is_gone(place: SmallFoundry) -> None:
    """The zoo opens, and the way back is open, when the champion's folder is lost."""
    promote(place, measured_run(place, number=1))
    promote(place, measured_run(place, number=2))
    shutil.rmtree(place.root / "model_zoo" / "ebdm_gen0002")

    with pytest.raises(GenerationDamaged):
        zoo_of(place).champion()
    assert zoo_of(place).rollback("ebdm_gen0001", "0002 is lost").name == "ebdm_gen0001"
    # Its number is not given to another.
    assert promote(place, measured_run(place, number=3)).name == "ebdm_gen0003"


# -- what is refused ----------------------------------------------------------------------------------


def refuse(place: SmallFoundry, run: MeasuredRun, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        promote(place, run)
    assert zoo_of(place).generations() == []
    assert list((place.root / "model_zoo").iterdir()) == []


def test_what_the_gate_rejected_is_not_promoted(place: SmallFoundry) -> None:
    refuse(place, measured_run(place, gain=-0.1), PromotionRefused, "the gate did not let it pass")


def test_a_changed_checkpoint_is_not_promoted(place: SmallFoundry) -> None:
    run = measured_run(place)
    attested(place, run)
    weights = run.checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")

    refuse(place, run, CheckpointInvalid, r"model\.safetensors: digest")


@pytest.mark.parametrize("part", ["checkpoint", "report", "plan"])
def test_parts_of_another_run_are_not_promoted(place: SmallFoundry, part: str) -> None:
    """Each part must be the one that the statement is about."""
    run, other = measured_run(place, number=1), measured_run(place, number=2)
    parts = {
        "checkpoint": {"checkpoint": other.checkpoint},
        "report": {"report_folder": other.report_folder},
        "plan": {"plan": run.plan | {"seed": 77}},
    }[part]
    proof = attested(place, run)

    with pytest.raises(PromotionRefused, match=f"the {part} is not the one"):
        zoo_of(place).promote(
            **{
                "run_id": run.run_id,
                "checkpoint": run.checkpoint,
                "report_folder": run.report_folder,
                "plan": run.plan,
                "proof": proof,
                "keys": [place.keys["foundry"]],
            }
            | parts
        )


def test_a_record_of_another_foundry_is_not_believed(place: SmallFoundry, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = small_foundry(tmp_path / "other")
    fill_vault(other)
    run = measured_run(other)

    with pytest.raises(SignatureInvalid):
        zoo_of(place).promote(
            run_id=run.run_id,
            checkpoint=run.checkpoint,
            report_folder=run.report_folder,
            plan=run.plan,
            proof=attested(other, run),
            keys=[place.keys["foundry"]],
        )


# -- crashes ---------------------------------------------------------------------------------------

CRASH = """
import sys
from pathlib import Path
from support.foundries import SmallFoundry, SteppingClock
from scf.verification.report import read_report
from scf.zoo.registry import Zoo
import json
place = SmallFoundry(Path(sys.argv[1]), SteppingClock())
job = place.base / "job-1"
Zoo.open(place.drive.folder("model_zoo")).promote(
    run_id="run-000000000001",
    checkpoint=job / "checkpoint",
    report_folder=job / "report",
    plan=json.loads((place.base / "plan.json").read_text()),
    proof=place.root / "zk_proofs" / "proof-run-000000000001.json",
    keys=[place.keys["foundry"]],
)
"""


@pytest.mark.crash
@pytest.mark.parametrize(
    ("point", "is_there"),
    [
        ("durable.before_rename:kill:1", False),  # inside the staged folder
        ("durable.folder.before_rename:kill", False),
        ("durable.folder.after_rename:kill", True),
        ("zoo.generation_written:kill", True),
        ("durable.append.before:kill", True),
        ("durable.append.after:kill", True),
        ("durable.before_rename:kill:4", True),  # the pointer
        ("durable.after_rename:kill:4", True),
    ],
)
def test_a_kill_at_any_moment_leaves_no_half_generation(
    place: SmallFoundry, point: str, is_there: bool
) -> None:
    """The generation is there, whole, or not at all; doing it again finishes it, once."""
    run = measured_run(place)
    attested(place, run)
    (place.base / "plan.json").write_text(json.dumps(run.plan))
    child = subprocess.run(
        [sys.executable, "-c", CRASH, str(place.base)],
        env=python_env(SCF_FAIL=point, PYTHONPATH=str(Path(__file__).parents[1])),
        check=False,
        timeout=300,
    )
    assert child.returncode == -9
    found = zoo_of(place).generations()
    assert [g.name for g in found] == (["ebdm_gen0001"] if is_there else [])
    for generation in found:
        generation.verify()

    promote(place, run)

    zoo = zoo_of(place)
    assert [g.name for g in zoo.generations()] == ["ebdm_gen0001"]
    assert [m.generation for m in zoo.history()] == ["ebdm_gen0001"]
    assert pointer(place) == zoo.champion().name == "ebdm_gen0001"
    names = {p.name for p in (place.root / "model_zoo").iterdir()}
    assert {n for n in names if not n.startswith(".champion")} == {
        "ebdm_gen0001", "champion.json", "history.log",
    }  # fmt: skip


@pytest.mark.parametrize(("how", "error"), [("enospc", BudgetExceeded), ("error", DriveError)])
@pytest.mark.parametrize(
    "point", ["durable.before_write", "durable.folder.before_rename", "zoo.generation_written"]
)
def test_a_failed_write_has_a_name_and_can_be_repeated(
    place: SmallFoundry, point: str, how: str, error: type[Exception], monkeypatch
) -> None:
    run = measured_run(place)
    attested(place, run)
    monkeypatch.setattr(failpoint, "_passages", {})
    monkeypatch.setenv("SCF_FAIL", f"{point}:{how}:1")
    with pytest.raises(error):
        promote(place, run)
    monkeypatch.delenv("SCF_FAIL")

    assert promote(place, run).name == "ebdm_gen0001"
    assert not list((place.root / "model_zoo").glob(".*"))


def test_a_torn_line_of_the_history_is_passed_over(place: SmallFoundry) -> None:
    promote(place, measured_run(place))
    with (place.root / "model_zoo" / "history.log").open("ab") as file:
        file.write(b'{"action": "promo')

    assert zoo_of(place).champion().name == "ebdm_gen0001"
    promote(place, measured_run(place, number=2))
    assert zoo_of(place).champion().name == "ebdm_gen0002"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text(path.read_text().replace("gen0001", "gen0002")),
        lambda path: path.write_text(path.read_text().replace('"plan_id": "', '"plan_id": "X')),
    ],
)
def test_a_damaged_entry_is_named(place: SmallFoundry, change) -> None:
    change(promote(place, measured_run(place)).path / "entry.json")

    with pytest.raises(GenerationDamaged, match=r"entry\.json"):
        zoo_of(place).generations()
