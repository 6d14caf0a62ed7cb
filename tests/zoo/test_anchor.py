"""The anchor set follows from the first plan alone."""

import json

from scf.zoo.anchor import FOSSILS_MAX, anchor_set


def test_it_is_the_first_by_cid_whatever_the_order() -> None:
    cids = [f"b{number:05d}" for number in range(3000)]
    data = anchor_set("ebdm_gen0001", "ab" * 32, reversed(cids))
    assert data == anchor_set("ebdm_gen0001", "ab" * 32, iter(cids))
    assert json.loads(data)["cids"] == cids[:FOSSILS_MAX]
