"""Tree heads are C2SP checkpoints in signed notes."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scf.audit.tree_head import (
    TreeHead,
    TreeHeadInvalid,
    key_hash,
    origin_of,
    parse_note,
    verify_note,
)
from scf.signing.signer import Signer
from scf.signing.verify import PublicKey, SignatureInvalid


def signer(seed: int = 1) -> Signer:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    return Signer("foundry", PublicKey(key.public_key().public_bytes_raw()), key.sign)


HEAD = TreeHead(origin_of("drive"), 3, bytes(range(32)))


def test_a_signed_head_is_read_back() -> None:
    note = HEAD.sign(signer())

    assert verify_note(note, signer().public_key) == HEAD
    assert verify_note(note, signer().public_key, origin=HEAD.origin) == HEAD
    assert note == HEAD.sign(signer())


def test_the_note_has_the_lines_of_the_specification() -> None:
    lines = HEAD.sign(signer()).decode().split("\n")

    assert lines[0] == "scf.dev/audit/drive"
    assert lines[1] == "3"
    assert base64.b64decode(lines[2]) == HEAD.root
    assert lines[3] == ""
    dash, name, value = lines[4].split(" ")
    assert (dash, name, lines[5:]) == ("\u2014", HEAD.origin, [""])
    assert len(base64.b64decode(value)) == 4 + 64


def test_the_specifications_own_note_verifies() -> None:
    """Key `PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW` and its note, which
    Go publishes in golang.org/x/mod/sumdb/note: the key hash is computed as there."""
    raw = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert raw[:1] == b"\x01"
    assert key_hash("PeterNeumann", PublicKey(raw[1:])).hex() == "c74f20a3"


def test_another_key_is_not_believed() -> None:
    with pytest.raises(SignatureInvalid, match="no signature by"):
        verify_note(HEAD.sign(signer(2)), signer(1).public_key)


def test_another_log_of_the_same_key_is_not_this_one() -> None:
    with pytest.raises(SignatureInvalid, match=r"expected 'scf\.dev/audit/other'"):
        verify_note(HEAD.sign(signer()), signer().public_key, origin=origin_of("other"))


def test_signatures_of_witnesses_are_passed_over() -> None:
    """A note may carry more signatures; ours must be among them."""
    note = HEAD.sign(signer()) + "\u2014 witness AAAAAAAA\n".encode()

    assert verify_note(note, signer().public_key) == HEAD


def test_every_changed_byte_of_a_note_is_noticed() -> None:
    """Flipping any bit of any byte: refused, never another head."""
    note = HEAD.sign(signer())
    for position in range(len(note)):
        for bit in (1, 4, 128):
            changed = bytearray(note)
            changed[position] ^= bit
            with pytest.raises((TreeHeadInvalid, SignatureInvalid)):
                verify_note(bytes(changed), signer().public_key)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\n\n",
        b"origin\n3\nAAAA\n\n",
        b"origin\n03\n" + base64.b64encode(bytes(32)) + b"\n\n",
        b"origin\n3\n" + base64.b64encode(bytes(32)) + b"\nextension\n\n",
        b"origin\n-1\n" + base64.b64encode(bytes(32)) + b"\n\n",
        b"\xff",
    ],
)
def test_what_is_no_checkpoint_is_refused(note: bytes) -> None:
    with pytest.raises(TreeHeadInvalid):
        parse_note(note)
