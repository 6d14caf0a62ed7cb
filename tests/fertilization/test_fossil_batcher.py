"""Minibatches: every usable fossil once, in an order that can be resumed and shared out."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from scf.core.errors import InputError, MissingTool, UsageError
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.batch_plan import make_plan
from scf.fertilization.fossil_batcher import (
    FossilBatcher,
    NoFossils,
    StateMismatch,
    read_records,
)
from scf.vault.shard import ShardDamaged
from support.fossils import fossil, fossil_line, fossil_object, write_fossils, write_random_fossils
from support.vaults import ingest, open_vault


def numpy_batcher(source, **options) -> FossilBatcher:
    return FossilBatcher(source, **{"batch_size": 8, "as_numpy": True} | options)


def cids(batcher: FossilBatcher) -> list[list[str]]:
    return [minibatch["_cid"] for minibatch in batcher.stream_minibatches()]


def flat(minibatches: list[list[str]]) -> list[str]:
    return [cid for minibatch in minibatches for cid in minibatch]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_fossils(tmp_path / "in.ndjson", range(150))


def test_one_epoch_is_every_fossil_once_with_its_numbers(source: Path) -> None:
    batcher = numpy_batcher(source)
    minibatches = list(batcher.stream_minibatches())

    assert [len(m["_cid"]) for m in minibatches] == [8] * 18 + [6]
    assert batcher.num_minibatches == 19
    expected = {fossil(i).cid: fossil(i).arrays()["x"] for i in range(150)}
    assert sorted(flat([m["_cid"] for m in minibatches])) == sorted(expected)
    for minibatch in minibatches:
        for cid, x in zip(minibatch["_cid"], minibatch["x"], strict=True):
            np.testing.assert_array_equal(x, expected[cid])
    assert minibatches[0]["x"].shape == (8, 2)
    assert minibatches[0]["_family"][0].startswith("pendulum.csv#")


def test_epochs_come_in_other_orders(source: Path) -> None:
    batcher = numpy_batcher(source)
    first, second = cids(batcher), cids(batcher)

    assert first != second
    assert sorted(flat(first)) == sorted(flat(second))
    assert batcher.epoch == 2


@pytest.mark.parametrize("window_records", [64, 128, 8192])
def test_resuming_at_any_minibatch_goes_on_bit_for_bit(source: Path, window_records: int) -> None:
    """In the first epoch, in the second, and at the border between them."""

    def stream(batcher: FossilBatcher):
        while batcher.epoch < 3:
            yield from batcher.stream_minibatches()

    uninterrupted = numpy_batcher(source, window_records=window_records)
    states, seen = [], []
    for minibatch in stream(uninterrupted):
        seen.append(minibatch)
        states.append(json.dumps(uninterrupted.get_state()))
    for at in (0, 7, 17, 18, 19, 30, 37):
        assert len(states[at]) <= 200
        resumed = numpy_batcher(source, window_records=window_records)
        resumed.set_state(json.loads(states[at]))
        rest = list(stream(resumed))
        assert len(rest) == len(seen) - at - 1
        for ours, theirs in zip(rest, seen[at + 1 :], strict=True):
            assert ours["_cid"] == theirs["_cid"]
            np.testing.assert_array_equal(ours["x"], theirs["x"])


@pytest.mark.parametrize("worlds", [(1,), (1, 2, 4), (4, 1)])
def test_resuming_again_and_again_is_never_having_stopped(source: Path, worlds) -> None:
    """A new process for each minibatch, through two epochs and more, with other numbers of ranks."""
    whole = numpy_batcher(source)
    expected = [list(m) for _ in range(3) for m in cids(whole)]
    state, seen = None, []
    for number in range(len(expected)):
        world_size = worlds[number % len(worlds)]
        parts, states = [], []
        for rank in range(world_size):
            batcher = numpy_batcher(source, rank=rank, world_size=world_size)
            if state is not None:
                batcher.set_state(json.loads(state))
            parts.append(list(next(batcher.stream_minibatches())["_cid"]))
            states.append(json.dumps(batcher.get_state()))
        assert len(set(states)) == 1
        state = states[0]
        seen.append(
            [parts[at % world_size][at // world_size] for at in range(sum(map(len, parts)))]
        )

    assert seen == expected


def test_iterating_over_fossils_is_the_order_of_the_minibatches_and_resumes(source: Path) -> None:
    expected = flat(cids(numpy_batcher(source)))
    batcher = numpy_batcher(source)
    fossils = batcher.iterate_fossils()
    got = [next(fossils)["_cid"] for _ in range(11)]
    resumed = numpy_batcher(source)
    resumed.set_state(batcher.get_state())

    assert got + [f["_cid"] for f in resumed.iterate_fossils()] == expected
    assert resumed.epoch == 1


def test_without_shuffling_the_order_is_that_of_the_file(source: Path) -> None:
    batcher = numpy_batcher(source)

    assert [f["_cid"] for f in batcher.iterate_fossils(shuffle=False)] == [
        fossil(i).cid for i in range(150)
    ]
    assert batcher.get_state()["position"] == 0


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_are_one_rank(source: Path, world_size: int) -> None:
    """Same number of minibatches each, disjoint, and together the global minibatch."""
    alone = cids(numpy_batcher(source))
    ranks = [
        cids(numpy_batcher(source, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]

    assert {len(rank) for rank in ranks} == {len(alone)}
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(flat(parts)) == sorted(whole)


def test_ranks_of_uneven_size_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """17 fossils, minibatches of 8, 2 ranks: the last one would serve one rank, so none gets it."""
    source = write_fossils(tmp_path / "in.ndjson", range(17))
    ranks = [cids(numpy_batcher(source, rank=rank, world_size=2)) for rank in range(2)]

    assert [[len(m) for m in rank] for rank in ranks] == [[4, 4], [4, 4]]


def test_a_run_goes_on_with_another_number_of_ranks(source: Path) -> None:
    before = numpy_batcher(source, world_size=2)
    stream = before.stream_minibatches()
    for _ in range(5):
        next(stream)
    after = numpy_batcher(source)
    after.set_state(before.get_state())

    assert cids(after) == cids(numpy_batcher(source))[5:]


def test_tensors_share_memory_and_have_the_fields_types(source: Path) -> None:
    torch = pytest.importorskip("torch")
    minibatch = next(FossilBatcher(source, batch_size=4).stream_minibatches())

    assert isinstance(minibatch["x"], torch.Tensor)
    assert minibatch["x"].dtype == torch.float64
    assert minibatch["x"].shape == (4, 2)
    minibatch["x"][:] = 0  # writable: the memory is ours alone


def test_numpy_needs_no_torch(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    assert len(cids(numpy_batcher(source))) == 19
    with pytest.raises(MissingTool, match="torch"):
        next(FossilBatcher(source, batch_size=4).stream_minibatches())


def test_beyond_the_memory_budget_the_same_minibatches_come_from_disk(tmp_path: Path) -> None:
    for packing, suffix in (
        (lambda data: data, ""),
        (gzip.compress, ".gz"),
        (zstandard.ZstdCompressor().compress, ".zst"),
    ):
        plain = write_random_fossils(tmp_path / "plain", 200)
        source = tmp_path / f"in.ndjson{suffix}"
        source.write_bytes(packing(plain.read_bytes()))
        from_disk = numpy_batcher(source, memory_bytes=0, window_records=64)
        in_memory = numpy_batcher(source, window_records=64)
        pairs = zip(from_disk.stream_minibatches(), in_memory.stream_minibatches(), strict=True)
        for ours, theirs in pairs:
            assert ours["_cid"] == theirs["_cid"]
            np.testing.assert_array_equal(ours["t"], theirs["t"])
        from_disk.close()


def test_a_file_that_changes_under_way_is_an_error(source: Path) -> None:
    batcher = numpy_batcher(source, memory_bytes=0)
    source.write_bytes(source.read_bytes()[:-200])

    with pytest.raises(ShardDamaged, match="changed"):
        next(batcher.stream_minibatches())


def test_unusable_fossils_are_never_yielded_and_are_counted(tmp_path: Path) -> None:
    nan = {"dtype": "float64", "shape": [1], "unit": "m", "b64": "AAAAAAAA+H8="}
    source = tmp_path / "in.ndjson"
    source.write_bytes(
        fossil_line(0)
        + fossil_line(1, cid=fossil(7).cid)
        + fossil_line(2, verifier={"name": "v", "verdict": "FAIL"})
        + fossil_line(3, fields={"x": nan}, cid="b")
        + fossil_line(0)
        + fossil_line(4, fields={"y": {"dtype": "int8", "shape": [], "values": [1]}})
        + fossil_line(5)
        + fossil_line(6)[:-30]
    )

    batcher = numpy_batcher(source)

    assert sorted(flat(cids(batcher))) == sorted([fossil(0).cid, fossil(5).cid])
    assert batcher.refused == 6
    assert batcher.refusals.kinds == {
        "cid": 1, "verdict": 1, "not-finite": 1, "duplicate": 1, "other-kind": 1, "json": 1,
    }  # fmt: skip
    assert batcher.refusals.first[0].line == 2


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path) -> None:
    source = tmp_path / "in.ndjson"
    source.write_bytes(fossil_line(0, cid=fossil(7).cid))

    with pytest.raises(NoFossils, match="1 cid"):
        numpy_batcher(source)
    with pytest.raises(InputError, match="no such file"):
        numpy_batcher(tmp_path / "absent.ndjson")


def test_only_the_fields_asked_for(tmp_path: Path) -> None:
    fields = fossil_object()["fields"] | {"y": {"dtype": "int8", "shape": [], "values": [3]}}
    source = tmp_path / "in.ndjson"
    source.write_bytes(b"".join(fossil_line(i, fields=fields, params={"i": i}) for i in range(3)))

    minibatch = next(numpy_batcher(source, fields=["y"]).stream_minibatches())

    assert [name for name in minibatch if not name.startswith("_")] == ["y"]
    assert minibatch["y"].shape == (3,)
    with pytest.raises(NoFossils):
        numpy_batcher(source, fields=["z"])


def test_a_list_of_files_and_folders_is_read_in_order(tmp_path: Path) -> None:
    write_fossils(tmp_path / "b" / "two.ndjson", [2])
    write_fossils(tmp_path / "b" / "one.ndjson", [1])
    write_fossils(tmp_path / "a.ndjson", [0])
    (tmp_path / "b" / "._one.ndjson").write_bytes(b"a Mac was here")
    sources = [tmp_path / "a.ndjson", str(tmp_path / "b")]

    batcher = numpy_batcher(sources)

    stored = [f["_cid"] for f in batcher.iterate_fossils(shuffle=False)]
    assert stored == [fossil(0).cid, fossil(1).cid, fossil(2).cid]
    assert [f.cid for f in read_records(sources)] == stored


def test_a_plan_splits_and_its_two_sides_are_the_whole(
    foundry: FoundryPlaces, tmp_path: Path, source: Path
) -> None:
    with open_vault(foundry) as vault:
        ingest(vault, source)
        plan = make_plan(vault, seed=1)
    sides = {
        split: flat(
            cids(numpy_batcher(plan, vault_root=foundry.root / "fossil_vault", split=split))
        )
        for split in ("train", "held_out", "all")
    }

    assert sides["train"]
    assert sides["held_out"]
    assert sorted(sides["train"] + sides["held_out"]) == sorted(sides["all"])
    assert len(sides["all"]) == plan.fossils
    default = numpy_batcher(plan, vault_root=foundry.root / "fossil_vault")
    assert default.num_fossils == len(sides["train"])


DAMAGES = {
    "a flipped bit": lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    "cut in a line": lambda data: data[:-100],
    "a line less": lambda data: data[: data[:-1].rindex(b"\n") + 1],
    "a line twice": lambda data: data + data[data[:-1].rindex(b"\n") + 1 :],
    "emptied": lambda data: b"",
    "bytes that are no UTF-8": lambda data: data.replace(b"pendulum", b"pendul\xff\xfe", 1),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_what_the_plan_promises_stops_the_run(
    foundry: FoundryPlaces, source: Path, damage: str, cached: bool
) -> None:
    with open_vault(foundry) as vault:
        ingest(vault, source)
        plan = make_plan(vault, seed=1)
    path = foundry.root / "fossil_vault" / plan.shards[0].path
    if cached:  # of the shard as it was; a cache proves nothing
        numpy_batcher(plan, vault_root=foundry.root / "fossil_vault")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))

    with pytest.raises(ShardDamaged, match="promises"):
        numpy_batcher(plan, vault_root=foundry.root / "fossil_vault")
    path.unlink()
    with pytest.raises(ShardDamaged):
        numpy_batcher(plan, vault_root=foundry.root / "fossil_vault")


def test_plain_files_are_split_by_the_rule_of_plans(source: Path) -> None:
    train = flat(cids(numpy_batcher(source, split="train")))
    held_out = flat(cids(numpy_batcher(source, split="held_out")))

    assert train
    assert held_out
    assert sorted(train + held_out) == sorted(fossil(i).cid for i in range(150))


@pytest.mark.parametrize(
    "options",
    [{"rank": 2, "world_size": 2}, {"world_size": 9}, {"verify": "never"}, {"split": "test"}],
)
def test_arguments_that_make_no_sense_are_refused(source: Path, options: dict) -> None:
    with pytest.raises(UsageError):
        numpy_batcher(source, **options)


def test_a_state_of_other_fossils_is_refused(source: Path, tmp_path: Path) -> None:
    state = numpy_batcher(source).get_state()
    other = numpy_batcher(write_fossils(tmp_path / "other.ndjson", range(20)))

    with pytest.raises(StateMismatch):
        other.set_state(state)
    with pytest.raises(StateMismatch):
        numpy_batcher(source, seed=1).set_state(state)
    with pytest.raises(StateMismatch):
        numpy_batcher(source).set_state({**state, "position": 150})


def test_records_for_scoring_keep_the_order_and_name_the_bad_line(tmp_path: Path) -> None:
    """A verdict FAIL is scored too, and so is a repeated fossil; a wrong CID is not."""
    source = tmp_path / "in.ndjson"
    fail = {"name": "v", "verdict": "FAIL"}
    source.write_bytes(
        fossil_line(1, verifier=fail) + fossil_line(0, cid=fossil(9).cid) + fossil_line(1)
    )
    refused = []

    read = list(read_records(source, on_refused=refused.append))

    assert [f.cid for f in read] == [fossil(1).cid] * 2
    assert [(r.line, r.kind) for r in refused] == [(2, "cid")]
    with pytest.raises(InputError, match="line 2"):
        list(read_records(source))


# Mixtures and weights. What an epoch holds is `test_mixture`'s matter.


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        write_fossils(tmp_path / "few.ndjson", range(40)),
        write_fossils(tmp_path / "many" / "a.ndjson", range(40, 240)),
    ]


def of_few(minibatches: list[list[str]]) -> int:
    few = {fossil(i).cid for i in range(40)}
    return sum(cid in few for cid in flat(minibatches))


def test_sources_have_their_shares_in_each_epoch(two: list[Path]) -> None:
    batcher = numpy_batcher(two, shares=[3, 1])

    epochs = [cids(batcher) for _ in range(4)]

    assert batcher.fossils_per_epoch == batcher.num_fossils == 240
    assert [of_few(epoch) for epoch in epochs] == [180] * 4
    assert len({fossil for epoch in epochs for fossil in flat(epoch)}) == 240, "all in turn"
    assert epochs[0] != epochs[1]


def easy_first(cids):
    """Weights from nothing but the CID."""
    return [sum(cid.encode()) % 5 for cid in cids]


@pytest.mark.parametrize(
    "options",
    [{"shares": [1, 3]}, {"weights": easy_first}, {"shares": [1, 3], "weights": easy_first}],
)
def test_a_mixture_resumes_anywhere_bit_for_bit(two: list[Path], options) -> None:
    def stream(batcher: FossilBatcher):
        while batcher.epoch < 3:
            yield from batcher.stream_minibatches()

    options = {**options, "window_records": 64}
    uninterrupted = numpy_batcher(two, **options)
    states, seen = [], []
    for minibatch in stream(uninterrupted):
        seen.append(minibatch)
        states.append(json.dumps(uninterrupted.get_state()))
    assert max(map(len, states)) <= 200
    for at in (0, 7, len(seen) // 3 - 1, len(seen) // 3, len(seen) // 2):
        resumed = numpy_batcher(two, **options)
        resumed.set_state(json.loads(states[at]))
        rest = list(stream(resumed))
        assert [m["_cid"] for m in rest] == [m["_cid"] for m in seen[at + 1 :]]
        for ours, theirs in zip(rest, seen[at + 1 :], strict=True):
            np.testing.assert_array_equal(ours["x"], theirs["x"])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_a_mixture_and_see_its_global_minibatches(
    two: list[Path], world_size: int
) -> None:
    options = {"shares": [2, 1], "weights": easy_first, "batch_size": 16, "window_records": 128}
    whole = [list(m) for m in cids(numpy_batcher(two, **options))]

    ranks = [
        cids(numpy_batcher(two, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]

    assert len({len(rank) for rank in ranks}) == 1
    for number, minibatch in enumerate(whole[: len(ranks[0])]):
        for rank in range(world_size):
            assert ranks[rank][number] == minibatch[rank::world_size]


def test_a_mixture_reads_the_same_from_the_cache(two: list[Path], tmp_path: Path) -> None:
    options = {"shares": [2, 1], "weights": easy_first}
    streamed = numpy_batcher(two, **options, memory_bytes=0)
    cached = numpy_batcher(two, **options, cache_root=tmp_path / "cache")
    for _ in range(2):
        for ours, theirs in zip(
            cached.stream_minibatches(), streamed.stream_minibatches(), strict=True
        ):
            assert ours["_cid"] == theirs["_cid"]
            np.testing.assert_array_equal(ours["x"], theirs["x"])
    assert cached.get_state() == streamed.get_state()


def test_weights_from_a_file_are_those_of_the_callable(two: list[Path], tmp_path: Path) -> None:
    every = [fossil(i).cid for i in range(240)]
    lines = [{"cid": c, "weight": w} for c, w in zip(every, easy_first(every), strict=True)]
    path = tmp_path / "weights.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"schema": "scf.weights/1"}, *lines])))

    from_file = numpy_batcher(two, weights=path)

    assert cids(from_file) == cids(numpy_batcher(two, weights=easy_first))
    assert from_file.fossils_per_epoch == np.count_nonzero(easy_first(every)) < 240


def test_a_state_belongs_to_its_mixture(two: list[Path]) -> None:
    batcher = numpy_batcher(two, shares=[2, 1])
    next(batcher.stream_minibatches())
    state = batcher.get_state()

    for other in ({}, {"shares": [1, 2]}, {"shares": [2, 1], "weights": easy_first}):
        with pytest.raises(StateMismatch, match="mixture"):
            numpy_batcher(two, **other).set_state(state)


def test_unshuffled_each_fossil_comes_once_whatever_its_weight(two: list[Path]) -> None:
    batcher = numpy_batcher(two, weights=easy_first)
    in_order = [fossil(i).cid for i in range(240)]

    assert [one["_cid"] for one in batcher.iterate_fossils(shuffle=False)] == in_order
    assert flat([m["_cid"] for m in batcher.stream_minibatches(shuffle=False)]) == in_order
    assert batcher.get_state()["position"] == 0


def test_shares_and_weights_that_cannot_be_are_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 shares for 2 sources"):
        numpy_batcher(two, shares=[1, 1, 1])
    with pytest.raises(UsageError, match="2 shares for 1 sources"):
        numpy_batcher(two[0], shares=[1, 1])
    with pytest.raises(UsageError, match="above 0"):
        numpy_batcher(two, shares=[1, 0])
    with pytest.raises(UsageError, match="held-out fossils are used once"):
        numpy_batcher(two, shares=[1, 1], split="held_out")
    empty = write_fossils(tmp_path / "none.ndjson", range(3))  # all of them in `few` already
    with pytest.raises(NoFossils, match=r"none.ndjson: no usable fossil to have a share"):
        numpy_batcher([*two, empty], shares=[1, 1, 1])


def test_a_plan_mixes_fresh_fossils_with_replayed_ones(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    """The conductor's choice travels in the plan; the held-out side knows nothing of it."""
    with open_vault(foundry) as vault:
        ingest(vault, write_fossils(tmp_path / "old.ndjson", range(640)))
        parent = make_plan(vault, seed=1)
        ingest(vault, write_fossils(tmp_path / "new.ndjson", range(640, 960)))
        plan = make_plan(vault, seed=1, parent=parent, fresh_share=0.5)
        alike = make_plan(vault, seed=1, parent=parent)
        root = vault.folder.path
    assert plan.mixture is not None
    assert plan.plan_id != alike.plan_id

    old = set(flat(cids(numpy_batcher(parent, vault_root=root, split="all"))))
    batcher = numpy_batcher(plan, vault_root=root)
    epochs = [cids(batcher) for _ in range(3)]

    for epoch in epochs:
        fresh = sum(cid not in old for cid in flat(epoch))
        assert abs(fresh - batcher.num_fossils / 2) <= 1
    measured = [numpy_batcher(p, vault_root=root, split="held_out") for p in (plan, alike)]
    assert cids(measured[0]) == cids(measured[1])
