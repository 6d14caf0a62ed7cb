"""Pulse sees what counts, and nothing else, without scanning at gear speed."""

import os
from pathlib import Path

import pytest

from scf.daemon.pulse import SCAN_INTERVAL_S, Pulse
from scf.runs.record import Origin
from scf.runs.store import RunStore
from support.clocks import ManualClock
from support.fossils import write_fossils


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def pulse(tmp_path: Path, clock: ManualClock):
    (tmp_path / "vault").mkdir()
    store = RunStore.open(tmp_path, clock)
    yield Pulse(tmp_path / "vault", store, clock, settle_s=2.0)
    store.close()


def put(tmp_path: Path, clock: ManualClock, name: str, *, age_s: float = 60.0) -> Path:
    path = write_fossils(tmp_path / "vault" / name, range(2))
    when = clock.now().timestamp() - age_s
    os.utime(path, (when, when))
    return path


def names(pulse: Pulse) -> list[str]:
    return [dropped.name for dropped in pulse.look(is_hasty=False).dropped]


def test_only_dropped_shards_are_seen(tmp_path: Path, clock: ManualClock, pulse: Pulse) -> None:
    """Our own folders, hidden files, and other kinds are left alone."""
    for name in ("b/two.ndjson", "one.ndjson", "shards/aa/x.ndjson", "quarantine/q.ndjson",
                 "._one.ndjson", ".DS_Store", ".hidden/three.ndjson", "notes.txt",
                 "b/shards/four.ndjson"):  # fmt: skip
        put(tmp_path, clock, name)

    assert names(pulse) == ["one.ndjson", "b/two.ndjson", "b/shards/four.ndjson"]


def test_a_scan_is_made_now_and_then(tmp_path: Path, clock: ManualClock, pulse: Pulse) -> None:
    """Between scans a look costs one `stat`."""
    assert names(pulse) == []
    put(tmp_path, clock, "one.ndjson")
    clock.advance(SCAN_INTERVAL_S / 2)
    assert names(pulse) == []
    clock.advance(SCAN_INTERVAL_S / 2)
    assert names(pulse) == ["one.ndjson"]


def test_a_file_is_taken_once_it_is_still(tmp_path: Path, clock: ManualClock, pulse: Pulse) -> None:
    """Also one whose time lies in the future: then its stillness is what we saw of it."""
    path = put(tmp_path, clock, "one.ndjson", age_s=-3600)
    assert pulse.look(is_hasty=False).unsettled == 1
    clock.advance(1.9)
    assert pulse.look(is_hasty=False).unsettled == 1
    with path.open("ab") as file:
        file.write(b"\n")
    os.utime(path, (clock.now().timestamp() + 3600,) * 2)
    clock.advance(1.0)
    assert names(pulse) == []
    clock.advance(2.0)
    pulse.look(is_hasty=False)
    clock.advance(2.0)
    assert names(pulse) == ["one.ndjson"]


def test_what_was_ingested_is_not_seen_again_until_it_changes(
    tmp_path: Path, clock: ManualClock, pulse: Pulse
) -> None:
    path = put(tmp_path, clock, "one.ndjson")
    (dropped,) = pulse.look(is_hasty=False).dropped
    assert dropped.is_unchanged()
    pulse._store.remember_origin(
        Origin(dropped.name, dropped.size_bytes, dropped.mtime_ns, dropped.sha256(), {})
    )
    pulse.ingested(dropped)
    assert names(pulse) == []
    clock.advance(SCAN_INTERVAL_S)
    assert names(pulse) == []

    with path.open("ab") as file:
        file.write(b"\n")
    os.utime(path, (clock.now().timestamp() - 10,) * 2)
    assert not dropped.is_unchanged()
    clock.advance(SCAN_INTERVAL_S)
    assert names(pulse) == ["one.ndjson"]


def test_fresh_fossils_are_counted_from_the_journal_and_settle(
    tmp_path: Path, clock: ManualClock, pulse: Pulse
) -> None:
    """What was planned before a restart is not fresh after it."""
    line = (
        b'{"path": "shards/aa/%d.ndjson", "sha256": "%s", "size_bytes": 10, "count": 7, '
        b'"merkle_root": "%s", "committed_at": "2026-11-23T06:00:00Z", "origin": "a"}\n'
    )
    journal = tmp_path / "vault" / "journal.log"
    journal.write_bytes(line % (1, b"0" * 64, b"0" * 64))
    assert pulse.look(is_hasty=False).fresh_fossils == 7
    assert not pulse.look(is_hasty=False).is_settled
    assert pulse.look(is_hasty=True).is_settled
    clock.advance(2.0)
    assert pulse.look(is_hasty=False).is_settled
    pulse.planned(pulse.prefix)
    with journal.open("ab") as file:
        file.write(line % (2, b"1" * 64, b"1" * 64))

    again = Pulse(tmp_path / "vault", pulse._store, clock, settle_s=2.0)
    assert again.look(is_hasty=False).fresh_fossils == 7
