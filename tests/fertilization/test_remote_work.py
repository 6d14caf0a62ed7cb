"""Ingest by workers: the same fossils, counts, shards and quarantine as without them."""

import json
from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import OperatorError, UsageError, VerificationFailed
from scf.daemon.setup import FoundryPlaces, initialise
from scf.fertilization.fossil_validator import FossilValidator
from scf.fertilization.primordial_soup import PrimordialSoupIngestor
from support.fossils import fossil_line, write_fossils
from support.vaults import open_vault


class HereMachines:
    """Runs the work in this process, with arguments that went through JSON."""

    def __init__(self, change=lambda blocks: blocks) -> None:
        self.change = change
        self.started = 0
        self.blocks_taken = 0

    def stream(self, work, calls):
        for call in calls:
            self.started += 1
            yield self._counted(self.change(work(*json.loads(json.dumps(call)))))

    def _counted(self, blocks):
        for block in blocks:
            self.blocks_taken += 1
            assert isinstance(block, bytes)
            yield block


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several readers, with something wrong in most of them."""
    folder = write_fossils(tmp_path / "in" / "a.ndjson", range(300)).parent
    (folder / "b.ndjson").write_bytes(fossil_line(1) + b"{\n" + fossil_line(400) + b'{"x": NaN}\n')
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((500, 8, 8)).astype(np.float32)
    fields[17, 0, 0] = np.nan
    np.savez(folder / "c.npz", u=fields)
    (folder / "d.csv").write_text("x,y\n" + "".join(f"{i},{i * i}\n" for i in range(50)))
    (folder / "e.txt").write_text("nobody reads this")
    cut = (folder / "c.npz").read_bytes()
    (folder / "f.npz").write_bytes(cut[: len(cut) // 2])
    (folder / "gone.ndjson").symlink_to(folder / "nowhere")
    return folder


def tree(vault_root: Path) -> dict[str, bytes]:
    """Everything that does not hold a time or a signature of another key."""
    found = {}
    for path in sorted(vault_root.rglob("*")):
        if path.is_file() and path.suffix in {".ndjson", ".jsonl"}:
            found[path.relative_to(vault_root).as_posix()] = path.read_bytes()
    return found


def taken_in(places: FoundryPlaces, path: Path, machines=None, **options):
    with open_vault(places) as vault:
        ingestor = PrimordialSoupIngestor(
            vault, shard_bytes=60_000, home=places.home, machines=machines
        )
        return ingestor.ingest(path, **options).to_json(), tree(vault.folder.path)


def test_workers_make_the_same_vault(folder: Path, foundry: FoundryPlaces, tmp_path: Path) -> None:
    """Byte for byte: shards, in their order, and what was refused with its places and reasons."""
    other = initialise(tmp_path / "home2", tmp_path / "drive2")
    machines = HereMachines()

    alone, files = taken_in(foundry, folder)
    together, same_files = taken_in(other, folder, machines)

    assert together == alone
    assert same_files == files
    assert alone["quarantined"] > 3
    assert len([name for name in files if name.endswith(".ndjson")]) > 3
    assert machines.started == 5, "the dangling link is dealt with here"


def test_known_origins_cost_a_worker_their_digest(folder: Path, foundry: FoundryPlaces) -> None:
    taken_in(foundry, folder)
    machines = HereMachines()

    again, _ = taken_in(foundry, folder, machines)

    assert again["accepted"] == 0
    assert again["duplicates"] > 800
    assert machines.blocks_taken <= machines.started + 1, "the digest; f.npz, cut, is read again"


def test_an_interrupted_ingest_goes_on_with_workers(
    folder: Path, foundry: FoundryPlaces, tmp_path: Path
) -> None:
    other = initialise(tmp_path / "home2", tmp_path / "drive2")
    alone, _ = taken_in(foundry, folder)

    def dies(blocks):
        yield next(blocks)
        yield next(blocks)
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        taken_in(other, folder, HereMachines(dies))
    rest, _ = taken_in(other, folder, HereMachines())

    assert rest["read"] == alone["read"]
    assert rest["fossils_root"] == alone["fossils_root"]
    with open_vault(foundry) as one, open_vault(other) as two:
        assert list(one.cids()) == list(two.cids())


def test_options_and_rehearsals_work_the_same(foundry: FoundryPlaces, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the file is HDF5")
    path = tmp_path / "u.h5"
    fields = np.random.default_rng(0).standard_normal((20, 8, 8))
    fields[3, 0, 0] = np.nan
    with h5py.File(path, "w") as file:
        file["u"], file["v"] = fields, fields
    options = {"fields": ("u",), "mask_fields": ("u",), "patch": (4, 4)}

    plain, _ = taken_in(foundry, path, options=options, dry_run=True)
    remote, files = taken_in(foundry, path, HereMachines(), options=options, dry_run=True)

    assert remote == plain
    assert remote["accepted"] == 80
    assert files == {}


def test_a_worker_is_not_believed(folder: Path, foundry: FoundryPlaces) -> None:
    """A bit that flipped on the way is found by the CID; nothing of it is stored."""

    def flips(blocks):
        yield next(blocks)
        for block in blocks:
            at = block.index(b'"values"') if b'"values"' in block else block.index(b'"b64":"') + 9
            yield block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]

    with pytest.raises(VerificationFailed, match="a worker sent a fossil that is none"):
        taken_in(foundry, folder, HereMachines(flips))
    with open_vault(foundry) as vault:
        assert vault.num_fossils() == 0


def hello(**changes):
    def change(blocks):
        first = json.loads(next(blocks))
        yield json.dumps({**first, **changes}).encode()
        yield from blocks

    return change


def test_workers_of_another_version_are_refused(folder: Path, foundry: FoundryPlaces) -> None:
    with pytest.raises(OperatorError, match=r"runs scf 0\.0\.1") as refused:
        taken_in(foundry, folder, HereMachines(hello(scf="0.0.1")))
    assert "same version" in str(refused.value.remedy)


def test_a_worker_that_does_not_see_the_file_stops_the_ingest(
    folder: Path, foundry: FoundryPlaces
) -> None:
    """Its files are not damaged, so they must not end in quarantine."""

    class Elsewhere(HereMachines):
        def stream(self, work, calls):
            moved = [(f"/nowhere{path}", *rest) for path, *rest in calls]
            return super().stream(work, moved)

    with pytest.raises(OperatorError, match="cannot read") as refused:
        taken_in(foundry, folder, Elsewhere())
    assert "Mount the folder at the same path" in str(refused.value.remedy)


def test_machines_have_the_standard_readers_only(foundry: FoundryPlaces) -> None:
    with open_vault(foundry) as vault, pytest.raises(UsageError, match="standard readers"):
        PrimordialSoupIngestor(vault, FossilValidator(), machines=HereMachines())
