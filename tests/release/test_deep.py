"""From the release down to the fossils: a change on any hop is found there, and named."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from scf.release.deep import ABSENT, DIFFERS, FITS, Hop, walk
from support.foundries import SmallFoundry, SteppingClock
from support.releases import releasable, release_week, take_away


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two weeks: the first with weights, the second without."""
    place = releasable(tmp_path_factory.mktemp("template") / "foundry")
    release_week(place)
    release_week(place, week=date(2026, 11, 23))
    return place.base


@pytest.fixture
def place(template: Path, tmp_path: Path) -> SmallFoundry:
    shutil.copytree(template, tmp_path / "foundry")
    return SmallFoundry(tmp_path / "foundry", SteppingClock())


def hops(place: SmallFoundry, name: str = "week-2026-11-16") -> list[Hop]:
    return list(walk(place.root / "release_history" / name, place.root, place.keys))


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_everything_fits_down_to_the_last_fossil(place: SmallFoundry) -> None:
    found = hops(place)

    assert {hop.result for hop in found} == {FITS}
    assert [hop.hop for hop in found][:5] == ["release", "model", "run", "audit", "plan"]
    fossils = sum(hop.digests - 2 for hop in found if hop.hop == "fossils" and "/" in hop.subject)
    assert fossils == 40
    assert found[-1].subject == "Merkle root"


def test_a_week_without_weights_leads_to_the_release_that_has_them(place: SmallFoundry) -> None:
    found = hops(place, "week-2026-11-23")

    assert [hop.subject for hop in found[:2]] == ["week-2026-11-23", "week-2026-11-16"]
    assert {hop.result for hop in found} == {FITS}
    take_away(place.root / "release_history" / "week-2026-11-16")
    found = hops(place, "week-2026-11-23")
    assert (found[1].subject, found[1].result) == ("week-2026-11-16", ABSENT)


DAMAGE: list[tuple[str, str, Callable[[Path], Path]]] = [
    ("release", "week-2026-11-16", lambda r: r / "release_history/week-2026-11-16/NOTES.md"),
    ("model", "ebdm_gen0001", lambda r: r / "model_zoo/ebdm_gen0001/checkpoint/ema.safetensors"),
    ("model", "ebdm_gen0001", lambda r: r / "model_zoo/ebdm_gen0001/plots/energies.png"),
    ("run", "proof-run-000000000001.json", lambda r: r / "zk_proofs/proof-run-000000000001.json"),
    ("audit", "zk_proofs/audit", lambda r: r / "zk_proofs/audit/tile/0/000.p/3"),
    ("fossils", "shards/", lambda r: next((r / "fossil_vault/shards").glob("*/*.ndjson"))),
    ("fossils", "shards/", lambda r: next((r / "fossil_vault/shards").glob("*/*.manifest.json"))),
]  # fmt: skip


@pytest.mark.parametrize(("hop", "subject", "where"), DAMAGE)
def test_one_flipped_bit_is_found_at_its_hop(
    place: SmallFoundry, hop: str, subject: str, where: Callable[[Path], Path]
) -> None:
    flip(where(place.root))

    wrong = [found for found in hops(place) if found.result == DIFFERS]

    assert [found.hop for found in wrong] == [hop]
    assert wrong[0].subject.startswith(subject)
    assert wrong[0].detail


def test_job_bundles_are_looked_at_where_they_are(place: SmallFoundry) -> None:
    """Outputs that were pruned are counted; those there must be what the job wrote."""
    import json

    from scf.core.identity import sha256_hex

    bundle = place.root / "system_cache/jobs/run-000000000001-train-ebdm-1"
    bundle.mkdir(parents=True)
    (bundle / "weights").write_bytes(b"w")
    outputs = [
        {"path": "weights", "sha256": sha256_hex(b"w"), "size_bytes": 1},
        {"path": "pruned", "sha256": sha256_hex(b"p"), "size_bytes": 1},
    ]
    (bundle / "exit.json").write_text(json.dumps({"outputs": outputs}))

    def of_bundle() -> Hop:
        return next(hop for hop in hops(place) if hop.subject == bundle.name)

    assert (of_bundle().result, of_bundle().digests) == (FITS, 1)
    (bundle / "weights").write_bytes(b"x")
    assert of_bundle().result == DIFFERS


def test_what_the_drive_no_longer_holds_is_absent(place: SmallFoundry) -> None:
    shutil.rmtree(place.root / "model_zoo" / "ebdm_gen0001")
    shutil.rmtree(place.root / "fossil_vault" / "shards")

    found = hops(place)

    results = {hop.hop: hop.result for hop in found}
    assert results == {
        "release": FITS, "model": ABSENT, "run": FITS, "audit": FITS, "plan": FITS,
        "fossils": ABSENT,
    }  # fmt: skip


def test_another_generation_under_the_name_is_noticed(place: SmallFoundry) -> None:
    """Sound in itself, and not the one that was released."""
    import json

    path = place.root / "model_zoo" / "ebdm_gen0001" / "entry.json"
    entry = json.loads(path.read_text())
    entry["checkpoint_digest"] = "e" * 64
    path.write_text(json.dumps(entry))

    wrong = [hop for hop in hops(place) if hop.result == DIFFERS]
    assert "another checkpoint" in wrong[0].detail
