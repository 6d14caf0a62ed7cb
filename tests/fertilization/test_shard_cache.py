"""The derived shard cache: same fossils, same order, and nothing that cannot be deleted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import DriveError
from scf.daemon.setup import FoundryPlaces
from scf.fertilization import rows_file, windows
from scf.fertilization.batch_plan import make_plan
from scf.fertilization.fossil_batcher import FossilBatcher
from scf.fertilization.rows_file import CacheDamaged, NotRows, RowsFile
from scf.fertilization.shard_cache import ShardCache, SourceFile
from scf.storage.partitions import Folder
from scf.vault.shard import ShardDamaged
from support.fossils import fossil_line, fossil_object, write_fossils, write_random_fossils
from support.vaults import ingest, open_vault

BUDGET = 10**9


def minibatches(source: Path, cache: Path | None, **options) -> list[tuple]:
    batcher = FossilBatcher(
        source,
        **{"batch_size": 8, "as_numpy": True, "window_records": 128, "cache_root": cache} | options,
    )
    told = [
        (list(m["_cid"]), list(m["_family"]), m["t"].tobytes(), batcher.get_state())
        for _ in range(2)
        for m in batcher.stream_minibatches()
    ]
    batcher.close()
    return told


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_random_fossils(tmp_path / "in.ndjson", 300)


def cache_at(path: Path, budget_bytes: int = BUDGET) -> ShardCache:
    return ShardCache(Folder.at(path), budget_bytes=budget_bytes)


@pytest.mark.parametrize("verify", ["cached", "block", "always"])
@pytest.mark.parametrize("memory_bytes", [0, 2**20])
def test_cached_or_not_the_minibatches_and_states_are_the_same(
    source: Path, tmp_path: Path, verify: str, memory_bytes: int
) -> None:
    expected = minibatches(source, None)

    for _ in range(2):  # built, then found
        got = minibatches(source, tmp_path / "cache", verify=verify, memory_bytes=memory_bytes)
        assert got == expected
    assert len(list((tmp_path / "cache").glob("*.rows"))) == 1


def test_large_rows_are_read_straight_into_minibatches(tmp_path: Path) -> None:
    source = write_random_fossils(tmp_path / "in.ndjson", 150, size=2048)
    options = {"window_records": 64, "batch_size": 10}
    expected = minibatches(source, None, **options)

    for verify in ("cached", "block"):
        options |= {"memory_bytes": 0, "verify": verify}
        assert minibatches(source, tmp_path / "cache", **options) == expected


def test_a_shard_of_several_kinds_and_a_choice_of_fields(tmp_path: Path) -> None:
    fields = {
        "a": {"dtype": "int8", "shape": [], "unit": "", "values": [3]},
        "t": {"dtype": "float32", "shape": [2, 2], "unit": "K", "values": [1, 2, 3, 4]},
        "z": {"dtype": "float64", "shape": [1], "unit": "m", "values": [0.5]},
    }
    source = tmp_path / "in.ndjson"
    lines = [fossil_line(i, fields=fields, params={"i": i}) for i in range(70)]
    source.write_bytes(b"".join([*lines, *(fossil_line(i) for i in range(5)), b"half a li"]))
    for wanted in (["t"], ["a", "z"], None):
        options = {"fields": wanted, "batch_size": 7, "as_numpy": True, "memory_bytes": 0}
        plain = FossilBatcher(source, **options)
        cached = FossilBatcher(source, cache_root=tmp_path / "cache", **options)
        assert plain.refusals.kinds == cached.refusals.kinds
        assert cached.specs == plain.specs
        pairs = zip(plain.stream_minibatches(), cached.stream_minibatches(), strict=True)
        for ours, theirs in pairs:
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])
        plain.close()
        cached.close()


def test_blocks_are_aligned_and_a_changed_byte_is_noticed(source: Path, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "cache")
    rows = cache.open(SourceFile(source))
    assert rows is not None
    kind = rows.kinds[0]
    assert (kind.offsets % 4096 == 0).all()
    data = bytearray(rows.path.read_bytes())
    data[int(kind.offsets[2]) + 3000] ^= 1
    rows.path.write_bytes(data)

    minibatches(
        source, tmp_path / "cache", memory_bytes=0
    )  # verify=cached trusts unscrubbed blocks
    with pytest.raises(CacheDamaged, match="block 2"):
        minibatches(source, tmp_path / "cache", memory_bytes=0, verify="block")
    assert not rows.path.exists()
    assert minibatches(source, tmp_path / "cache", verify="block") == minibatches(source, None)


def test_the_scrub_reaches_every_block_within_a_hundred_epochs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "SCRUB_EVERY", 3)
    cache = cache_at(tmp_path / "cache")
    rows = cache.open(SourceFile(source))
    assert rows is not None
    offset = int(rows.kinds[0].offsets[4]) + 100
    batcher = FossilBatcher(source, batch_size=50, as_numpy=True, cache_root=tmp_path / "cache")
    list(batcher.stream_minibatches())
    with rows.path.open("r+b") as file:
        file.seek(offset)
        file.write(b"rot")

    with pytest.raises(CacheDamaged):
        for _ in range(3):
            list(batcher.stream_minibatches())
    batcher.close()


def test_it_is_built_anew_when_the_source_or_the_format_changes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minibatches(source, tmp_path / "cache")
    source.write_bytes(source.read_bytes() + fossil_line(999, fields=fossil_object()["fields"]))
    assert minibatches(source, tmp_path / "cache") == minibatches(source, None)

    path = next((tmp_path / "cache").glob("*.rows"))
    monkeypatch.setattr(rows_file, "SCHEMA", "scf.shard-cache/2")
    with pytest.raises(NotRows):
        RowsFile(path, source)
    assert minibatches(source, tmp_path / "cache") == minibatches(source, None)


@pytest.mark.parametrize("cut", [0, 10, 5000, -1, -30, -200])
def test_a_file_cut_short_is_built_anew(source: Path, tmp_path: Path, cut: int) -> None:
    minibatches(source, tmp_path / "cache")
    path = next((tmp_path / "cache").glob("*.rows"))
    path.write_bytes(path.read_bytes()[:cut])

    assert minibatches(source, tmp_path / "cache") == minibatches(source, None)


def test_deleting_it_costs_nothing_but_time(source: Path, tmp_path: Path) -> None:
    expected = minibatches(source, tmp_path / "cache")
    cache = cache_at(tmp_path / "cache")

    assert cache.clear() > 0
    assert cache.size_bytes() == 0
    assert minibatches(source, tmp_path / "cache") == expected


def test_the_budget_holds_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    sources = [write_random_fossils(tmp_path / f"{i}.ndjson", 100, seed=i) for i in range(3)]
    first = cache_at(tmp_path / "cache").open(SourceFile(sources[0]))
    assert first is not None
    size = first.path.stat().st_size
    cache = cache_at(tmp_path / "cache", budget_bytes=3 * size)
    second = cache.open(SourceFile(sources[1]))
    assert second is not None
    time.sleep(0.02)
    cache.open(SourceFile(sources[0]))  # used again, so that the second is now the oldest
    cache.budget_bytes = 2 * size + 4096

    third = cache.open(SourceFile(sources[2]))

    assert third is not None
    assert first.path.exists()
    assert not second.path.exists()
    assert cache.size_bytes() <= cache.budget_bytes


def test_with_no_room_the_same_order_streams_from_the_lines(tmp_path: Path) -> None:
    """Also when there is room for some shards and not for others: none of them is pushed out."""
    sources = [write_random_fossils(tmp_path / f"{i}.ndjson", 100, seed=i) for i in range(3)]
    expected = minibatches(sources, None)
    one = cache_at(tmp_path / "probe").open(SourceFile(sources[0]))
    assert one is not None
    size = one.path.stat().st_size

    for budget in (1000, size + 4096, 2 * size + 8192):
        root = tmp_path / f"cache{budget}"
        got = minibatches(sources, root, cache_bytes=budget, memory_bytes=0)
        assert got == expected
        assert cache_at(root).size_bytes() <= budget


def test_a_full_disk_or_a_read_only_drive_only_makes_it_slower(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = minibatches(source, None)
    for fault in ("enospc", "error"):
        for point in ("durable.before_write", "durable.before_rename"):
            monkeypatch.setenv("SCF_FAIL", f"{point}:{fault}")
            assert minibatches(source, tmp_path / "cache") == expected
            assert list((tmp_path / "cache").glob("*.rows")) == []


BUILD = """
import sys
from pathlib import Path
from scf.fertilization.fossil_batcher import FossilBatcher
batcher = FossilBatcher(Path(sys.argv[1]), batch_size=8, as_numpy=True, cache_root=sys.argv[2])
print(sum(len(m["_cid"]) for m in batcher.stream_minibatches()))
"""


def build_process(source: Path, cache: Path, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source), str(cache)],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.crash
def test_killed_while_building_it_leaves_nothing_that_counts(source: Path, tmp_path: Path) -> None:
    for point in ("durable.before_rename", "durable.after_rename"):
        process = build_process(source, tmp_path / "cache", SCF_FAIL=f"{point}:kill")
        process.communicate()
        assert process.returncode == -signal.SIGKILL

        assert minibatches(source, tmp_path / "cache") == minibatches(source, None)
        assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".rows"]
        cache_at(tmp_path / "cache").clear()


def test_two_builders_do_each_other_no_harm(source: Path, tmp_path: Path) -> None:
    builders = [build_process(source, tmp_path / "cache") for _ in range(2)]

    assert [b.communicate()[0].strip() for b in builders] == ["300", "300"]
    assert minibatches(source, tmp_path / "cache") == minibatches(source, None)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".rows"]


def test_a_pulled_drive_is_an_error_and_the_state_stays_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_random_fossils(tmp_path / "in.ndjson", 200, size=2048)
    for memory_bytes in (0, 2**30):
        options = {"batch_size": 8, "as_numpy": True, "window_records": 64}
        options |= {"memory_bytes": memory_bytes, "cache_root": tmp_path / "cache"}
        batcher = FossilBatcher(source, **options)
        stream = batcher.stream_minibatches()
        next(stream)
        state = batcher.get_state()
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", unplugged)
            with pytest.raises(DriveError, match="cannot be read any more"):
                for _ in stream:
                    state = batcher.get_state()
        batcher.close()
        resumed = FossilBatcher(source, **options)
        resumed.set_state(state)
        whole = FossilBatcher(source, **options)
        done = state["position"] // 8
        expected = [m["_cid"] for m in whole.stream_minibatches()][done:]
        assert [m["_cid"] for m in resumed.stream_minibatches()] == expected
        resumed.close()
        whole.close()


def unplugged(*_: object) -> int:
    raise OSError(5, "Input/output error")


def test_a_cache_file_that_shrinks_under_way_is_an_error(tmp_path: Path) -> None:
    source = write_random_fossils(tmp_path / "in.ndjson", 200, size=2048)
    options = {"batch_size": 8, "as_numpy": True, "memory_bytes": 0, "window_records": 64}
    batcher = FossilBatcher(source, cache_root=tmp_path / "cache", **options)
    stream = batcher.stream_minibatches()
    next(stream)
    os.truncate(next((tmp_path / "cache").glob("*.rows")), 4096)

    with pytest.raises(ShardDamaged, match="ends before"):
        list(stream)
    batcher.close()


def test_a_plan_is_cached_on_its_drive_and_still_holds_the_vault_to_its_word(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    with open_vault(foundry) as vault:
        ingest(vault, write_fossils(tmp_path / "in.ndjson", range(150)))
        plan = make_plan(vault, seed=1)
    root = foundry.root / "fossil_vault"
    options = {"batch_size": 8, "as_numpy": True, "vault_root": root}

    batcher = FossilBatcher(plan, **options)
    expected = [m["_cid"] for m in batcher.stream_minibatches()]
    batcher.close()
    assert len(list((foundry.root / "system_cache" / "shards").glob("*.rows"))) == 1
    without = FossilBatcher(plan, cache_bytes=0, **options)
    assert [m["_cid"] for m in without.stream_minibatches()] == expected
    path = root / plan.shards[0].path
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardDamaged, match="promises"):
        FossilBatcher(plan, **options)
    path.unlink()
    with pytest.raises(ShardDamaged):
        FossilBatcher(plan, **options)


def test_a_drive_that_cannot_take_a_cache_is_streamed_from(
    foundry: FoundryPlaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_vault(foundry) as vault:
        ingest(vault, write_fossils(tmp_path / "in.ndjson", range(150)))
        plan = make_plan(vault, seed=1)
    makes = Path.mkdir

    def mkdir(path: Path, *args: object, **options: object) -> None:
        if path.name == "shards" and path.parent.name == "system_cache":
            raise PermissionError(13, "Permission denied")
        makes(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    batcher = FossilBatcher(
        plan, batch_size=8, as_numpy=True, split="all", vault_root=foundry.root / "fossil_vault"
    )

    assert sum(len(m["_cid"]) for m in batcher.stream_minibatches()) == 150
    assert not (foundry.root / "system_cache" / "shards").exists()
