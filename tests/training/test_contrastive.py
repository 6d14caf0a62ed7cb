"""The second phase: its chains, its guards, and a verdict that can fall either way."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from scf.models.record import FieldLayout, RecordLayout
from scf.storage.partitions import Folder
from scf.training.checkpoint import load_energy
from scf.training.checkpoint_files import read_state
from scf.training.contrastive import (
    ACCEPTANCE,
    ContrastiveUnstable,
    Guard,
    Phase,
    ReplayBuffer,
    second_phase,
)
from scf.training.data import ModelRows
from scf.training.train_config import TrainConfig
from scf.training.train_ebdm import train
from scf.training.verdict import Scores, decide, judge
from support.gaussian_records import POINT, ArraySource, gaussian_points, record_energy

PHASE = Phase(seconds=1e9, steps_max=6, batch_size=32, sigma=0.3, weight=0.05)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rows_of(energy, x) -> ModelRows:
    z, c = energy.to_model(x, x[:, :0])
    return ModelRows(z, c, None)


def gaussian_model(noise: float = 0.0):
    x = gaussian_points(600)
    energy = record_energy(POINT, x, noise=noise)
    return energy, rows_of(energy, x)


def true_energy(energy):
    """-ln of the Gaussian base: the truth of these records, as far as 600 of them say."""

    def of(z, sigma):
        found, _, _ = energy.model.base.energy(z, z.new_full((len(z),), sigma), z[:, :0])
        return found

    return of


def test_verdict_keeps_what_is_plainly_better() -> None:
    """One figure better by its margin and none worse: kept, and the reason names it."""
    verdict = decide(Scores(0.8, 2.0, 0.7), Scores(0.9, 2.0, 0.7))
    assert verdict.kept
    assert verdict.reason == "ESS improved"
    assert decide(Scores(None, 3.0, 0.7), Scores(None, 1.2, 0.7)).reason == (
        "long-chain drift improved"
    )
    assert decide(Scores(None, 2.0, 0.7), Scores(None, 2.0, 0.71)).kept


@pytest.mark.parametrize(
    ("challenger", "word"),
    [
        (Scores(0.81, 1.9, 0.701), "nothing improved"),
        (Scores(0.9, 2.0, 0.6), "off-support AUROC became worse"),
        (Scores(0.7, 0.5, 0.8), "ESS became worse"),
    ],
)
def test_verdict_drops_what_is_no_better_or_worse_elsewhere(challenger, word) -> None:
    verdict = decide(Scores(0.8, 2.0, 0.7), challenger)
    assert not verdict.kept
    assert word in verdict.reason


def test_judge_tells_the_truth_from_a_damaged_energy() -> None:
    """The true energy has ESS 1 and no drift beyond chance; random weights have less and more."""
    energy, rows = gaussian_model()
    damaged, _ = gaussian_model(noise=1.5)
    truth = true_energy(energy)
    right, wrong = (
        judge(each.model, rows.z_ND, rows.c_NK, 0.3, generator=generator(), true_energy=truth,
              chain=60)
        for each in (energy, damaged)
    )  # fmt: skip
    assert right.ess == pytest.approx(1.0, abs=1e-4)
    assert right.drift < 2.5
    assert wrong.ess is not None
    assert wrong.ess < 0.95
    assert wrong.drift > right.drift
    assert decide(wrong, right).kept
    assert not decide(right, wrong).kept


def test_chains_settle_in_the_asked_acceptance() -> None:
    """From a far too long step the acceptance comes to 0.5-0.7, and chains follow the energy."""
    energy, _ = gaussian_model()
    start = 3 * torch.randn(200, 2, generator=generator())
    buffer = ReplayBuffer(0.3, start, start[:, :0])
    buffer.step_size, draws = 4.0, generator()
    for _ in range(60):
        buffer.draw(energy.model, 200, draws)
    assert ACCEPTANCE[0] <= buffer.acceptance <= ACCEPTANCE[1]
    total = energy.model.base.variance_D + 0.3**2
    found = energy.model.base.rotate(buffer.z_PD, start[:, :0]).var(dim=0)
    torch.testing.assert_close(found, total, rtol=0.35, atol=0)


def test_an_energy_that_runs_away_stops_with_its_name() -> None:
    guard, real = Guard(), torch.randn(20, generator=generator())
    with pytest.raises(ContrastiveUnstable, match="not finite"):
        guard.look(1, real, real / 0, 0.6)
    guard.look(1, real, real + 1e3, 0.6)  # it may still settle
    with pytest.raises(ContrastiveUnstable, match="spreads apart"):
        guard.look(100, real, real + 1e3, 0.6)


def test_chains_that_stand_still_stop_the_phase() -> None:
    guard, real = Guard(), torch.randn(20, generator=generator())
    for step in range(20):
        guard.look(step, real, real, 0.01)
    with pytest.raises(ContrastiveUnstable, match="accepted"):
        guard.look(21, real, real, 0.01)


def test_the_whole_phase_reports_and_leaves_the_first_model_alone() -> None:
    """Both copies get their steps; the verdict has both scores; what went in is unchanged."""
    energy, rows = gaussian_model(noise=0.3)
    before = copy.deepcopy(energy.model.state_dict())
    kept, verdict = second_phase(
        energy.model, energy.noise, rows, ModelRows(*(t[:64] for t in rows[:2]), None), PHASE,
        lambda: 0.0, true_energy(energy),
    )  # fmt: skip
    assert verdict.incumbent is not None
    assert verdict.challenger is not None
    assert verdict == decide(verdict.incumbent, verdict.challenger)
    assert kept is not energy.model
    for name, value in energy.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_an_unstable_phase_says_so_and_keeps_denoising() -> None:
    """A weight beyond reason makes a NaN: it is named in the verdict, never replaced."""
    energy, rows = gaussian_model(noise=0.3)
    phase = Phase(seconds=1e9, steps_max=6, batch_size=32, sigma=0.3, weight=float("nan"))
    kept, verdict = second_phase(energy.model, energy.noise, rows, rows, phase, lambda: 0.0)
    assert not verdict.kept
    assert "not finite" in verdict.reason
    assert all(bool(p.isfinite().all()) for p in kept.parameters())


def test_a_training_run_says_which_it_kept(tmp_path: Path) -> None:
    """The verdict is in `state.json`; the checkpoint holds the model that was kept."""
    settings = TrainConfig(width=16, depth=1, site_width=0, max_steps=20, evaluate_every=10,
                           batch_size=32, calibration_particles=0, contrastive_seconds=0.3,
                           device="cpu", threads=1)  # fmt: skip
    points = {"x": gaussian_points(400)}
    train(ArraySource(points), Folder.at(tmp_path), settings)
    verdict = read_state(tmp_path)["contrastive"]
    assert isinstance(verdict["kept"], bool)
    assert verdict["reason"]
    energy = load_energy(tmp_path).energy(points["x"], 1.0, np.zeros((400, 0)))
    assert np.isfinite(energy).all()


def test_given_numbers_go_with_their_chains() -> None:
    layout = RecordLayout.of(
        [FieldLayout("x", "float64", (2,), "m"), FieldLayout("c", "float64", (1,), "1")], ["c"]
    )
    x = gaussian_points(300)
    c = x[:, :1] * 0.5
    energy = record_energy(layout, x, c)
    z, given = energy.to_model(x, c)
    buffer = ReplayBuffer(0.3, z.clone(), given)
    drawn, drawn_given = buffer.draw(energy.model, 40, generator())
    assert drawn.shape == (40, 2)
    place = torch.randperm(300, generator=generator())[:40]
    torch.testing.assert_close(drawn_given, given[place])
