"""Shard manifests: what a shard holds, signed by the vault's key.

The manifest of `X.ndjson` is `X.ndjson.manifest.json`, a DSSE envelope. It carries no time and no
place of ingest: the same shard always has the same manifest.
Format: docs/formats/shard-manifest.md.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.errors import InputError
from scf.signing.envelope import Envelope
from scf.signing.verify import PublicKey, verify_envelope
from scf.storage import durable
from scf.vault import fossil
from scf.vault.journal_file import ShardSummary, summary_from_json

SCHEMA = "scf.shard-manifest/1"
PAYLOAD_TYPE = "application/vnd.scf.shard-manifest+json"
SUFFIX = ".manifest.json"


class ManifestInvalid(InputError):
    """A manifest cannot be read, or speaks of another shard."""

    kind = "manifest"


def manifest_path(shard: Path) -> Path:
    """Where a shard's manifest lies: beside it."""
    return shard.with_name(shard.name + SUFFIX)


def manifest_payload(summary: ShardSummary) -> bytes:
    """What the vault signs about a shard: canonical JSON. The same shard gives the same bytes."""
    return canonical_json({"schema": SCHEMA, "fossil_schema": fossil.SCHEMA, **asdict(summary)})


def read_manifest(path: Path, keys: Iterable[PublicKey]) -> ShardSummary:
    """Read and verify a manifest.

    Raises:
        ManifestInvalid: It is missing or malformed.
        SignatureInvalid: None of `keys` signed it.
    """
    envelope = Envelope.from_json(durable.read_json(path, size_max_bytes=2**20))
    payload = verify_envelope(envelope, keys, payload_type=PAYLOAD_TYPE)
    return _from_json(path, parse_json(payload))


def _from_json(path: Path, value: Any) -> ShardSummary:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ManifestInvalid(f"{path}: not a manifest of schema {SCHEMA}")
    summary = summary_from_json(value)
    if summary is None:
        raise ManifestInvalid(f"{path}: a key is missing or has the wrong form")
    return summary
