import pytest
import torch

from scf.training.ema import PowerAverage


def test_the_first_step_is_taken_whole() -> None:
    """What stood before the first step leaves no trace."""
    average = PowerAverage([torch.tensor([100.0])], gamma=6.94)
    average.update([torch.tensor([3.0])], 1)
    assert average.weights[0].item() == 3.0


def test_it_averages_over_a_share_of_the_run() -> None:
    """Of weights that equal their step t, the average is t (gamma + 1)/(gamma + 2) for large t."""
    average = PowerAverage([torch.zeros(1, dtype=torch.float64)], gamma=6.94)
    for step in range(1, 5001):
        average.update([torch.tensor([float(step)], dtype=torch.float64)], step)
    assert average.weights[0].item() == pytest.approx(5000 * 7.94 / 8.94, rel=0.002)


def test_it_is_written_over_parameters() -> None:
    """`copy_to` leaves the average in the model."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    average = PowerAverage([parameter], gamma=6.94)
    average.update([torch.tensor([2.0])], 1)
    average.copy_to([parameter])
    assert parameter.item() == 2.0
