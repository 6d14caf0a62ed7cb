"""The batch plan: the same for the same vault, split by families, never leaking from its parent."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scf.core import merkle
from scf.core.errors import NothingToDo
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.batch_plan import (
    BatchPlan,
    FreshAndReplay,
    NothingHeldOut,
    PlanInvalid,
    family_hash,
    held_out_threshold,
    make_plan,
    plan_fossils,
    read_plan,
)
from scf.fertilization.fossil_batcher import FossilBatcher
from scf.vault.journal import Vault
from support.fossils import fossil, fossil_line, fossil_object, write_fossils
from support.vaults import ingest, open_vault


@pytest.fixture
def vault(foundry: FoundryPlaces):
    with open_vault(foundry) as opened:
        yield opened


def filled(vault: Vault, tmp_path, count: int = 320) -> Vault:
    ingest(vault, write_fossils(tmp_path / "in.ndjson", range(count)))
    return vault


def test_a_plan_names_all_fossils_by_their_root(vault: Vault, tmp_path) -> None:
    plan = make_plan(filled(vault, tmp_path), seed=3)

    cids = sorted(fossil(i).cid.encode() for i in range(320))
    assert plan.fossils == 320
    assert plan.merkle_root == merkle.root(cids).hex()
    assert [shard.count for shard in plan.shards] == [320]


def test_a_plan_survives_its_file_and_keeps_its_id(vault: Vault, tmp_path) -> None:
    plan = make_plan(filled(vault, tmp_path), seed=3)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))

    again = read_plan(tmp_path / "plan.json")

    assert again == plan
    assert again.plan_id == plan.plan_id
    assert make_plan(vault, seed=3).plan_id == plan.plan_id
    assert make_plan(vault, seed=4).plan_id != plan.plan_id


def test_families_are_held_out_as_a_whole(vault: Vault, tmp_path) -> None:
    plan = make_plan(filled(vault, tmp_path), seed=3, held_out_fraction=0.4)

    sides: dict[str, set[str]] = {}
    for item in plan_fossils(plan, vault.folder.path):
        sides.setdefault(item.family, set()).add(item.split)

    assert len(sides) == 5
    assert all(len(side) == 1 for side in sides.values())
    assert {"train"} in sides.values()
    assert {"held_out"} in sides.values()


@settings(deadline=None)
@given(
    st.sets(st.text(min_size=1, max_size=5), min_size=2, max_size=8),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_something_is_always_held_out_and_something_trained_on(
    families: set[str], fraction: float, seed: int
) -> None:
    below = held_out_threshold(families, seed=seed, fraction=fraction)

    held_out = [name for name in families if family_hash(seed, name) < below]
    assert 0 < len(held_out) < len(families)


def test_one_family_is_never_held_out_by_force() -> None:
    assert held_out_threshold(["alone"], seed=0, fraction=0.0) == "0" * 16


def test_a_child_holds_out_what_its_parent_did(vault: Vault, tmp_path) -> None:
    """Also when more fossils came, with another seed and a smaller fraction asked for."""
    parent = make_plan(filled(vault, tmp_path), seed=3, held_out_fraction=0.5)
    ingest(vault, write_fossils(tmp_path / "more.ndjson", range(320, 900)))

    child = make_plan(vault, seed=99, held_out_fraction=0.01, parent=parent)

    assert child.fossils == 900
    held_out = [f for f, _ in vault.families() if parent.is_held_out(f)]
    assert held_out
    assert all(child.is_held_out(family) for family in held_out)


def test_excluded_fossils_leave_the_plan(vault: Vault, tmp_path) -> None:
    filled(vault, tmp_path, 70)
    gone = fossil(4).cid

    plan = make_plan(vault, seed=0, excluded=[gone, fossil(77).cid])

    assert plan.fossils == 69
    assert plan.excluded == (gone,)
    assert gone not in [item.cid for item in plan_fossils(plan, vault.folder.path)]


def one_family(path: Path, count: int, family: str = "trajectory-7") -> Path:
    """Fossils that are all of one family, as one long trajectory is."""
    provenance = fossil_object()["provenance"]
    path.write_bytes(
        b"".join(
            fossil_line(i, provenance={**provenance, "index": i, "family": family})
            for i in range(count)
        )
    )
    return path


def sides(plan: BatchPlan, root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for split in found:
        for memory_bytes in (0, 2**20):
            batcher = FossilBatcher(
                plan, batch_size=16, as_numpy=True, split=split, vault_root=root,
                memory_bytes=memory_bytes,
            )  # fmt: skip
            found[split] |= {name for m in batcher.stream_minibatches() for name in m["_family"]}
            batcher.close()
    return found


def test_one_family_alone_is_split_by_blocks_of_neighbours(vault: Vault, tmp_path) -> None:
    ingest(vault, one_family(tmp_path / "in.ndjson", 300))

    plan = make_plan(vault, seed=0)

    assert plan.in_blocks == ("trajectory-7",)
    assert BatchPlan.from_json(plan.to_json()) == plan
    found = sides(plan, vault.folder.path)
    assert found["train"]
    assert len(found["held_out"]) >= 2  # a comparison needs two
    assert found["train"] | found["held_out"] == {f"trajectory-7#{n}" for n in range(5)}
    assert not found["train"] & found["held_out"]
    told = {(item.family, item.split) for item in plan_fossils(plan, vault.folder.path)}
    assert told == {(name, split) for split, names in found.items() for name in names}


def test_a_family_once_split_by_blocks_stays_so_when_others_come(vault: Vault, tmp_path) -> None:
    """Or what was held out of it would be trained on."""
    ingest(vault, one_family(tmp_path / "in.ndjson", 300))
    parent = make_plan(vault, seed=0)
    ingest(vault, write_fossils(tmp_path / "more.ndjson", range(1000, 1300)))

    child = make_plan(vault, seed=5, parent=parent)

    assert child.in_blocks == parent.in_blocks
    before, after = sides(parent, vault.folder.path), sides(child, vault.folder.path)
    assert before["held_out"] <= after["held_out"]
    assert any(name.startswith("pendulum.csv") for name in after["train"])


def test_one_block_of_one_family_cannot_be_split(vault: Vault, tmp_path) -> None:
    ingest(vault, one_family(tmp_path / "in.ndjson", 64))

    with pytest.raises(NothingHeldOut, match="nothing can be held out"):
        make_plan(vault, seed=0)


def test_plain_files_of_one_family_are_split_by_blocks_too(tmp_path: Path) -> None:
    source = one_family(tmp_path / "in.ndjson", 200)
    names = {}
    for split in ("train", "held_out"):
        batcher = FossilBatcher(source, batch_size=16, as_numpy=True, split=split)
        names[split] = {name for m in batcher.stream_minibatches() for name in m["_family"]}

    assert names["train"] | names["held_out"] == {f"trajectory-7#{n}" for n in range(4)}
    assert not names["train"] & names["held_out"]


def test_an_empty_vault_has_no_plan(vault: Vault) -> None:
    with pytest.raises(NothingToDo):
        make_plan(vault, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "scf.plan/2"},
        {"shards": [{}]},
        {"shards": None},
        {"fossils": "3"},
        {"merkle_root": "x"},
        {"held_out_below": "F" * 16},
        {"seed": None},
    ],
)
def test_a_malformed_plan_is_refused(vault: Vault, tmp_path, change) -> None:
    plan = make_plan(filled(vault, tmp_path, 70), seed=0).to_json()

    with pytest.raises(PlanInvalid):
        BatchPlan.from_json({**plan, **change})


def test_a_plan_cannot_point_outside_the_vault(vault: Vault, tmp_path) -> None:
    plan = make_plan(filled(vault, tmp_path, 70), seed=0)
    shard = dataclasses.replace(plan.shards[0], path="../keys/vault.key")

    with pytest.raises(PlanInvalid):
        BatchPlan.from_json(dataclasses.replace(plan, shards=(shard,)).to_json())


def test_a_plan_with_fresh_fossils_says_how_they_are_mixed(vault: Vault, tmp_path) -> None:
    """Its first shards are the parent's. Without a parent, a share or fresh shards: no mixture."""
    parent = make_plan(filled(vault, tmp_path), seed=3)
    assert make_plan(vault, seed=3, parent=parent, fresh_share=0.3).mixture is None
    ingest(vault, write_fossils(tmp_path / "more.ndjson", range(320, 400)))

    plan = make_plan(vault, seed=3, parent=parent, fresh_share=0.3)

    assert plan.mixture == FreshAndReplay(replay_shards=1, fresh_share=0.3)
    assert BatchPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert make_plan(vault, seed=3, fresh_share=0.3).mixture is None
    assert "mixture" not in make_plan(vault, seed=3, parent=parent).to_json()
    with pytest.raises(ValueError, match="not between 0 and 1"):
        make_plan(vault, seed=3, parent=parent, fresh_share=1.5)


@pytest.mark.parametrize(
    "mixture",
    [
        [],
        {"replay_shards": 1},
        {"replay_shards": 1, "fresh_share": 0.5, "more": 1},
        {"replay_shards": 0, "fresh_share": 0.5},
        {"replay_shards": 2, "fresh_share": 0.5},
        {"replay_shards": 1, "fresh_share": 1.0},
        {"replay_shards": 1, "fresh_share": 1},
        {"replay_shards": True, "fresh_share": 0.5},
    ],
)
def test_a_mixture_that_cannot_be_is_no_plan(vault: Vault, tmp_path, mixture) -> None:
    parent = make_plan(filled(vault, tmp_path), seed=3)
    ingest(vault, write_fossils(tmp_path / "more.ndjson", range(320, 400)))
    value = make_plan(vault, seed=3, parent=parent, fresh_share=0.3).to_json()

    with pytest.raises(PlanInvalid):
        BatchPlan.from_json(value | {"mixture": mixture})
