import numpy as np
import pytest
import torch

from scf.models.frame import TooFewFossils
from scf.training.data import load_data, seed_of
from scf.training.train_config import TrainConfig
from support.gaussian_records import ArraySource, gaussian_points

CONFIG = TrainConfig(batch_size=32)
STREAMED = TrainConfig(batch_size=32, memory_max_bytes=1000)


def source(num: int = 500, **options) -> ArraySource:
    return ArraySource({"x": gaussian_points(num)}, **options)


def test_validation_fossils_are_never_trained_on() -> None:
    """Every fossil is on one side, whole families at a time."""
    families = [f"week-{row // 10}" for row in range(500)]
    data = load_data(source(families=families), CONFIG)
    held, rows = data.validation[0], data.rows[0]
    assert len(held) + len(rows) == 500
    assert 0 < len(held) <= 50
    assert len(held) % 10 == 0
    assert not {tuple(x) for x in held} & {tuple(x) for x in rows}


def test_one_large_family_does_not_prevent_validation() -> None:
    """Where no family is small enough, single fossils are set aside."""
    data = load_data(source(families=["all"] * 500), CONFIG)
    assert len(data.validation[0]) == 50


def test_the_order_of_reading_does_not_matter() -> None:
    """The same fossils in other minibatches give the same rows."""
    one, other = (load_data(source(batch_size=size), CONFIG) for size in (7, 64))
    np.testing.assert_array_equal(one.rows[0], other.rows[0])
    np.testing.assert_array_equal(one.validation[0], other.validation[0])


def test_streamed_and_loaded_agree_on_what_they_see() -> None:
    """Past the memory limit validation fossils come from the same ones, and moments nearly agree."""
    loaded, streamed = load_data(source(), CONFIG), load_data(source(), STREAMED)
    assert streamed.rows is None
    assert 440 <= streamed.num_fossils <= 475
    assert {tuple(x) for x in streamed.validation[0]} <= {tuple(x) for x in loaded.validation[0]}
    np.testing.assert_allclose(streamed.fit()[0].scale_D, loaded.fit()[0].scale_D, rtol=0.05)


def test_streamed_minibatches_leave_validation_out() -> None:
    """No validation fossil is ever in a minibatch."""
    from_source = source()
    data = load_data(from_source, STREAMED)
    frame, _ = data.fit()
    minibatches = data.minibatches(from_source, frame, STREAMED)
    seen = torch.cat([minibatches.draw(step).rows.z_ND for step in range(1, 30)])
    held = torch.from_numpy(frame.to_model(data.validation[0])).float()
    assert len(held) > 0
    assert not (seen[:, None] == held[None]).all(dim=2).any()


@pytest.mark.parametrize("config", [CONFIG, STREAMED], ids=["loaded", "streamed"])
@pytest.mark.parametrize("stop", [1, 5, 14, 15, 16, 31])
def test_minibatches_go_on_where_they_stopped(config: TrainConfig, stop: int) -> None:
    """State taken after any step gives the same next minibatches, bit for bit."""
    first_source, second_source = source(), source()
    data = load_data(first_source, config)
    frame, _ = data.fit()
    whole = data.minibatches(first_source, frame, config)
    for step in range(1, stop + 1):
        whole.draw(step)
    state = whole.get_state()
    expected = [whole.draw(step).rows.z_ND for step in range(stop + 1, stop + 20)]

    load_data(second_source, config)
    resumed = data.minibatches(second_source, frame, config)
    resumed.set_state(state)

    for step, minibatch in enumerate(expected, start=stop + 1):
        assert torch.equal(resumed.draw(step).rows.z_ND, minibatch)


def test_an_epoch_shows_each_fossil_once() -> None:
    """Loaded minibatches of one epoch do not repeat a fossil."""
    data = load_data(source(), CONFIG)
    frame, _ = data.fit()
    minibatches = data.minibatches(source(), frame, CONFIG)
    steps = data.num_fossils // 32
    seen = torch.cat([minibatches.draw(step).rows.z_ND for step in range(1, steps + 1)])
    assert len(torch.unique(seen, dim=0)) == 32 * steps


def test_no_fossils_is_a_named_error() -> None:
    """Seven points are refused with the number found."""
    with pytest.raises(TooFewFossils, match="7 fossils"):
        load_data(source(7), CONFIG)


def test_seeds_of_purposes_are_independent() -> None:
    """Another purpose, number or seed gives another stream."""
    assert (
        len({seed_of(0, "a", 1), seed_of(0, "b", 1), seed_of(0, "a", 2), seed_of(1, "a", 1)}) == 4
    )
