"""Keys are private, made once, and opened in one file."""

import re
import stat
from pathlib import Path

import pytest

import scf
from scf.signing import keys
from scf.signing.keys import KeyMissing


def test_keys_are_made_once_with_mode_0600(tmp_path: Path) -> None:
    first = keys.create_keys(tmp_path / "keys")
    again = keys.create_keys(tmp_path / "keys")

    assert first == again
    for role in keys.ROLES:
        mode = (tmp_path / "keys" / f"{role}.key").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    keys.create_keys(tmp_path)
    (tmp_path / "vault.key").chmod(0o644)

    with pytest.raises(KeyMissing, match="0644"):
        keys.load_signer(tmp_path, "vault")


def test_a_missing_or_damaged_key_says_what_to_do(tmp_path: Path) -> None:
    keys.create_keys(tmp_path)
    (tmp_path / "vault.key").write_text("nonsense")
    (tmp_path / "foundry.key").unlink()

    for role in keys.ROLES:
        with pytest.raises(KeyMissing) as caught:
            keys.load_signer(tmp_path, role)
        assert caught.value.remedy


def test_private_keys_are_opened_in_one_file() -> None:
    opening = re.compile(r"load_pem_private_key|from_private_bytes|Ed25519PrivateKey")
    found = [
        p.name for p in Path(scf.__file__).parent.rglob("*.py") if opening.search(p.read_text())
    ]

    assert found == ["keys.py"]


def test_a_signer_never_shows_its_key(tmp_path: Path) -> None:
    keys.create_keys(tmp_path)
    pem = (tmp_path / "vault.key").read_text().splitlines()[1]

    assert pem not in repr(keys.load_signer(tmp_path, "vault"))
