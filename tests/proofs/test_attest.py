"""A run is attested once, and a copy of its record verifies wherever it lies."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from scf.core.errors import DriveError, VerificationFailed
from scf.proofs.attest import AttestationConflict
from scf.proofs.verify_proof import ProofInvalid, verify_record, verify_record_json
from scf.signing.verify import SignatureInvalid
from scf.storage import failpoint
from support.foundries import SmallFoundry, small_foundry
from support.runs import MeasuredRun, attested, fill_vault, measured_run


@pytest.fixture
def place(tmp_path: Path) -> SmallFoundry:
    place = small_foundry(tmp_path)
    fill_vault(place)
    return place


@pytest.fixture
def run(place: SmallFoundry) -> MeasuredRun:
    return measured_run(place)


def test_a_record_verifies_wherever_it_is_copied(place, run, tmp_path) -> None:
    """Only the file and the public key are needed."""
    path = attested(place, run)
    copied = tmp_path / "elsewhere.json"
    shutil.copy(path, copied)
    keys = place.keys
    shutil.rmtree(place.root)

    verified = verify_record(copied, [keys["vault"], keys["foundry"]])

    assert path.name == f"proof-{run.run_id}.json"
    assert verified.statement == run.statement
    assert verified.key == keys["foundry"]
    assert verified.head.size == verified.index + 1 == 1
    assert verified.to_json()["merkle_root"] == run.plan["merkle_root"]


def test_attesting_twice_is_attesting_once(place, run) -> None:
    first = attested(place, run)
    kept = first.read_bytes()
    place.log().append("e", "something else")

    assert attested(place, run) == first
    assert first.read_bytes() == kept
    assert place.log().tree_head().size == 2


def test_a_run_is_not_attested_about_two_checkpoints(place, run) -> None:
    attested(place, run)
    other = measured_run(place, number=2)
    forged = MeasuredRun(**{**other.__dict__, "run_id": run.run_id})

    with pytest.raises(AttestationConflict, match="was attested about checkpoint"):
        attested(place, forged)


@pytest.mark.parametrize(
    ("point", "passage"),
    [("audit.staged", 1), ("audit.committed", 1), ("durable.before_write", 6),
     ("durable.before_rename", 6), ("durable.after_rename", 6)],
)  # fmt: skip
def test_a_crash_in_between_is_made_good_by_doing_it_again(
    place, run, point, passage, monkeypatch
) -> None:
    """Logged or not, written or not: afterwards there is one entry and one good record."""
    monkeypatch.setattr(failpoint, "_passages", {})
    monkeypatch.setenv("SCF_FAIL", f"{point}:error:{passage}")
    with pytest.raises(DriveError):
        attested(place, run)
    monkeypatch.delenv("SCF_FAIL")

    path = attested(place, run)

    assert verify_record(path, [place.keys["foundry"]]).index == 0
    assert place.log().tree_head().size == 1


def test_an_unknown_key_is_not_believed(place, run) -> None:
    path = attested(place, run)

    with pytest.raises(SignatureInvalid, match="no signature by a trusted key"):
        verify_record(path, [place.keys["vault"]])


def test_each_part_is_needed(place, run) -> None:
    """Statement, entry, place, proof and head: change or swap any, and the record fails."""
    record = json.loads(attested(place, run).read_bytes())
    second = json.loads(attested(place, measured_run(place, number=2)).read_bytes())
    changes = [
        ("schema", "scf.proof/2"),
        ("kind", "snark"),
        ("extra", 1),
        ("envelope", second["envelope"]),
        ("audit", second["audit"]),
        ("audit", None),
        ("audit.index", 1),
        ("audit.index", True),
        ("audit.entry", record["audit"]["entry"].replace("run-", "nur-")),
        ("audit.proof", ["00" * 32]),
        ("audit.checkpoint", second["audit"]["checkpoint"]),
        ("audit.extra", 1),
        ("envelope.payloadType", "text/plain"),
        ("envelope.signatures", []),
        ("envelope.signatures", record["envelope"]["signatures"] * 2),
        ("envelope.payload", "AAAA"),
    ]
    keys = [place.keys["foundry"]]
    verify_record_json(record, keys)
    for path, value in changes:
        changed = copy.deepcopy(record)
        *above, last = path.split(".")
        target = changed
        for name in above:
            target = target[name]
        target[last] = value
        with pytest.raises(VerificationFailed):
            verify_record_json(changed, keys)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "scf.proof/1"}'])
def test_other_files_are_no_records(place, tmp_path, text) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)

    with pytest.raises(ProofInvalid, match=r"record\.json"):
        verify_record(path, [place.keys["foundry"]])
