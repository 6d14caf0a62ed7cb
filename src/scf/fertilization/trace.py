"""Follow one fossil from the vault back to its origin, verifying each step on the way."""

from dataclasses import asdict, dataclass
from typing import Any

from scf.core import merkle
from scf.core.errors import InputError
from scf.signing.verify import PublicKey
from scf.vault.fossil import Fossil
from scf.vault.index import Location
from scf.vault.journal import Vault
from scf.vault.journal_file import ShardEntry
from scf.vault.manifest import manifest_path, read_manifest
from scf.vault.provenance import file_sha256
from scf.vault.shard import ShardDamaged, leaf, read_shard


class FossilUnknown(InputError):
    """The vault holds no fossil of this CID."""

    kind = "unknown"


@dataclass(frozen=True)
class Trace:
    """The way of a fossil, each step verified.

    Attributes:
        fossil: The record itself, its CID recomputed.
        location: Shard and line.
        entry: The journal line of that shard: when it was committed, and out of what.
        signed_by: Id of the vault key whose signature over the shard's manifest fits.
        inclusion: Merkle path from the fossil to the manifest's root, hex, from the leaf upward.
    """

    fossil: Fossil
    location: Location
    entry: ShardEntry
    signed_by: str
    inclusion: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "cid": self.fossil.cid,
            "verdict": self.fossil.verdict,
            "family": self.location.family,
            "provenance": self.fossil.provenance.to_json(),
            "shard": asdict(self.entry),
            "line": self.location.line + 1,
            "signed_by": self.signed_by,
            "inclusion": list(self.inclusion),
        }


def find_fossil(vault: Vault, cid: str) -> Fossil:
    """A fossil out of the vault, its CID recomputed.

    Raises:
        FossilUnknown: It is not there.
        InputError: `cid` is not a CID.
    """
    fossil = vault.read(cid)
    if fossil is None:
        raise FossilUnknown(f"{cid} is not in the vault")
    return fossil


def trace_fossil(vault: Vault, cid: str, key: PublicKey) -> Trace:
    """Verify CID, shard digest, manifest signature and Merkle path of one fossil.

    Raises:
        FossilUnknown: It is not in the vault.
        ShardDamaged: Shard, journal and manifest do not agree.
        SignatureInvalid: The manifest is not signed by `key`.
    """
    fossil = find_fossil(vault, cid)
    location = vault.locate(cid)
    assert location is not None
    path = vault.folder.path / location.shard
    entry = next((e for e in vault.entries() if e.path == location.shard), None)
    if entry is None:
        raise ShardDamaged(path, "the journal does not name it")
    if read_manifest(manifest_path(path), [key]) != entry.summary:
        raise ShardDamaged(path, "manifest and journal do not agree")
    if file_sha256(path) != entry.sha256:
        raise ShardDamaged(path, "its digest is not the one in the manifest")
    hashes = [merkle.leaf_hash(leaf(f.cid, f.verdict)) for f in read_shard(path, verify_cid=False)]
    if merkle.root_of_hashes(hashes).hex() != entry.merkle_root:
        raise ShardDamaged(path, "its Merkle root is not the one in the manifest")
    proof = merkle.inclusion_proof(hashes, location.line)
    return Trace(fossil, location, entry, key.key_id, tuple(p.hex() for p in proof))
