"""A retracted fossil stays in its shard, leaves every later plan, and says why for ever."""

import json
from pathlib import Path

import pytest

from scf.core.errors import InputError, UsageError, VerificationFailed
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.batch_plan import make_plan, plan_fossils
from scf.fertilization.fossil_batcher import FossilBatcher
from scf.storage.partitions import Drive
from scf.vault.journal import Vault, VaultReadOnly
from scf.vault.retraction import RetractionInvalid
from support.fossils import fossil, write_fossils
from support.vaults import ingest, open_vault

GONE = fossil(5).cid


@pytest.fixture
def vault(foundry: FoundryPlaces, tmp_path: Path):
    with open_vault(foundry) as opened:
        ingest(opened, write_fossils(tmp_path / "in.ndjson", range(150)))
        yield opened


def test_it_leaves_later_plans_and_their_minibatches(vault: Vault) -> None:
    before = make_plan(vault, seed=0)
    vault.retract(GONE, "the sensor was iced over")

    after = make_plan(vault, seed=0, parent=before)

    assert after.excluded == (GONE,)
    assert after.fossils == before.fossils - 1
    assert after.plan_id != before.plan_id
    assert GONE not in [item.cid for item in plan_fossils(after, vault.folder.path)]
    for memory_bytes in (0, 2**20):
        batcher = FossilBatcher(
            after, batch_size=50, as_numpy=True, split="all", vault_root=vault.folder.path,
            memory_bytes=memory_bytes,
        )  # fmt: skip
        seen = [cid for m in batcher.stream_minibatches() for cid in m["_cid"]]
        assert sorted(seen) == sorted(fossil(i).cid for i in range(150) if i != 5)
        batcher.close()


def test_it_stays_in_its_shard_and_in_the_plans_that_were(vault: Vault) -> None:
    before = make_plan(vault, seed=0)
    vault.retract(GONE, "wrong")

    assert vault.contains(GONE)
    assert vault.read(GONE) is not None
    assert GONE in [item.cid for item in plan_fossils(before, vault.folder.path)]


def test_the_second_time_changes_nothing(vault: Vault, foundry: FoundryPlaces) -> None:
    first = vault.retract(GONE, "the first reason")
    again = vault.retract(GONE, "another reason")

    assert again == first
    with open_vault(foundry) as reopened:
        assert reopened.retracted() == {GONE: first}


def test_only_the_vaults_key_retracts(vault: Vault, foundry: FoundryPlaces) -> None:
    with Vault.open(Drive.open(foundry.root), foundry.home) as reader:
        with pytest.raises(VaultReadOnly):
            reader.retract(GONE, "no key")
    vault.retract(GONE, "wrong")
    path = foundry.root / "fossil_vault" / "retracted" / f"{GONE}.json"
    good = path.read_text()

    other = path.with_name(f"{fossil(6).cid}.json")
    other.write_text(good)  # a good signature under another fossil's name
    with pytest.raises(RetractionInvalid):
        vault.retracted()
    other.unlink()
    forged = json.loads(good)
    forged["payload"] = forged["payload"][:-8] + "AAAAAAA="
    path.write_text(json.dumps(forged))
    with pytest.raises((VerificationFailed, InputError)):
        make_plan(vault, seed=0)


def test_a_fossil_that_is_not_there_or_a_missing_reason_is_refused(vault: Vault) -> None:
    with pytest.raises(InputError, match="not in the vault"):
        vault.retract(fossil(999).cid, "wrong")
    with pytest.raises(UsageError, match="reason"):
        vault.retract(GONE, "   ")
    assert vault.retracted() == {}
