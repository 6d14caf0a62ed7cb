"""A key is replaced by one that it names itself; what it signed stays good."""

import json
from pathlib import Path

import pytest

from scf.core.errors import InputError
from scf.signing.keys import create_keys, load_signer, public_keys, read_rotations, rotate_key
from scf.signing.rotation import ROTATIONS_NAME, lineage
from scf.signing.verify import SignatureInvalid, verify_envelope
from scf.storage import failpoint

TYPE = "text/plain"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_keys(tmp_path / "keys")
    return tmp_path / "keys"


def rotate(folder: Path, role: str = "foundry"):
    return rotate_key(folder, role, reason="yearly", at="2026-11-23T00:00:00Z")


def test_what_the_old_key_signed_verifies_with_the_new_one_and_not_the_other_way(
    folder: Path,
) -> None:
    old = load_signer(folder, "foundry")
    before = old.sign_envelope(TYPE, b"before")
    rotate(folder)
    rotate(folder)
    new = public_keys(folder)["foundry"]

    assert verify_envelope(before, [new], payload_type=TYPE) == b"before"
    assert [key.key_id for key in new.predecessors][-1] == old.public_key.key_id
    assert len(new.predecessors) == 2
    after = load_signer(folder, "foundry").sign_envelope(TYPE, b"after")
    with pytest.raises(SignatureInvalid):
        verify_envelope(after, [old.public_key], payload_type=TYPE)


def test_roles_do_not_mix(folder: Path) -> None:
    rotate(folder, "vault")
    keys = public_keys(folder)
    assert (len(keys["vault"].predecessors), len(keys["foundry"].predecessors)) == (1, 0)


def test_the_old_private_key_is_gone(folder: Path) -> None:
    before = (folder / "foundry.key").read_bytes()
    rotate(folder)
    assert all(before != path.read_bytes() for path in folder.iterdir())
    assert not list(folder.glob("*.next"))


def test_a_rotation_that_the_old_key_did_not_sign_counts_for_nothing(folder: Path) -> None:
    rotate(folder)
    (forged,) = read_rotations(folder)
    signature = forged["signatures"][0]
    signature["sig"] = (
        signature["sig"][:10]
        + ("A" if signature["sig"][10] != "A" else "B")
        + signature["sig"][11:]
    )
    (folder / ROTATIONS_NAME).write_text(json.dumps([forged]))
    with pytest.raises(SignatureInvalid):
        public_keys(folder)
    (folder / ROTATIONS_NAME).write_text("{}")
    with pytest.raises(InputError, match=r"rotations\.json: expected a list"):
        public_keys(folder)


def test_a_crash_in_the_middle_is_finished_by_the_next_call(folder: Path, monkeypatch) -> None:
    """The statement is written, the key is not yet: one rotation, and it is the same new key."""
    old = public_keys(folder)["foundry"]

    class Killed(BaseException):
        pass

    def kill(name: str) -> None:
        if name == "keys.rotation_written":
            raise Killed

    monkeypatch.setattr("scf.signing.keys.failpoint", kill)
    with pytest.raises(Killed):
        rotate(folder)
    assert load_signer(folder, "foundry").public_key == old  # still of use
    assert public_keys(folder)["foundry"] == old
    monkeypatch.setattr("scf.signing.keys.failpoint", failpoint.failpoint)

    new = rotate(folder)

    assert len(read_rotations(folder)) == 1
    assert public_keys(folder)["foundry"] == new != old
    assert lineage(new, "foundry", read_rotations(folder)) == (old,)
