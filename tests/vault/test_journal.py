"""The vault: what was committed is there, whatever happened in between."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scf.core import merkle
from scf.core.errors import DriveError, InputError
from scf.daemon.setup import FoundryPlaces
from scf.signing.keys import load_signer
from scf.storage.instance_lock import AlreadyRunning, instance_lock
from scf.storage.partitions import MARKER_NAME, Drive, PartitionFull
from scf.vault.journal import Vault, VaultReadOnly
from scf.vault.manifest import manifest_path, read_manifest
from scf.vault.shard import ShardDamaged, check_shard, leaf, read_shard
from scf.vault.watcher import JournalPrefix, VaultWatcher, prefix_until, shards_root
from support.fossils import fossil, write_fossils
from support.processes import python_env


@pytest.fixture
def vault(foundry: FoundryPlaces):
    with open_vault(foundry) as opened:
        yield opened


def open_vault(foundry: FoundryPlaces) -> Vault:
    signer = load_signer(foundry.home / "keys", "vault")
    return Vault.open(Drive.open(foundry.root), foundry.home, signer)


def put(vault: Vault, indices, *, origin: str = "test", shard_bytes: int = 10**6) -> list[bool]:
    with vault.writing(origin=origin, shard_bytes=shard_bytes) as writer:
        return [writer.add(fossil(index)) for index in indices]


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_committed_fossils_can_be_found_and_read(vault: Vault) -> None:
    assert put(vault, range(5)) == [True] * 5

    assert vault.num_fossils() == 5
    assert vault.contains(fossil(3).cid)
    assert not vault.contains(fossil(9).cid)
    read = vault.read(fossil(3).cid)
    assert read is not None
    assert read.obj == fossil(3).obj
    assert vault.read(fossil(9).cid) is None
    assert list(vault.cids()) == sorted(fossil(i).cid for i in range(5))
    assert list(vault.families()) == [("pendulum.csv#0", 5)]


def test_a_fossil_is_stored_once(vault: Vault) -> None:
    """Twice in one session, or in a later one: it is a duplicate, and no new shard is made."""
    assert put(vault, [1, 1, 2]) == [True, False, True]
    assert put(vault, [1, 2]) == [False, False]
    assert [entry.count for entry in vault.entries()] == [2]


def test_shards_are_cut_at_their_size_and_named_by_their_digest(vault: Vault) -> None:
    put(vault, range(6), shard_bytes=1000)

    entries = list(vault.entries())

    assert [entry.count for entry in entries] == [2, 2, 2]
    for entry in entries:
        assert entry.path == f"shards/{entry.sha256[:2]}/{entry.sha256[:16]}.ndjson"
        check_shard(vault.folder.path / entry.path, entry.summary)
        leaves = [leaf(f.cid, f.verdict) for f in read_shard(vault.folder.path / entry.path)]
        assert merkle.root(leaves).hex() == entry.merkle_root


def test_a_shard_beyond_the_budget_is_refused_and_nothing_of_it_stays(vault: Vault) -> None:
    """Shards committed before stay; with room again, the rest goes in."""
    put(vault, range(4), shard_bytes=1000)
    before = names(vault.folder.path)
    used = sum(entry.size_bytes for entry in vault.entries())
    vault.folder.drive.set_budgets({"fossil_vault": used + 8000})

    with pytest.raises(PartitionFull, match="fossil_vault holds") as refused:
        put(vault, range(4, 30), shard_bytes=1000)

    assert "scf budget set fossil_vault" in str(refused.value.remedy)
    kept = [name for name in names(vault.folder.path) if name not in before]
    assert len(kept) == 2, "one more shard with its manifest fits"
    assert vault.num_fossils() == 6
    assert not list(vault.folder.path.rglob("*shard.ndjson"))

    vault.folder.drive.set_budgets({"fossil_vault": 10**9})
    assert put(vault, range(30), shard_bytes=1000) == [False] * 6 + [True] * 24


def test_the_root_of_what_was_offered_is_over_sorted_cids(vault: Vault) -> None:
    """Duplicates count once; the order of arrival does not matter."""
    put(vault, [0])
    with vault.writing(origin="test") as writer:
        for index in (2, 0, 1, 2):
            writer.add(fossil(index))
        root = writer.fossils_root()

    assert root == merkle.root(sorted(fossil(i).cid.encode() for i in range(3))).hex()


def test_manifest_is_signed_and_the_same_each_time(vault: Vault, foundry: FoundryPlaces) -> None:
    put(vault, range(3))
    entry = next(vault.entries())
    path = manifest_path(vault.folder.path / entry.path)
    key = load_signer(foundry.home / "keys", "vault").public_key

    assert read_manifest(path, [key]) == entry.summary


def test_a_flipped_bit_in_a_shard_is_found(vault: Vault) -> None:
    put(vault, range(3))
    entry = next(vault.entries())
    path = vault.folder.path / entry.path
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)

    with pytest.raises(ShardDamaged, match="digest"):
        check_shard(path, entry.summary)


def test_the_index_is_rebuilt_from_the_shards(vault: Vault, foundry: FoundryPlaces) -> None:
    """Losing the home's index loses nothing."""
    put(vault, range(4))
    put(vault, range(4, 6))
    before = (list(vault.cids()), list(vault.families()), vault.locate(fossil(5).cid))
    vault.close()
    for path in foundry.home.glob("vault_index.db*"):
        path.unlink()

    with open_vault(foundry) as again:
        assert (list(again.cids()), list(again.families()), again.locate(fossil(5).cid)) == before


def test_the_index_belongs_to_its_drive(vault: Vault, foundry: FoundryPlaces, tmp_path) -> None:
    """With another drive under the same home, fossils of the first one are not claimed."""
    put(vault, range(4))
    other = Drive.scaffold(tmp_path / "other")

    with Vault.open(other, foundry.home) as second:
        assert second.num_fossils() == 0


def test_without_a_key_the_vault_is_read_only(vault: Vault, foundry: FoundryPlaces) -> None:
    put(vault, [0])
    reader = Vault.open(Drive.open(foundry.root), foundry.home)

    assert reader.contains(fossil(0).cid)
    with pytest.raises(VaultReadOnly), reader.writing(origin="x"):
        pass
    reader.close()


def test_an_error_in_the_middle_leaves_no_trace(vault: Vault) -> None:
    with pytest.raises(RuntimeError), vault.writing(origin="x") as writer:
        writer.add(fossil(0))
        raise RuntimeError("the caller failed")

    assert vault.num_fossils() == 0
    assert names(vault.folder.path) == []
    assert put(vault, [0]) == [True]


def test_one_writer_at_a_time(vault: Vault, foundry: FoundryPlaces, monkeypatch) -> None:
    monkeypatch.setattr("scf.vault.journal._WRITER_WAIT_S", 0.05)
    with (
        instance_lock(foundry.home / "vault.lock", holder="another"),
        pytest.raises(AlreadyRunning),
        vault.writing(origin="x"),
    ):
        pass


def test_a_root_whose_marker_is_gone_takes_nothing(vault: Vault, foundry: FoundryPlaces) -> None:
    """The drive vanished in the middle of an ingest: an error, and no shard under its name."""
    with pytest.raises(DriveError), vault.writing(origin="x") as writer:
        writer.add(fossil(0))
        (foundry.root / MARKER_NAME).unlink()
        writer.flush()

    assert [n for n in names(vault.folder.path) if n.endswith(".ndjson")] == []


def test_a_torn_journal_line_hides_no_good_one(vault: Vault) -> None:
    put(vault, [0])
    journal = vault.folder.path / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"path": "shards/aa')
    put(vault, [1])

    assert [entry.count for entry in vault.entries()] == [1, 1]
    assert vault.num_fossils() == 2


def test_a_lost_journal_is_written_again_from_the_manifests(
    vault: Vault, foundry: FoundryPlaces
) -> None:
    """What the vault signed comes back; what does not fit its manifest is set aside, not lost."""
    put(vault, [0])
    put(vault, [1])
    good, bad = list(vault.entries())
    damaged = vault.folder.path / bad.path
    damaged.write_bytes(damaged.read_bytes()[:-10])
    (vault.folder.path / "journal.log").unlink()
    vault.close()

    with open_vault(foundry) as again:
        assert again.num_fossils() == 0
        put(again, [2])
        assert sorted(again.cids()) == sorted(fossil(i).cid for i in (0, 2))
        assert good.path in [entry.path for entry in again.entries()]
        set_aside = again.folder.path / "quarantine" / f"shard-{damaged.stem}.jsonl"
        assert set_aside.is_file()
        assert put(again, [1]) == [True]


def test_a_journal_line_cannot_point_outside_the_vault(vault: Vault) -> None:
    put(vault, [0])
    line = json.loads((vault.folder.path / "journal.log").read_text())
    line["path"] = "../../etc/passwd"
    with (vault.folder.path / "journal.log").open("a") as file:
        file.write(json.dumps(line) + "\n")

    assert len(list(vault.entries())) == 1


def test_the_watcher_sees_new_shards_once(vault: Vault) -> None:
    watcher = VaultWatcher(vault.folder.path)
    assert not watcher.has_changed()

    put(vault, [0])
    assert watcher.has_changed()
    assert [entry.count for entry in watcher.fresh_entries()] == [1]
    assert not watcher.has_changed()
    assert watcher.fresh_entries() == []


def test_a_prefix_has_the_same_root_however_it_was_read(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one go, shard by shard, from what was remembered, a few entries a call: one root."""
    stepwise = VaultWatcher(vault.folder.path)
    for index in range(7):
        put(vault, [index])
        assert [entry.count for entry in stepwise.fresh_entries()] == [1]
        kept = json.loads(json.dumps(stepwise.prefix.to_json()))
        stepwise = VaultWatcher(vault.folder.path, JournalPrefix.from_json(kept))
        assert not stepwise.has_changed()
    at_once = VaultWatcher(vault.folder.path)
    at_once.fresh_entries()
    monkeypatch.setattr("scf.vault.watcher.ENTRIES_MAX", 3)
    in_parts = VaultWatcher(vault.folder.path)
    assert [len(in_parts.fresh_entries()) for _ in range(4)] == [3, 3, 1, 0]

    assert at_once.prefix == stepwise.prefix == in_parts.prefix
    assert at_once.prefix.root == shards_root(entry.summary for entry in vault.entries())
    assert (at_once.prefix.shards, at_once.prefix.fossils) == (7, 7)
    middle = prefix_until(vault.folder.path, at_once.prefix.offset - 1)
    assert middle.shards == 6
    assert middle.root != at_once.prefix.root


@pytest.mark.parametrize(
    "harm", [{"offset": -1}, {"shards": 3}, {"peaks": ["00"]}, {"peaks": None}, {"fossils": 1.0}]
)
def test_a_prefix_that_is_none_is_refused(harm: dict[str, object]) -> None:
    good = {"offset": 10, "shards": 1, "fossils": 1, "peaks": ["0" * 64]}
    assert JournalPrefix.from_json(good).shards == 1
    with pytest.raises(InputError):
        JournalPrefix.from_json({**good, **harm})


WRITE = """
import sys
from pathlib import Path
from scf.signing.keys import load_signer
from scf.storage.partitions import Drive
from scf.vault.fossil import parse_fossil
from scf.vault.journal import Vault

home, root, source = map(Path, sys.argv[1:])
vault = Vault.open(Drive.open(root), home, load_signer(home / "keys", "vault"))
with vault.writing(origin="crash") as writer:
    for line in source.read_bytes().splitlines():
        writer.add(parse_fossil(line))
"""


@pytest.mark.crash
@pytest.mark.parametrize("how", ["kill", "enospc"])
@pytest.mark.parametrize(
    "name",
    [
        "vault.shard_written",
        "vault.manifest_written",
        "vault.journalled",
        "durable.before_rename",
        "durable.after_rename",
        "durable.append.before",
        "durable.append.after",
    ],
)
def test_a_crash_anywhere_loses_and_repeats_nothing(
    foundry: FoundryPlaces, tmp_path: Path, name: str, how: str
) -> None:
    """Whatever step failed, the next ingest ends with each fossil once, and no half shard."""
    source = write_fossils(tmp_path / "in.ndjson", range(3))
    arguments = [sys.executable, "-c", WRITE, str(foundry.home), str(foundry.root), str(source)]

    died = subprocess.run(
        arguments, env=python_env(SCF_FAIL=f"{name}:{how}"), capture_output=True, timeout=300
    )
    assert died.returncode != 0
    subprocess.run(arguments, env=python_env(), check=True, timeout=300)

    with open_vault(foundry) as vault:
        shards = list(vault.folder.path.rglob("*.ndjson"))
        stored = [f.cid for path in shards for f in read_shard(path)]
        assert sorted(stored) == sorted(fossil(i).cid for i in range(3))
        assert list(vault.cids()) == sorted(stored)
        for entry in vault.entries():
            check_shard(vault.folder.path / entry.path, entry.summary)
        assert [n for n in names(vault.folder.path) if ".tmp-" in n] == []
