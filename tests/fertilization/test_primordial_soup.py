"""Ingest: everything that was met is accounted for, and nothing half-written is ever visible."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from scf.core import merkle
from scf.core.errors import BudgetExceeded, DriveError, InputError, UsageError
from scf.daemon.setup import FoundryPlaces, initialise
from scf.fertilization.primordial_soup import PrimordialSoupIngestor
from scf.fertilization.readers.registry import UnknownFormat
from scf.signing.keys import load_signer
from scf.storage.partitions import MARKER_NAME, Drive
from scf.vault.journal import Vault
from scf.vault.shard import check_shard
from support.fossils import fossil, fossil_line, write_fossils
from support.processes import python_env
from support.vaults import ingest, open_vault


@pytest.fixture
def vault(foundry: FoundryPlaces):
    with open_vault(foundry) as opened:
        yield opened


def quarantined(vault: Vault) -> list[dict]:
    folder = vault.folder.path / "quarantine"
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_fossils_keep_their_identity_and_their_own_verifier(vault: Vault, tmp_path: Path) -> None:
    report = ingest(vault, write_fossils(tmp_path / "in.ndjson", range(3)))

    assert report.to_json() == {
        "origin": "in.ndjson",
        "reader": "ndjson",
        "read": 3,
        "accepted": 3,
        "duplicates": 0,
        "quarantined": 0,
        "fossils_root": merkle.root(sorted(fossil(i).cid.encode() for i in range(3))).hex(),
        "reasons": {},
        "quarantine": [],
        "skipped": [],
    }
    read = vault.read(fossil(1).cid)
    assert read is not None
    assert read.obj == fossil(1).obj
    assert read.verifier["name"] == "by hand"


def test_ingesting_again_finds_duplicates_only(vault: Vault, tmp_path: Path) -> None:
    path = write_fossils(tmp_path / "in.ndjson", range(3))
    first = ingest(vault, path)
    again = ingest(vault, path)

    assert (again.read, again.accepted, again.duplicates) == (3, 0, 3)
    assert again.fossils_root == first.fossils_root
    assert len(list(vault.entries())) == 1


NAN = {"dtype": "float64", "shape": [1], "unit": "m", "b64": "AAAAAAAA+H8="}
SHORT = {"dtype": "float64", "shape": [3], "unit": "m", "values": [1.0, 2.0]}
BAD_LINES = {
    "json": fossil_line(1)[: len(fossil_line(1)) // 2] + b"\n",
    "cid": fossil_line(1, cid=fossil(9).cid),
    "verdict": fossil_line(1, verifier={"name": "v", "version": "1", "verdict": "FAIL"}),
    "not-finite": fossil_line(1, fields={"x": NAN}, cid="b"),
    "shape": fossil_line(1, fields={"x": SHORT}, cid="b"),
    "schema": fossil_line(1, schema="scf.fossil/9"),
    "provenance": fossil_line(1, provenance={"origin": "x"}),
    "field": fossil_line(1, fields={"x": {**SHORT, "dtype": ">f8"}}, cid="b"),
    "form": b"[]\n",
    "line": b"[" + b" " * 2**20 + b"]\n",
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_quarantined_with_its_place_and_the_rest_goes_on(
    vault: Vault, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "in.ndjson"
    path.write_bytes(fossil_line(0) + BAD_LINES[kind] + fossil_line(2))

    report = ingest(vault, path)

    assert (report.read, report.accepted, report.quarantined) == (3, 2, 1)
    assert report.reasons == {kind: 1}
    (entry,) = quarantined(vault)
    assert (entry["origin"], entry["kind"], entry["line"]) == ("in.ndjson", kind, 2)
    assert entry["offset"] == len(fossil_line(0))
    assert entry["reason"]
    assert vault.contains(fossil(0).cid)
    assert vault.contains(fossil(2).cid)


def test_a_half_written_last_line_is_quarantined(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    path.write_bytes(fossil_line(0) + fossil_line(1)[:-30])

    report = ingest(vault, path)

    assert (report.accepted, report.quarantined) == (1, 1)
    assert quarantined(vault)[0]["text"] == fossil_line(1)[:-30].decode()


def test_a_whole_last_line_without_newline_is_a_fossil(vault: Vault, tmp_path: Path) -> None:
    """Its CID tells that nothing is missing."""
    path = tmp_path / "in.ndjson"
    path.write_bytes(fossil_line(0) + fossil_line(1).rstrip())

    assert ingest(vault, path).accepted == 2


def test_a_duplicate_cid_is_counted_once_as_accepted(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    path.write_bytes(fossil_line(0) + fossil_line(1) + fossil_line(0))

    report = ingest(vault, path)

    assert (report.read, report.accepted, report.duplicates) == (3, 2, 1)


def test_a_pickle_that_would_run_code_is_quarantined_and_does_not(
    vault: Vault, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    path = tmp_path / "in.pkl"
    path.write_bytes(pickle.dumps({"x": Hostile()}))

    report = ingest(vault, path)

    assert not trace.exists()
    assert (report.read, report.quarantined, report.reasons) == (1, 1, {"pickle": 1})


def test_files_that_cannot_be_read_are_quarantined_and_the_rest_goes_on(
    vault: Vault, tmp_path: Path
) -> None:
    """A drive that fails on one file, a link to nowhere, and an archive cut in the middle."""
    folder = tmp_path / "in"
    write_fossils(folder / "good.ndjson", range(2))
    (folder / "fails.ndjson").symlink_to("/proc/self/mem")
    (folder / "nowhere.ndjson").symlink_to(tmp_path / "absent")
    packed = gzip.compress(b"".join(fossil_line(i) for i in range(10, 40)))
    (folder / "torn.ndjson.gz").write_bytes(packed[:-100])

    report = ingest(vault, folder)

    origins = {entry["origin"] for entry in quarantined(vault)}
    assert origins == {"fails.ndjson", "nowhere.ndjson", "torn.ndjson.gz"}
    assert report.reasons["unreadable"] == 3
    assert report.read == report.accepted + report.quarantined
    assert vault.contains(fossil(1).cid)


def test_a_folder_gives_origins_relative_to_itself(vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.csv").write_text("x [m]\n1\n")
    (folder / ".hidden.csv").write_text("x [m]\n2\n")
    (folder / "notes.txt").write_text("hello")
    os.mkfifo(folder / "pipe.csv")

    report = ingest(vault, folder)

    assert (report.origin, report.read, report.skipped) == ("in", 1, ["notes.txt"])
    (cid,) = vault.cids()
    read = vault.read(cid)
    assert read is not None
    assert read.provenance.origin == "sub/a.csv"
    assert (read.provenance.reader, read.provenance.index) == ("csv", 0)


def test_a_file_given_directly_is_its_own_origin(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x [m]\n1\n")
    ingest(vault, tmp_path / "a.csv")

    (cid,) = vault.cids()
    read = vault.read(cid)
    assert read is not None
    assert read.provenance.origin == "a.csv"


def test_a_rehearsal_says_the_same_and_writes_nothing(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    path.write_bytes(fossil_line(0) + b"{\n" + fossil_line(0))

    rehearsed = ingest(vault, path, dry_run=True)

    assert vault.num_fossils() == 0
    assert [p for p in vault.folder.path.rglob("*") if p.is_file()] == []
    real = ingest(vault, path)
    assert rehearsed.fossils_root == real.fossils_root
    assert (rehearsed.accepted, rehearsed.duplicates, rehearsed.quarantined) == (1, 1, 1)


def test_what_cannot_be_meant_is_an_error(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(InputError, match="no such file"):
        ingest(vault, tmp_path / "absent")
    with pytest.raises(UnknownFormat):
        ingest(vault, tmp_path / "notes.txt")
    with pytest.raises(UsageError, match="no reader 'hdf5'"):
        ingest(vault, tmp_path / "notes.txt", reader="hdf5")


def test_a_reader_can_be_named(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "table.dat").write_text("x [m]\n1\n")

    assert ingest(vault, tmp_path / "table.dat", reader="csv").accepted == 1


def test_progress_is_told(vault: Vault, tmp_path: Path) -> None:
    told = []
    ingestor = PrimordialSoupIngestor(vault, progress=told.append)
    ingestor.ingest(write_fossils(tmp_path / "in.ndjson", range(600)))

    assert [step.read for step in told] == [0, 256, 512, 600]
    assert (told[-1].files_done, told[-1].files_total) == (1, 1)


def test_a_root_whose_marker_is_gone_takes_nothing(
    vault: Vault, foundry: FoundryPlaces, tmp_path: Path
) -> None:
    (foundry.root / MARKER_NAME).unlink()

    with pytest.raises(DriveError):
        ingest(vault, write_fossils(tmp_path / "in.ndjson", range(3)))
    assert list(vault.folder.path.rglob("*.ndjson")) == []


def test_a_full_disk_stops_the_ingest_and_keeps_what_was_whole(
    small_disk: Path, tmp_path: Path, foundry: FoundryPlaces
) -> None:
    """2 MB of disk, 2.5 MB of fossils: whole shards stay, the rest is absent, and room helps."""
    drive = Drive.scaffold(small_disk / "root")
    drive.set_budgets({"fossil_vault": 10**9})  # the disk is to be full, not the budget
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 400_000)
    path = write_fossils(tmp_path / "in.ndjson", range(5000))
    signer = load_signer(foundry.home / "keys", "vault")
    with Vault.open(drive, foundry.home, signer) as vault:
        ingestor = PrimordialSoupIngestor(vault, shard_bytes=300_000)
        with pytest.raises(BudgetExceeded):
            ingestor.ingest(path)

        assert 0 < vault.num_fossils() < 5000
        for entry in vault.entries():
            check_shard(vault.folder.path / entry.path, entry.summary)
        assert [p for p in vault.folder.path.rglob("*") if ".tmp-" in p.name] == []
        kept = vault.num_fossils()
        ballast.unlink()
        again = PrimordialSoupIngestor(vault, shard_bytes=300_000)
        few = write_fossils(tmp_path / "few.ndjson", range(kept + 100))
        report = again.ingest(few)
        assert (report.accepted, report.duplicates) == (100, kept)


def test_a_read_only_vault_takes_nothing_and_says_so(
    small_disk: Path, tmp_path: Path, foundry: FoundryPlaces
) -> None:
    """The drive is mounted read-only: exit code of a drive, nothing in quarantine."""
    drive = Drive.scaffold(small_disk / "root")
    path = write_fossils(tmp_path / "in.ndjson", range(10))
    signer = load_signer(foundry.home / "keys", "vault")
    with Vault.open(drive, foundry.home, signer) as vault:
        PrimordialSoupIngestor(vault).ingest(path)
        more = write_fossils(tmp_path / "more.ndjson", range(20))
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True, timeout=20)
        try:
            with pytest.raises(DriveError, match="refuses to write"):
                PrimordialSoupIngestor(vault).ingest(more)
            assert vault.num_fossils() == 10
            rehearsed = PrimordialSoupIngestor(vault).ingest(more, dry_run=True)
            assert (rehearsed.accepted, rehearsed.duplicates) == (10, 10)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True, timeout=20)
        assert PrimordialSoupIngestor(vault).ingest(more).accepted == 10


def test_a_full_home_stops_the_ingest_and_the_next_completes_it(
    small_disk: Path, tmp_path: Path
) -> None:
    """The index and the memory of origins lie in the home, on another disk than the vault."""
    places = initialise(small_disk / "home", tmp_path / "drive")
    path = write_fossils(tmp_path / "in.ndjson", range(4000))
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_400_000)

    def take_in():
        with open_vault(places) as vault:
            ingestor = PrimordialSoupIngestor(vault, shard_bytes=500_000, home=places.home)
            return ingestor.ingest(path), vault.num_fossils()

    with pytest.raises(BudgetExceeded, match="home's disk"):
        take_in()
    ballast.unlink()
    report, count = take_in()

    assert count == 4000
    assert report.read == 4000 == report.accepted + report.duplicates


INGEST = """
import json, resource, sys
from pathlib import Path
from scf.fertilization.primordial_soup import PrimordialSoupIngestor
from scf.signing.keys import load_signer
from scf.storage.partitions import Drive
from scf.vault.journal import Vault

home, root, source = map(Path, sys.argv[1:4])
shard_bytes = int(sys.argv[4])
vault = Vault.open(Drive.open(root), home, load_signer(home / "keys", "vault"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = PrimordialSoupIngestor(vault, shard_bytes=shard_bytes).ingest(source).to_json()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
json.dump({**report, "grown_kib": after - before}, sys.stdout)
"""


def run_ingest(foundry: FoundryPlaces, source: Path, shard_bytes: int = 10**8, **env: str):
    return subprocess.run(
        [sys.executable, "-c", INGEST, foundry.home, foundry.root, source, str(shard_bytes)],
        env=python_env(**env),
        capture_output=True,
        timeout=120,
    )


def test_a_line_of_200_mb_is_refused_in_bounded_memory(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    path = tmp_path / "in.ndjson"
    with path.open("wb") as file:
        file.write(fossil_line(0) + b'{"schema": "scf.fossil/1", "x": "')
        for _ in range(200):
            file.write(b"x" * 10**6)
        file.write(b'"}\n' + fossil_line(1))

    done = run_ingest(foundry, path)

    report = json.loads(done.stdout)
    assert (report["read"], report["accepted"], report["quarantined"]) == (3, 2, 1)
    assert report["reasons"] == {"line": 1}
    assert report["grown_kib"] < 180_000  # the limit for a line is 64 MiB; two are held at most


@pytest.mark.crash
@pytest.mark.parametrize(
    "failure",
    [
        "vault.shard_written:kill:2",
        "vault.manifest_written:kill:2",
        "vault.journalled:kill:2",
        "durable.before_rename:kill:3",
        "vault.shard_written:enospc:2",
        "vault.journalled:error:1",
    ],
)
def test_an_ingest_that_died_is_completed_by_the_next(
    foundry: FoundryPlaces, tmp_path: Path, failure: str
) -> None:
    """Several shards, bad lines among them: afterwards each good fossil is there exactly once."""
    path = tmp_path / "in.ndjson"
    path.write_bytes(b"".join(fossil_line(i) + (b"{\n" if i % 4 == 0 else b"") for i in range(12)))

    died = run_ingest(foundry, path, 2500, SCF_FAIL=failure)
    assert died.returncode != 0
    report = json.loads(run_ingest(foundry, path, 2500).stdout)

    assert report["read"] == 15
    assert (report["accepted"] + report["duplicates"], report["quarantined"]) == (12, 3)
    with open_vault(foundry) as vault:
        assert sorted(vault.cids()) == sorted(fossil(i).cid for i in range(12))
        counted = 0
        for entry in vault.entries():
            check_shard(vault.folder.path / entry.path, entry.summary)
            counted += entry.count
        assert counted == 12
        assert len({e["line"] for e in quarantined(vault) if e.get("origin")}) >= 3


def test_ten_thousand_fossils_in_seconds_and_bounded_memory(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    """Memory grows by a constant: no Python object a fossil is kept."""
    few = write_fossils(tmp_path / "few.ndjson", range(500))
    many = tmp_path / "many.ndjson"
    write_fossils(many, range(500, 10_500))

    small = json.loads(run_ingest(foundry, few).stdout)
    large = json.loads(run_ingest(foundry, many).stdout)

    assert large["accepted"] == 10_000
    assert large["grown_kib"] - small["grown_kib"] < 20_000
