"""An origin is ingested once; an interrupted ingest goes on; nothing depends on the memory."""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scf.daemon.setup import FoundryPlaces
from scf.fertilization.origin_memory import NAME
from scf.fertilization.primordial_soup import IngestReport, PrimordialSoupIngestor
from scf.fertilization.readers.base import Draft, Origin, Record
from scf.fertilization.readers.options import ReadOptions
from scf.fertilization.readers.registry import READERS
from scf.vault.quarantine import Rejection
from support.fossils import fossil, fossil_line, write_fossils
from support.processes import python_env
from support.vaults import open_vault


class Counting:
    """A reader that counts the records it hands over, and may die on the way."""

    name = "npz"

    def __init__(self) -> None:
        self.handed = 0
        self.dies_at: int | None = None

    def recognises(self, path: Path, head: bytes) -> bool:
        return path.name.endswith(".npz")

    def read(self, origin: Origin) -> Iterator[Record]:
        for record in READERS["npz"].read(origin):
            if self.handed == self.dies_at:
                raise KeyboardInterrupt
            self.handed += 1
            assert isinstance(record, Draft)
            # Every tenth record is refused by the reader itself.
            if record.index % 10 == 3:
                yield Rejection("row", "a third", index=record.index)
            else:
                yield record


@pytest.fixture
def reader() -> Counting:
    return Counting()


def take(
    foundry: FoundryPlaces, reader: Counting, path: Path, *, shard_bytes: int = 10**8, **options
) -> IngestReport:
    with open_vault(foundry) as vault:
        registry = {**READERS, "npz": reader}
        ingestor = PrimordialSoupIngestor(
            vault, registry=registry, shard_bytes=shard_bytes, home=foundry.home
        )
        return ingestor.ingest(path, **options)


def write_npz(path: Path, count: int, first: float = 0.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x=first + np.arange(count * 2.0).reshape(count, 2))
    return path


def counts(report: IngestReport) -> tuple[int, int, int, int]:
    return report.read, report.accepted, report.duplicates, report.quarantined


def test_an_origin_that_is_known_is_counted_and_not_read(
    foundry: FoundryPlaces, reader: Counting, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "a.npz", 100)
    first = take(foundry, reader, path)
    again = take(foundry, reader, path)
    rehearsed = take(foundry, reader, path, dry_run=True)

    assert reader.handed == 100
    assert counts(first) == (100, 90, 0, 10)
    assert counts(again) == counts(rehearsed) == (100, 0, 90, 10)
    assert again.reasons == rehearsed.reasons == {"row": 10}
    assert again.quarantine == first.quarantine
    assert again.fossils_root == first.fossils_root


def test_the_same_bytes_under_another_name_are_the_same_origin(
    foundry: FoundryPlaces, reader: Counting, tmp_path: Path
) -> None:
    """In a later ingest, and twice in one."""
    path = write_npz(tmp_path / "in" / "a.npz", 20)
    shutil.copy(path, tmp_path / "in" / "b.npz")

    both = take(foundry, reader, tmp_path / "in")
    assert counts(both) == (40, 18, 18, 4)
    shutil.copy(path, tmp_path / "c.npz")
    later = take(foundry, reader, tmp_path / "c.npz")
    assert counts(later) == (20, 0, 18, 2)
    assert reader.handed == 20
    assert later.fossils_root == both.fossils_root


def test_the_root_of_new_and_known_origins_together_is_that_of_reading_all(
    foundry: FoundryPlaces, reader: Counting, tmp_path: Path
) -> None:
    write_npz(tmp_path / "in" / "a.npz", 20)
    take(foundry, reader, tmp_path / "in")
    write_npz(tmp_path / "in" / "b.npz", 20, first=0.5)
    mixed = take(foundry, reader, tmp_path / "in")
    (foundry.home / NAME).unlink()
    read_all = take(foundry, reader, tmp_path / "in")

    assert counts(mixed) == (40, 18, 18, 4)
    assert counts(read_all) == (40, 0, 36, 4)
    assert mixed.fossils_root == read_all.fossils_root
    assert reader.handed == 80


def test_changed_bytes_or_settings_are_another_origin(
    foundry: FoundryPlaces, reader: Counting, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "a.npz", 20)
    take(foundry, reader, path)
    write_npz(path, 21)
    assert counts(take(foundry, reader, path))[0] == 21
    assert reader.handed == 41


def test_without_its_quarantine_file_an_origin_is_read_again(
    foundry: FoundryPlaces, reader: Counting, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "a.npz", 20)
    first = take(foundry, reader, path)
    quarantine = foundry.root / "fossil_vault" / first.quarantine[0]
    quarantine.unlink()

    assert counts(take(foundry, reader, path)) == (20, 0, 18, 2)
    assert quarantine.exists()


def test_another_drive_does_not_have_what_the_first_one_has(
    foundry: FoundryPlaces, reader: Counting, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "a.npz", 20)
    take(foundry, reader, path)
    shutil.rmtree(foundry.root / "fossil_vault")
    (foundry.home / "vault_index.db").unlink()

    assert counts(take(foundry, reader, path)) == (20, 18, 0, 2)


def test_an_interrupted_ingest_goes_on_where_the_last_shard_was_committed(
    foundry: FoundryPlaces, reader: Counting, tmp_path: Path
) -> None:
    """Known records are not minted again, refused ones are told of again, and all adds up."""
    path = write_npz(tmp_path / "a.npz", 1000)
    reader.dies_at = 900
    with pytest.raises(KeyboardInterrupt):
        take(foundry, reader, path, shard_bytes=100_000)
    reader.dies_at = None
    minted = []
    with open_vault(foundry) as vault:
        kept = vault.num_fossils()
        ingestor = PrimordialSoupIngestor(
            vault, registry={**READERS, "npz": reader}, home=foundry.home
        )
        judge = ingestor.validator.judge
        ingestor.validator.judge = lambda fossil: minted.append(1) or judge(fossil)  # type: ignore[method-assign]
        report = ingestor.ingest(path)

    assert 300 < kept < 900
    assert counts(report) == (1000, 900 - kept, kept, 100)
    assert len(minted) == 900 - kept
    (quarantine,) = report.quarantine
    lines = (foundry.root / "fossil_vault" / quarantine).read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(3, 1000, 10))
    (foundry.home / NAME).unlink()
    assert take(foundry, reader, path).fossils_root == report.fossils_root


INGEST = """
import sys
from pathlib import Path
from scf.fertilization.primordial_soup import PrimordialSoupIngestor
from scf.signing.keys import load_signer
from scf.storage.partitions import Drive
from scf.vault.journal import Vault

home, root, source = map(Path, sys.argv[1:4])
with Vault.open(Drive.open(root), home, load_signer(home / "keys", "vault")) as vault:
    PrimordialSoupIngestor(vault, shard_bytes=int(sys.argv[4]), home=home).ingest(source)
"""


@pytest.mark.crash
@pytest.mark.parametrize("failure", ["vault.shard_written:kill:6", "vault.journalled:kill:6"])
def test_a_killed_ingest_of_a_folder_skips_the_files_that_are_finished(
    foundry: FoundryPlaces, tmp_path: Path, failure: str
) -> None:
    for at in range(10):
        write_fossils(tmp_path / "in" / f"{at}.ndjson", range(100 * at, 100 * at + 100))
    arguments = [foundry.home, foundry.root, tmp_path / "in", "50000"]
    died = subprocess.run(
        [sys.executable, "-c", INGEST, *map(str, arguments)],
        env=python_env(SCF_FAIL=failure),
        capture_output=True,
        timeout=300,
    )
    assert died.returncode != 0

    read = []
    with open_vault(foundry) as vault:
        ingestor = PrimordialSoupIngestor(vault, home=foundry.home)
        digest = ingestor.validator.validate
        ingestor.validator.validate = lambda f: read.append(f.provenance.index) or digest(f)  # type: ignore[method-assign]
        report = ingestor.ingest(tmp_path / "in")
        assert vault.num_fossils() == 1000

    assert (report.read, report.quarantined) == (1000, 0)
    assert 0 not in read  # the first file was finished
    assert len(read) < 1000 - 2 * 100


def test_a_damaged_origin_is_never_taken_for_whole(foundry: FoundryPlaces, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(b"".join(fossil_line(i) for i in range(30)))[:-50])
    reports = [take(foundry, Counting(), path) for _ in range(2)]

    assert reports[0].reasons == reports[1].reasons == {"unreadable": 1}
    assert reports[1].accepted == 0
    assert reports[1].duplicates == reports[0].accepted


def test_options_give_other_fossils_of_the_same_origin(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py", reason="extra [hdf5]")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tensor"] = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)
        file["x-coordinate"] = np.arange(8.0)
    options: list[ReadOptions] = [{}, {"window_steps": 1}, {"window_steps": 2}, {"patch": (4,)}]
    with open_vault(foundry) as vault:
        ingestor = PrimordialSoupIngestor(vault, home=foundry.home)
        reports = [ingestor.ingest(tmp_path / "a.h5", options=each) for each in options]
        found = [vault.read(cid) for cid in vault.cids()]

    assert [counts(r)[1:] for r in reports] == [(12, 0, 0), (0, 12, 0), (6, 0, 0), (24, 0, 0)]
    stated = {json.dumps(f.block["provenance"].get("options")) for f in found if f}
    assert stated == {"null", '{"window_steps": 2}', '{"patch": [4]}'}
    assert len({f.provenance.origin_sha256 for f in found if f}) == 1


def test_fossils_as_they_are_keep_their_cids(foundry: FoundryPlaces, tmp_path: Path) -> None:
    path = write_fossils(tmp_path / "a.ndjson", range(3))
    take(foundry, Counting(), path)

    assert counts(take(foundry, Counting(), path)) == (3, 0, 3, 0)
    with open_vault(foundry) as vault:
        assert vault.contains(fossil(1).cid)
