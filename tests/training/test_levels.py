"""How many grids a lattice works on, where the settings leave it open."""

from dataclasses import replace

import numpy as np
import pytest

from scf.models.energy_model import BodyDoesNotFit
from scf.training.data import load_data
from scf.training.starting import network_for
from scf.training.train_config import TrainConfig
from support.gaussian_records import ArraySource


def data_of(side: int):
    fields = np.random.default_rng(0).standard_normal((12, side, side))
    return load_data(ArraySource({"phi": fields}), TrainConfig())


def test_one_grid_where_the_gaussian_is_whole_and_more_where_it_is_diagonal() -> None:
    """16 x 16 keeps its covariance; 40 x 40 without translations does not."""
    assert network_for(TrainConfig(), data_of(16)).levels == 1
    assert network_for(TrainConfig(), data_of(40)).levels == 3
    assert network_for(TrainConfig(field_levels=2), data_of(16)).levels == 2


def test_a_child_keeps_its_parent_s_grids() -> None:
    data = data_of(16)
    parent = replace(network_for(TrainConfig(), data), levels=2)
    assert network_for(TrainConfig(), data, like=parent).levels == 2


def test_a_grid_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(BodyDoesNotFit, match="halved"):
        network_for(TrainConfig(field_levels=3), data_of(10))
