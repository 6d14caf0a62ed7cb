"""Partitions are measured a bit at a time, and their last day is foretold."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scf.daemon import survey as survey_module
from scf.daemon.survey import Survey, days_until_full, read_usage, storage_facts
from scf.storage.partitions import Drive, PartitionFull
from support.clocks import ManualClock

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive.scaffold(tmp_path / "root")


def fill(drive: Drive, name: str, size: int) -> Path:
    path = drive.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def rounds(survey: Survey) -> int:
    steps = 1
    while not survey.step():
        steps += 1
        assert steps < 1000
    return steps


def test_a_round_adds_up_every_partition(drive: Drive) -> None:
    fill(drive, "fossil_vault/shards/aa/one.ndjson", 100)
    fill(drive, "fossil_vault/journal.log", 11)
    fill(drive, "model_zoo/ebdm_gen0001/checkpoint/model.safetensors", 1000)
    rounds(Survey(drive, ManualClock(datetime.now(UTC))))

    used = read_usage(drive.root).used_bytes
    assert (used["fossil_vault"], used["model_zoo"], used["zk_proofs"]) == (111, 1000, 0)


def test_a_step_is_short_and_folders_that_did_not_change_are_not_read_again(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many shards take many steps the first time, and hardly any the next."""
    monkeypatch.setattr(survey_module, "NAMES_PER_STEP", 50)
    for folder in range(20):
        for shard in range(10):
            fill(drive, f"fossil_vault/shards/{folder:02x}/{shard}.ndjson", 10)
        then = START.timestamp()
        os.utime(drive.root / f"fossil_vault/shards/{folder:02x}", (then, then))
    clock = ManualClock(datetime.now(UTC))
    survey = Survey(drive, clock)
    assert rounds(survey) > 3
    assert not survey.is_due
    read: list[Path] = []
    real = survey_module._sum
    monkeypatch.setattr(survey_module, "_sum", lambda f, m: read.append(f) or real(f, m))
    fill(drive, "fossil_vault/shards/05/new.ndjson", 7)
    clock.advance(3600)

    rounds(survey)

    assert read_usage(drive.root).used_bytes["fossil_vault"] == 2007
    assert [f.name for f in read if f.parent.name == "shards"] == ["05"]


def test_what_was_measured_is_enforced(drive: Drive) -> None:
    """The drive refuses by the survey's numbers, and accepts again after the next one."""
    clock = ManualClock(datetime.now(UTC))
    drive.set_budgets({"model_zoo": 1000})
    old = fill(drive, "model_zoo/old", 990)
    survey = Survey(drive, clock)
    rounds(survey)
    with pytest.raises(PartitionFull):
        drive.folder("model_zoo").write_file("new", b"x" * 11)
    old.unlink()
    survey.ask()
    clock.advance(60)
    rounds(survey)
    drive.folder("model_zoo").write_file("new", b"x" * 11)


def test_samples_are_kept_now_and_then_and_not_for_ever(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "SAMPLES_KEPT", 5)
    clock = ManualClock(START)
    survey = Survey(drive, clock)
    for _ in range(48):
        rounds(survey)
        clock.advance(3600)

    samples = read_usage(drive.root).samples
    assert len(samples) == 5
    assert samples[1][0] - samples[0][0] == timedelta(hours=6)


def test_a_usage_file_of_rubbish_is_written_anew(drive: Drive) -> None:
    path = fill(drive, "system_cache/usage.json", 5)
    rounds(Survey(drive, ManualClock()))

    assert json.loads(path.read_text())["used_bytes"]["model_zoo"] == 0


def test_the_day_is_foretold_on_which_a_partition_is_full(drive: Drive) -> None:
    """100 B a day, 4100 B left: 41 days."""
    drive.set_budgets({"fossil_vault": 5000})
    clock = ManualClock(START)
    survey = Survey(drive, clock)
    for day in range(10):
        fill(drive, f"fossil_vault/day-{day}", 100)
        rounds(survey)
        clock.advance(86_400)

    (vault,) = [f for f in storage_facts(drive) if f["partition"] == "fossil_vault"]
    assert vault["used_bytes"] == 1000
    assert vault["full_in_days"] == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("sizes", "days"),
    [([], None), ([5], None), ([5, 5, 5], None), ([9, 5, 1], None), ([0, 10, 20], 8.0),
     ([0, 10, 20, 200, 40, 50], 5.0), ([100, 110, 120], 0.0)],
)  # fmt: skip
def test_one_large_ingest_does_not_move_the_forecast(
    sizes: list[float], days: float | None
) -> None:
    samples = [(START + timedelta(days=i), size) for i, size in enumerate(sizes)]

    assert days_until_full(samples, 100.0) == days


def test_less_than_a_day_of_history_is_no_forecast() -> None:
    samples = [(START, 0.0), (START + timedelta(hours=23), 10.0)]
    assert days_until_full(samples, 100.0) is None


@given(
    rate=st.floats(min_value=1, max_value=1e9), n=st.integers(min_value=2, max_value=30),
    left=st.floats(min_value=1, max_value=1e12),
)  # fmt: skip
def test_steady_growth_is_foretold_exactly(rate: float, n: int, left: float) -> None:
    samples = [(START + timedelta(days=i), rate * i) for i in range(n)]

    assert days_until_full(samples, rate * (n - 1) + left) == pytest.approx(left / rate, rel=1e-6)
