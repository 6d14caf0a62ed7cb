"""Weights of fossils: what a file or a callable may say, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import UsageError
from scf.core.identity import cid_digest
from scf.fertilization.weights import WeightsFile, WeightsInvalid, weights_of
from support.fossils import fossil

CIDS = [fossil(i).cid for i in range(4)]
HEADER = {"schema": "scf.weights/1"}


def digests(cids=CIDS):
    rows = [np.frombuffer(cid_digest(cid), np.uint8) for cid in cids]
    yield np.stack(rows[:2])
    yield np.stack(rows[2:])


def write(path: Path, *lines) -> Path:
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return path


def entry(index: int, weight) -> dict:
    return {"cid": CIDS[index], "weight": weight}


def raw(index: int, weight: str) -> str:
    return json.dumps(entry(index, 0))[:-2] + weight + "}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.ndjson"


def test_a_file_gives_each_fossil_its_weight(path: Path) -> None:
    write(path, HEADER, *(entry(i, w) for i, w in [(2, 2), (0, 0.5), (3, 0), (1, 1)]))

    assert WeightsFile(path).of_cids(CIDS).tolist() == [0.5, 1.0, 2.0, 0.0]
    whole = weights_of(path, digests())
    assert (whole / whole.max()).tolist() == pytest.approx([0.25, 0.5, 1.0, 0.0])


def test_fossils_without_a_line_get_the_default(path: Path) -> None:
    write(path, {**HEADER, "default": 3, "made_by": "a person"}, entry(1, 1))

    assert WeightsFile(path).of_cids(CIDS).tolist() == [3.0, 1.0, 3.0, 3.0]


def test_a_file_may_know_more_fossils_than_are_used(path: Path) -> None:
    write(path, HEADER, *(entry(i, 1) for i in range(4)))

    assert weights_of(path, iter([next(digests())])).tolist() == [2**32 - 1] * 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{}"], "not a file of weights"),
        ([], "not a file of weights"),
        ([{"schema": "scf.weights/2"}], "not a file of weights"),
        ([{**HEADER, "default": -1}], "default -1"),
        ([HEADER, entry(0, -0.5)], "line 2: weight -0.5"),
        ([HEADER, raw(0, "NaN")], "line 2: weight nan"),
        ([HEADER, raw(0, "1e400")], "line 2: weight inf"),
        ([HEADER, entry(0, "1")], "line 2: weight '1'"),
        ([HEADER, entry(0, True)], "line 2: weight True"),
        ([HEADER, {"cid": "bafy", "weight": 1}], "line 2: 'bafy' is not a CID"),
        ([HEADER, {"cid": 5, "weight": 1}], "line 2"),
        ([HEADER, {**entry(0, 1), "wieght": 2}], "line 2: not an object of cid and weight"),
        ([HEADER, entry(0, 1), "{"], "line 3: not an object"),
        ([HEADER, entry(0, 1), entry(1, 1), entry(0, 1)], "more than one weight"),
        ([HEADER, entry(0, 1)], f"no weight for {CIDS[1]}"),
        ([{**HEADER, "default": 0}], "all weights are 0"),
    ],
)
def test_what_is_no_weight_is_refused_by_file_and_line(path: Path, lines, message) -> None:
    with pytest.raises(WeightsInvalid, match=message) as refused:
        weights_of(write(path, *lines), digests())
    assert "weights.ndjson" in str(refused.value)


def test_a_callable_is_asked_in_the_stored_order() -> None:
    asked = []

    def weight(cids):
        asked.extend(cids)
        return [1.0 + CIDS.index(cid) for cid in cids]

    whole = weights_of(weight, digests())

    assert asked == CIDS
    assert (whole / whole.max()).tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_callable_is_held_to_the_same_rules(wrong: float) -> None:
    with pytest.raises(WeightsInvalid, match="finite and not negative"):
        weights_of(lambda cids: [1.0, wrong][: len(cids)], digests())
    with pytest.raises(UsageError, match="of shape"):
        weights_of(lambda cids: [1.0], digests())
    with pytest.raises(WeightsInvalid, match="not numbers"):
        weights_of(lambda cids: ["a"] * len(cids), digests())
