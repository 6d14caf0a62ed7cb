"""What a training job of a test needs, and what its bundle says of it."""

import json
from pathlib import Path

from scf.core.canonical import canonical_json
from scf.daemon.setup import initialise
from scf.storage.partitions import Drive
from support.gaussian_records import gaussian_points, write_points


def planned(base: Path) -> tuple[bytes, Path]:
    """A plan over points in a vault."""
    from scf.fertilization.batch_plan import make_plan
    from scf.fertilization.primordial_soup import PrimordialSoupIngestor
    from scf.signing.keys import load_signer
    from scf.vault.journal import Vault

    home, root = base / "home", base / "root"
    initialise(home, root)
    write_points(base / "points.ndjson", gaussian_points(600), families=60)
    drive = Drive.open(root)
    with Vault.open(drive, home, load_signer(home / "keys", "vault")) as vault:
        PrimordialSoupIngestor(vault, home=home).ingest(base / "points.ndjson")
        plan = make_plan(vault, seed=0, held_out_fraction=0.15)
    return canonical_json(plan.to_json()), root / "fossil_vault"


def losses(bundle: Path) -> list[tuple[int, float]]:
    state = json.loads((bundle / "outputs" / "checkpoint" / "state.json").read_text())
    return [(int(step), float(loss)) for step, loss in state["validation"]]
