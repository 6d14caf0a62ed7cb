"""The candidate beside others on the same fossils and noise: earlier champions, and the anchor set.

A champion of some weeks ago shows whether small losses, each within the gate's margin, add up. The
anchor set is a set of held-out fossils that was frozen at the first promotion (`zoo.anchor`): it
stays while the pool grows, so what was known once is not forgotten unseen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import parse_json
from scf.core.errors import InputError, UsageError
from scf.core.identity import sha256_hex
from scf.models.record_energy import RecordEnergy
from scf.training.checkpoint import load_energy
from scf.verification.denoising import HeldOut, add_noise, model_losses, summary

ANCHOR_SCHEMA = "scf.anchor/1"


@dataclass(frozen=True)
class EarlierChampion:
    """A model that stood some weeks ago."""

    weeks_ago: int
    name: str
    energy: RecordEnergy


@dataclass(frozen=True)
class Anchor:
    """The frozen set, by name.

    Attributes:
        digest: SHA-256 of its file.
        cids: Its fossils.
    """

    digest: str
    cids: frozenset[str]


def read_anchor(path: Path) -> Anchor:
    """The anchor set in a file. Raises InputError."""
    data = path.read_bytes()
    value = parse_json(data)
    cids = value.get("cids") if isinstance(value, dict) else None
    if value.get("schema") != ANCHOR_SCHEMA or not isinstance(cids, list):
        raise InputError(f"{path}: not an anchor set of schema {ANCHOR_SCHEMA}")
    return Anchor(sha256_hex(data), frozenset(map(str, cids)))


def load_earlier(given: Sequence[Sequence[str]]) -> list[EarlierChampion]:
    """Load `--earlier WEEKS NAME DIR` triples. Raises InputError for a damaged checkpoint."""
    found = []
    for weeks, name, folder in given:
        if not weeks.isdigit():
            raise UsageError(f"--earlier {weeks!r} {name}: weeks must be a number")
        found.append(EarlierChampion(int(weeks), name, load_energy(Path(folder))))
    return found


def other_loss(
    energy: RecordEnergy, held_out: HeldOut, other: RecordEnergy, seed: int
) -> dict[str, Any]:
    """The loss of another model on the candidate's pool, noise and coordinates."""
    noisy = add_noise(held_out, energy, seed=seed)
    return summary(model_losses(noisy, other, energy), held_out.families, seed=seed)


def earlier_losses(
    energy: RecordEnergy, held_out: HeldOut, earlier: Sequence[EarlierChampion], seed: int
) -> list[dict[str, Any]]:
    """The losses of earlier champions; those of other fields cannot be compared."""
    return [
        {
            "generation": one.name,
            "weeks_ago": one.weeks_ago,
            "dsm_loss": other_loss(energy, held_out, one.energy, seed),
        }
        for one in earlier
        if one.energy.layout == energy.layout
    ]


def anchor_losses(
    energy: RecordEnergy, champion: RecordEnergy, fossils: HeldOut, anchor: Anchor, seed: int
) -> dict[str, Any]:
    """Candidate and champion on the anchor's fossils, as far as these are in the plan."""
    return {
        "digest": anchor.digest,
        "fossils": len(fossils.cids),
        "families": len(set(fossils.families)),
        "frozen": len(anchor.cids),
        "dsm_loss": other_loss(energy, fossils, energy, seed),
        "champion_dsm_loss": other_loss(energy, fossils, champion, seed),
    }
