"""A month of operation with scripted misfortune loses nothing and repeats nothing.

Two seeds here; `SCF_SIM_SEEDS=1000 make bench` runs as many as that says.
"""

import os
from pathlib import Path

import pytest

from support.simulation import ScriptedDoor, fast_folder, simulate


@pytest.mark.parametrize("seed", [0, 8])
def test_a_month_ends_with_everything_done_once(seed: int) -> None:
    with fast_folder() as scratch:
        outcome = simulate(seed, Path(scratch) / "works")

    assert outcome.ticks > 150
    assert outcome.faults > 0
    assert outcome.releases > 0
    assert "SCF_FAIL" not in os.environ


def test_a_failing_seed_says_how_to_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line reproduces it; a simulation that could not fail would show nothing."""
    real = ScriptedDoor.submit

    def twice(self, spec, files, *, resume=None):
        self.starts[spec.job_id] += 1
        return real(self, spec, files, resume=resume)

    monkeypatch.setattr(ScriptedDoor, "submit", twice)
    with fast_folder() as scratch, pytest.raises(AssertionError) as failed:
        simulate(4, Path(scratch) / "works")

    assert "a job was started twice" in str(failed.value)
    assert "PYTHONPATH=tests python -m support.simulation 4" in str(failed.value)
