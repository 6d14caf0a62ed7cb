"""What a person in a notebook is promised: scf.fit, scf.load and the model that they give."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import scf
from scf.core.errors import UsageError
from scf.models.frame import NonFiniteField, TooFewFossils, ZeroVariance
from scf.models.physics import PhysicsConstraint, forget, register
from scf.models.record import LayoutMismatch
from scf.training.api import SamplesNotFinite
from scf.verification.reference_systems import GaussianField
from support.gaussian_records import exact_energy, gaussian_points, solar_days

QUICK = {"preset": "tiny", "width": 24, "site_width": 8, "batch_size": 64, "device": "cpu",
         "calibration_particles": 128, "max_steps": 150}  # fmt: skip


@pytest.fixture(scope="module")
def points() -> scf.Model:
    return scf.fit(gaussian_points(3000), units={"x": "m"}, **QUICK)


@pytest.fixture(scope="module")
def days() -> scf.Model:
    arrays, units = solar_days(200)
    return scf.fit(arrays, units=units, given=["cos_zenith"], **QUICK | {"max_steps": 20})


def test_import_scf_is_light() -> None:
    """`import scf` loads neither torch nor numpy; asking for a name that is not there says so."""
    code = "import sys, scf; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert {"load", "fit", "Model"} <= set(dir(scf))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = scf.nothing_like_it


def test_energies_are_those_of_the_density(points: scf.Model) -> None:
    """fit -> energy is -ln N(x; mean, C + sigma^2) to a tenth of a nat; log_prob is its negative."""
    x = gaussian_points(400, seed=1)
    assert np.abs(points.energy(x, 0.5) - exact_energy(x, 0.5)).mean() < 0.1
    np.testing.assert_allclose(points.log_prob(x, sigma=0.5), -points.energy(x, 0.5))
    np.testing.assert_allclose(points.energy(x), points.energy(x, points.default_sigma))


def test_the_score_is_the_gradient_and_denoising_follows_it(points: scf.Model) -> None:
    x = torch.from_numpy(gaussian_points(6, seed=2)).requires_grad_()
    (slope,) = torch.autograd.grad(points.energy(x, 0.5).sum(), x)
    score = points.score(x.detach(), 0.5)
    torch.testing.assert_close(score, -slope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(points.denoise(x.detach(), 0.5), x.detach() + 0.25 * score)


def test_what_comes_in_as_torch_goes_out_as_torch(points: scf.Model) -> None:
    x = gaussian_points(5)
    assert isinstance(points.energy(x), np.ndarray)
    found = points.energy(torch.from_numpy(x).float(), 0.2)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    np.testing.assert_allclose(found.numpy(), points.energy(x, 0.2), rtol=1e-4)
    assert points.score({"x": x})["x"].shape == (5, 2)


def test_each_record_may_have_its_own_sigma(points: scf.Model) -> None:
    x = gaussian_points(3)
    each = points.energy(x, [0.1, 0.5, 2.0])
    assert each[1] == pytest.approx(points.energy(x[1:2], 0.5)[0], rel=1e-6)
    for bad in (0.0, float("nan"), [0.1, 0.2]):
        with pytest.raises(UsageError, match="sigma"):
            points.energy(x, bad)


def test_samples_are_records(points: scf.Model) -> None:
    x = points.sample(500, steps=8)
    assert x.shape == (500, 2)
    assert np.abs(x.mean(0) - [1.0, -2.0]).max() < 0.2
    np.testing.assert_array_equal(x, points.sample(500, steps=8))
    assert np.isfinite(points.sample(4, steps=4, langevin_steps=2)).all()


def test_samples_keep_the_laws_that_are_named(points: scf.Model) -> None:
    """A registered law by name: residuals fall to the tolerance asked for, or to the law's own."""
    law = PhysicsConstraint(
        name="on_a_line", unit="m", needs=("x",), tolerance=0.1,
        residual=lambda fields: fields["x"][:, 0] + fields["x"][:, 1],
    )  # fmt: skip
    register(law)
    try:
        for keep, spread in ((["on_a_line"], 0.1), ({"on_a_line": 0.01}, 0.01)):
            x = points.sample(400, steps=4, keep=keep, keep_sigma=2.0, keep_moves=1)
            assert x.sum(axis=1).std() == pytest.approx(spread, rel=0.15)
        held = points.sample(20, steps=4, condition={"x": [1.5, np.nan]}, keep={"on_a_line": 0.01})
        np.testing.assert_allclose(held, np.tile([1.5, -1.5], (20, 1)), atol=0.06)
        with pytest.raises(UsageError, match="keep_sigma"):
            points.sample(4, steps=4, keep=["on_a_line"], keep_sigma=0.0)
    finally:
        forget("on_a_line")
    with pytest.raises(UsageError, match="on_a_line"):
        points.sample(4, steps=4, keep=["on_a_line"])


def test_a_model_is_saved_and_loaded(points: scf.Model, tmp_path: Path) -> None:
    """The same numbers come out, and `scf score` reads the folder too."""
    again = scf.load(points.save(tmp_path / "model"))
    x = gaussian_points(10)
    np.testing.assert_array_equal(again.energy(x), points.energy(x))
    assert repr(again).startswith("<scf.Model of x[2] m; sigma ")


def test_given_fields_are_conditions(days: scf.Model) -> None:
    """A condition for each record, one for all, or part of the records themselves."""
    arrays, _ = solar_days(4, seed=1)
    inside = days.energy(arrays, 10.0)
    modelled = {name: arrays[name] for name in ("ghi", "dni", "dhi")}
    condition = {"cos_zenith": arrays["cos_zenith"]}
    np.testing.assert_array_equal(days.energy(modelled, 10.0, condition=condition), inside)

    alike = days.sample(3, steps=4, condition={"cos_zenith": arrays["cos_zenith"][0]})
    assert {name: a.shape for name, a in alike.items()} == dict.fromkeys(modelled, (3, 24))
    assert set(days.sample(2, steps=4)) == set(arrays)
    with pytest.raises(LayoutMismatch, match="cos_zenith"):
        days.energy(modelled)
    with pytest.raises(LayoutMismatch, match="wind"):
        days.sample(2, condition={"wind": np.zeros(24)})


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        (np.zeros((4, 2)), TooFewFossils),
        (np.ones((100, 2)), ZeroVariance),
        (np.full((100, 2), np.nan), NonFiniteField),
        ({"a": np.zeros((10, 2)), "b": np.zeros((11, 2))}, LayoutMismatch),
        (np.array(["a", "b"]), UsageError),
    ],
)
def test_bad_arrays_are_named(arrays, error) -> None:
    with pytest.raises(error):
        scf.fit(arrays, **QUICK)


def test_records_of_another_kind_are_refused(points: scf.Model) -> None:
    with pytest.raises(LayoutMismatch, match="shape"):
        points.energy(np.zeros((3, 5)))
    with pytest.raises(LayoutMismatch, match="not one of"):
        points.energy({"x": np.zeros((3, 2)), "y": np.zeros((3, 2))})
    with pytest.raises(UsageError, match="unknown key"):
        scf.fit(gaussian_points(100), wdith=3)


@pytest.mark.parametrize(
    ("x", "sigma", "error"),
    [
        ([[1.0, np.nan]], 0.1, NonFiniteField),
        ([[1.0, np.inf]], 0.1, NonFiniteField),
        ([["a", "b"]], 0.1, UsageError),
        (np.ones((2, 2)) + 1j, 0.1, UsageError),
        (torch.ones(2, 2, dtype=torch.complex64), 0.1, UsageError),
        (np.ones((2, 2)), "small", UsageError),
        (np.ones((2, 2)), [0.1, 0.1, 0.1], UsageError),
    ],
)
def test_what_is_no_record_has_no_energy(points: scf.Model, x, sigma, error) -> None:
    """An error with a name: no NaN goes through, and no imaginary part is dropped."""
    with pytest.raises(error):
        points.energy(x, sigma)


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    """Steps, not seconds, decide; threads are left as they were."""
    before = torch.get_num_threads()
    short = QUICK | {"max_steps": 10}
    a, b = (scf.fit(torch.from_numpy(gaussian_points(200)), **short) for _ in range(2))
    np.testing.assert_array_equal(a.energy(gaussian_points(9)), b.energy(gaussian_points(9)))
    assert torch.get_num_threads() == before
    scf.fit(gaussian_points(200), out=tmp_path, **short)
    assert (tmp_path / "digests.json").is_file()


def gaussian_fields(num: int = 600) -> tuple[np.ndarray, GaussianField]:
    system = GaussianField.power_law(4, scale=1.0)
    return system.sample(num, np.random.default_rng(0)), system


FIELD = QUICK | {"field_width": 4, "max_steps": 20, "learning_rate": 1e-4, "evaluate_every": 10}


def test_a_periodic_field_gets_a_lattice_that_is_blind_to_translations() -> None:
    """Chosen by itself; energies of a Gaussian field are exact to a few hundredths a site."""
    x, system = gaussian_fields(4000)
    model = scf.fit({"phi": x}, boundary="periodic", **FIELD)
    network = model.config["network"]
    assert (model.config["architecture"], network["body"]) == ("ebdm-lattice/1", "lattice")
    assert network["translation_symmetric"]
    moved = np.roll(x[:50], (1, 2), axis=(1, 2))
    np.testing.assert_allclose(model.energy(moved, 0.3), model.energy(x[:50], 0.3), atol=1e-3)
    assert np.abs(model.energy(x[:200], 0.3) - system.energy(x[:200], 0.3)).mean() < 0.3


def test_the_true_score_is_taken_where_it_is_known() -> None:
    """As a function or as an array; the loss has less to fluctuate."""
    x, system = gaussian_fields()
    plain = scf.fit(x, boundary="periodic", antithetic="on", **FIELD)
    known = scf.fit(x, boundary="periodic", true_score=system.score, **FIELD)
    same = scf.fit(x, boundary="periodic", true_score=system.score(x), **FIELD)
    np.testing.assert_array_equal(known.energy(x[:5]), same.energy(x[:5]))
    assert known.state["best_loss"] < 0.3 * plain.state["best_loss"]
    with pytest.raises(LayoutMismatch, match="true_score"):
        scf.fit(x, true_score=np.zeros(3), **FIELD)


def test_symmetries_are_asked_for_by_name() -> None:
    x, _ = gaussian_fields()
    even = scf.fit(x, boundary="periodic", symmetry="translation,sign", **FIELD)
    np.testing.assert_allclose(even.energy(-x[:9]), even.energy(x[:9]), rtol=1e-5)
    for settings in ({"symmetry": "mirror"}, {"symmetry": "sign"}, {"body": "cnn"}):
        with pytest.raises(UsageError):
            scf.fit(x, **FIELD | settings)


def test_known_numbers_are_held_and_the_rest_is_drawn(points: scf.Model) -> None:
    """Inpainting by energy: x1 given x0 is the regression of a Gaussian; NaN marks the unknown."""
    drawn = points.sample(400, steps=6, condition={"x": [3.0, np.nan]})
    assert (drawn[:, 0] == 3.0).all()
    assert drawn[:, 1].mean() == pytest.approx(-2 + 0.4 * (3 - 1), abs=0.2)
    mixed = np.array([[3.0, np.nan], [np.nan, -2.0], [1.0, 1.0]])
    found = points.sample(3, steps=4, condition={"x": mixed})
    np.testing.assert_array_equal(np.where(np.isnan(mixed), found, mixed), found)
    with pytest.raises(LayoutMismatch, match="known field"):
        points.sample(3, condition={"x": np.zeros((2, 5))})


def test_a_whole_channel_may_be_known(days: scf.Model) -> None:
    arrays, _ = solar_days(3, seed=2)
    found = days.sample(
        3, steps=3, condition={name: arrays[name] for name in ("cos_zenith", "dni", "dhi")}
    )
    np.testing.assert_array_equal(found["dni"], arrays["dni"])
    assert np.isfinite(found["ghi"]).all()


@pytest.mark.parametrize("sampler", ["smc", "langevin"])
def test_other_samplers_draw_records_too(points: scf.Model, sampler: str) -> None:
    x = points.sample(500, steps=10, sampler=sampler)
    assert np.abs(x.mean(0) - [1.0, -2.0]).max() < 0.3
    with pytest.raises(UsageError, match="gibbs"):
        points.sample(1, sampler="gibbs")


def test_a_boundary_that_is_none_is_refused() -> None:
    """A word that is no boundary is named with those that are."""
    with pytest.raises(UsageError, match="'round' is not one of periodic, wall, open"):
        scf.fit(np.zeros((20, 4, 4)), boundary="round")


def test_a_misspelt_setting_is_guessed() -> None:
    """The error says which setting was probably meant."""
    with pytest.raises(UsageError, match="did you mean 'max_steps'"):
        scf.fit(np.zeros((20, 2)), max_step=3)


def test_progress_comes_in_lines() -> None:
    """`talk=print` prints lines, not lines and empty lines."""
    told: list[str] = []
    points = np.random.default_rng(0).normal(size=(60, 2))
    scf.fit(points, preset="tiny", max_steps=2, seconds=60, talk=told.append)
    assert told[0].startswith("step      1  loss ")
    assert not told[0].endswith("\n")


def test_samples_that_are_no_numbers_are_an_error(points: scf.Model, monkeypatch) -> None:
    """A sampler that lost its footing is named; no NaN is handed on as a record."""
    monkeypatch.setattr(
        points.energies, "sample", lambda given, **_: np.full((len(given), 2), np.nan)
    )
    with pytest.raises(SamplesNotFinite, match="3 of 3"):
        points.sample(3)
