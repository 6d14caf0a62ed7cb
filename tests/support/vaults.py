"""A vault in a fresh foundry, and the ingestor over it."""

from pathlib import Path

from scf.daemon.setup import FoundryPlaces
from scf.fertilization.primordial_soup import IngestReport, PrimordialSoupIngestor
from scf.signing.keys import load_signer
from scf.storage.partitions import Drive
from scf.vault.journal import Vault


def open_vault(foundry: FoundryPlaces) -> Vault:
    """The vault of a foundry, with its key."""
    signer = load_signer(foundry.home / "keys", "vault")
    return Vault.open(Drive.open(foundry.root), foundry.home, signer)


def ingest(vault: Vault, path: Path, **options) -> IngestReport:
    """Ingest a path with the standard readers."""
    line_max_bytes = options.pop("line_max_bytes", 2**20)
    return PrimordialSoupIngestor(vault, line_max_bytes=line_max_bytes).ingest(path, **options)
