"""Quarantine: a refused record can be found again, in its file and in ours."""

import json
from pathlib import Path

import pytest

from scf.storage.partitions import Folder
from scf.vault.quarantine import EXCERPT_MAX_BYTES, Quarantine, Rejection

SHA = "ab" * 32


def test_an_entry_says_where_and_why(tmp_path: Path) -> None:
    with Quarantine(Folder.at(tmp_path)).file("runs/a b.ndjson", SHA) as file:
        file.add(Rejection("cid", "the CID is wrong", line=3, offset=120, index=2, data=b"{}"))

    (path,) = tmp_path.iterdir()
    assert path.name == f"runs_a_b.ndjson-{SHA[:16]}.jsonl"
    entry = json.loads(path.read_text())
    assert entry["origin"] == "runs/a b.ndjson"
    assert (entry["line"], entry["offset"], entry["index"]) == (3, 120, 2)
    assert (entry["kind"], entry["reason"], entry["text"]) == ("cid", "the CID is wrong", "{}")


def test_bytes_that_are_no_text_are_kept_as_base64_and_large_ones_cut(tmp_path: Path) -> None:
    with Quarantine(Folder.at(tmp_path)).file("x", SHA) as file:
        file.add(Rejection("json", "bad", data=b"\xff" * (EXCERPT_MAX_BYTES + 5)))

    (path,) = tmp_path.iterdir()
    entry = json.loads(path.read_text())
    assert entry["size_bytes"] == EXCERPT_MAX_BYTES + 5
    assert len(entry["b64"]) == 4 * -(-EXCERPT_MAX_BYTES // 3)


def test_without_rejections_there_is_no_file(tmp_path: Path) -> None:
    with Quarantine(Folder.at(tmp_path)).file("x", SHA):
        pass

    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_ingest_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Quarantine(Folder.at(tmp_path)).file("x", SHA) as file:
        file.add(Rejection("json", "bad"))
        raise RuntimeError("stopped")

    assert list(tmp_path.iterdir()) == []
