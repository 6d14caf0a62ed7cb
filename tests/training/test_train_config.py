import math
import subprocess
import sys

import pytest

from scf.core.errors import UsageError
from scf.training.train_config import TrainConfig, build_config, preset_names


def test_presets_are_data_and_each_is_valid() -> None:
    """Every TOML file under presets/ makes a config."""
    assert {"base", "tiny"} <= set(preset_names())
    for name in preset_names():
        assert build_config({"preset": name}).preset == name


def test_later_layers_win() -> None:
    """Preset, then file, then command line."""
    config = build_config({"preset": "tiny", "width": 10, "seed": 1}, {"seed": 2})
    assert (config.width, config.seed, config.depth) == (10, 2, 1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"widht": 3}, "unknown key 'widht'"),
        ({"preset": "huge"}, "preset 'huge'"),
        ({"width": 0}, "width"),
        ({"width": "wide"}, "not int"),
        ({"batch_size": 2.5}, "not int"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"sigma_min": 2.0}, "noise levels"),
        ({"max_seconds": float("nan")}, "max_seconds"),
    ],
)
def test_wrong_settings_are_refused_by_name(values, told: str) -> None:
    """A setting that cannot be meant is an error that names it, never a guess."""
    with pytest.raises(UsageError, match=told):
        build_config(values)


def test_a_stored_config_is_the_same_config() -> None:
    """Through JSON and back."""
    config = build_config({"preset": "tiny"})
    assert TrainConfig.from_json(config.to_json()) == config


def test_learning_rate_rises_then_falls_like_the_root() -> None:
    """It depends on the step alone, so a run may end anywhere."""
    config = TrainConfig(learning_rate=1.0, warmup_steps=10, decay_steps=100)
    assert [config.learning_rate_at(step) for step in (5, 10, 100, 400)] == [0.5, 1.0, 1.0, 0.5]


def test_weight_decay_is_for_few_fossils() -> None:
    """All of it for 930 days of 192 numbers, nearly nothing for 4000 points of 2."""
    config = TrainConfig(weight_decay=1.0)
    assert config.weight_decay_for(192, 760) == 1.0
    assert config.weight_decay_for(2, 4000) == pytest.approx(0.002)


def test_settings_do_not_need_torch() -> None:
    """The conductor reads settings and checkpoint files without it."""
    code = (
        "import sys; import scf.training.train_config, scf.training.checkpoint_files;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_cosine_ends_at_nought() -> None:
    """After the warm-up half a cosine: half of the rate half-way, none at the end or after it."""
    config = TrainConfig(learning_rate=4e-3, warmup_steps=10, cosine_steps=1000)
    assert config.learning_rate_at(5) == pytest.approx(2e-3, rel=1e-3)
    assert config.learning_rate_at(500) == pytest.approx(2e-3)
    assert config.learning_rate_at(250) == pytest.approx(4e-3 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert config.learning_rate_at(1000) == config.learning_rate_at(2000) == pytest.approx(0)
