"""The anchor set follows from the first plan alone, and has something of every shard."""

import json
from pathlib import Path

from scf.fertilization.batch_plan import BatchPlan, plan_fossils
from scf.zoo import anchor
from scf.zoo.anchor import anchor_set
from support.foundries import small_foundry
from support.runs import fill_vault, plan_json


def test_it_holds_the_first_held_out_fossils_of_every_shard(tmp_path: Path, monkeypatch) -> None:
    place = small_foundry(tmp_path)
    fill_vault(place, fossils=60)
    plan = BatchPlan.from_json(plan_json(place, held_out=0.5))
    vault = place.root / "fossil_vault"
    held_out = [f.cid for f in plan_fossils(plan, vault) if f.split == "held_out"]
    assert len(plan.shards) >= 3

    whole = json.loads(anchor_set("ebdm_gen0001", plan, vault))
    assert whole["cids"] == sorted(held_out)
    assert whole["plan_id"] == plan.plan_id

    monkeypatch.setattr(anchor, "FOSSILS_MAX", len(plan.shards))
    few = anchor_set("ebdm_gen0001", plan, vault)
    assert few == anchor_set("ebdm_gen0001", plan, vault)
    assert 1 <= len(json.loads(few)["cids"]) <= len(plan.shards)
    assert held_out[0] in json.loads(few)["cids"]
