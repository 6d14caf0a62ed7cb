"""The pages on formats of evidence print vectors; each is recomputed here."""

import json
from pathlib import Path

import pytest

from scf.audit.tree_head import verify_note
from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex
from scf.core.merkle import leaf_hash
from scf.proofs.statement import parse_statement
from scf.proofs.verify_proof import verify_record_json
from scf.release import verify_release as verifier
from scf.signing.verify import PublicKey
from support import vectors

FORMATS = Path(__file__).parents[2] / "docs" / "formats"


def page(name: str) -> str:
    return (FORMATS / f"{name}.md").read_text()


def json_vector(text: str) -> object:
    return json.loads(text.partition("<!-- vector -->\n```json\n")[2].partition("\n```")[0])


def pem(text: str) -> PublicKey:
    block = "-----BEGIN PUBLIC" + text.partition("-----BEGIN PUBLIC")[2].partition("```")[0]
    return PublicKey.from_pem(block.encode())


def test_audit_log() -> None:
    text, log = page("audit-log"), vectors.log()

    assert all(data.decode() in text for data in log.entries)
    assert all(leaf_hash(data).hex() in text for data in log.entries)
    assert sha256_hex(log.files["tile/entries/000.p/3"]) in text
    assert log.files["tile/0/000.p/3"] == b"".join(map(leaf_hash, log.entries))
    assert log.head.root.hex() in text
    note = "scf.dev/audit/0" + text.rpartition("```\nscf.dev/audit/0")[2].partition("\n```")[0]
    assert verify_note(f"{note}\n".encode(), pem(text)) == log.head


def test_statement() -> None:
    text = page("statement")

    statement = parse_statement(canonical_json(json_vector(text)))

    assert statement == vectors.statement()
    assert f"`{sha256_hex(statement.encode())}`" in text
    assert f"`{statement.checkpoint_digest}`" in text


def test_proof_record() -> None:
    text = page("proof-record")

    record = json_vector(text)

    assert record == vectors.proof_record()
    verified = verify_record_json(record, [pem(text)])
    assert (verified.index, verified.head.size) == (1, 3)


def test_release() -> None:
    text = page("release")

    assert all(vectors.signer(seed).public_key.key_id in text for seed in (1, 2))
    assert vectors.release_envelope().decode() in text
    assert all(cid in text for cid in vectors.cids())
    assert vectors.shard_root() in text
    assert vectors.fossils_root() in text


def test_the_one_file_verifier_agrees_with_the_vectors() -> None:
    """It shares no code with what made them."""
    key = vectors.signer().public_key.raw
    envelope = verifier.parse_envelope(
        json.loads(vectors.release_envelope()), verifier.RELEASE_TYPE
    )
    verifier.check_signature(envelope, [key])
    head = vectors.log().head
    note = vectors.log().note.decode()
    assert verifier.read_tree_head(note, [key]) == (head.origin, head.size, head.root)
    tree = verifier.Tree()
    for cid in sorted(vectors.cids()):
        tree.add(cid.encode())
    assert tree.root().hex() == vectors.fossils_root()


@pytest.mark.parametrize("name", ["audit-log", "statement", "proof-record", "release"])
def test_every_key_that_is_written_is_described(name: str) -> None:
    """The top keys of each format stand in its page."""
    written = {
        "audit-log": json.loads(vectors.log().entries[1]),
        "statement": vectors.statement().to_json()["predicate"],
        "proof-record": vectors.proof_record()["audit"],
        "release": dict.fromkeys(
            ["schema", "name", "week", "made_at", "code", "promotion", "generation", "plan",
             "statement_sha256", "previous", "audit", "keys", "absent", "files"]
        ),
    }[name]  # fmt: skip
    assert all(f"{key}`" in page(name) for key in written)
