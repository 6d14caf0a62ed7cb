"""`scf verify-science`: the measuring is right, the table is plain, the program ends as promised."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scf.training import api
from scf.verification.reference_systems import GaussianField, GaussianMixture, Phi4
from scf.verification.science_cases import CASES, Case, Target, case_named
from scf.verification.science_figures import measure_case, rows_of
from scf.verification.verify_science import main, run_cases, table_lines

SMALL = {"field_width": 4, "max_steps": 10, "learning_rate": 1e-5, "evaluate_every": 5}


def gaussian_case(**changes) -> Case:
    return Case(
        **{
            "name": "field",
            "about": "a Gaussian field",
            "make": lambda _: GaussianField.power_law(6),
            "num": 4000,
            "levels": (0.1, 1.0),
            "targets": (Target("score_error@0.1", 0.1), Target("ess@1", 2.0, at_least=True)),
            "settings": SMALL,
        }
        | changes
    )


class Exact:
    """A 'model' that is the truth, or the truth shifted by a constant."""

    def __init__(self, system, shift: float = 0.0) -> None:
        self.system, self.shift = system, shift

    def energy(self, x, sigma):
        return self.system.energy(x, sigma) + self.shift

    def score(self, x, sigma):
        return self.system.score(x, sigma)

    def sample(self, n, *, steps, langevin_steps, seed):
        return self.system.sample(n, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("system", "case"),
    [
        (GaussianField.power_law(6), gaussian_case()),
        (GaussianMixture.ring(), gaussian_case(targets=())),
    ],
)
def test_the_truth_itself_has_no_error(system, case: Case) -> None:
    figures = measure_case(Exact(system), case, system, seed=0).figures
    assert figures["score_error@0.1"] == pytest.approx(0, abs=1e-9)
    assert figures["energy_mae@1"] == pytest.approx(0, abs=1e-9)
    assert figures["ess@0.1"] == pytest.approx(1)
    assert figures["log_z_error_per_site@1"] == pytest.approx(0, abs=1e-9)
    assert figures.get("grid_kl@0.1", 0.0) == pytest.approx(0, abs=1e-3)
    assert figures.get("spectrum_error_median", 0.0) < 0.05


def test_a_wrong_normaliser_is_seen() -> None:
    """A constant changes log Z and nothing else."""
    system = GaussianField.power_law(6)
    figures = measure_case(Exact(system, 3.6), gaussian_case(), system, seed=0).figures
    assert figures["log_z_error_per_site@0.1"] == pytest.approx(0.1)
    assert figures["energy_mae@0.1"] == pytest.approx(0, abs=1e-9)


def test_a_figure_that_is_no_number_is_none_and_short() -> None:
    """NaN is neither met nor written as a number."""
    case = gaussian_case(targets=(Target("score_error@0.1", 0.1),))
    (row,) = rows_of(case, {"score_error@0.1": float("nan")})
    assert (row["measured"], row["met"]) == (None, False)
    assert "none" in table_lines({"table": [row]})[1]


def test_lattice_figures_have_their_ceiling() -> None:
    """The action in place of a model: AUROC equals its ceiling, observables agree."""

    class Action(Exact):
        def energy(self, x, sigma):
            return self.system.action(x)

        def score(self, x, sigma):
            return self.system.score(x)

    system = Phi4(4)
    figures = measure_case(Action(system), gaussian_case(levels=(0.1,)), system, seed=0).figures
    assert figures["auroc_gap_max"] == 0
    assert figures["clean_ess@0.1"] == pytest.approx(1)
    errors = [abs(v) for k, v in figures.items() if k.startswith("observable_")]
    assert len(errors) == 5
    assert max(errors) < 5


def test_a_case_from_training_to_table() -> None:
    """A Gaussian field needs no network: met at once; a bound out of reach is called missed."""
    kept = {}
    report = run_cases(
        [gaussian_case()],
        seconds=5,
        seed=0,
        tell=lambda _: None,
        keep=lambda case, measured: kept.update({case.name: measured}),
    )
    assert [row["met"] for row in report["table"]] == [True, False]
    assert report["met"] is False
    assert table_lines(report)[2].endswith("SHORT")
    assert kept["field"].sampled.shape == (1024, 6, 6)
    json.dumps(report, allow_nan=False)


def test_every_target_names_a_figure_and_every_case_its_system() -> None:
    for case in CASES:
        assert case_named(case.name) is case
        for target in case.targets:
            level = target.figure.partition("@")[2]
            assert not level or float(level) in case.levels
    not_a_number = rows_of(gaussian_case(), {"score_error@0.1": float("nan"), "ess@1": 3.0})
    assert [row["met"] for row in not_a_number] == [False, True]


def test_the_program_writes_report_and_pictures(tmp_path: Path, monkeypatch, capsys) -> None:
    """Short of time some figures are missed: exit code 5, and everything is there to be read."""
    monkeypatch.setattr(
        "scf.verification.verify_science.CASES", (gaussian_case(name="gaussian-field"),)
    )
    monkeypatch.setattr("scf.verification.verify_science._parser", _parser_of(tmp_path))
    assert main([]) == 5
    out, told = capsys.readouterr()
    assert "score_error@0.1" in out
    assert "1 of 2 figures were missed" in told
    report = json.loads((tmp_path / "science.json").read_text())
    assert report["schema"] == "scf.science/1"
    assert (tmp_path / "gaussian-field.png").stat().st_size > 10_000


def _parser_of(out: Path):
    import argparse

    def make() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        parser.set_defaults(system=[], seconds=5.0, seed=0, out=out, json=False)
        return parser

    return make


def test_the_command_is_there() -> None:
    """`scf verify-science` refuses a system that it does not know, in the program's words."""
    ended = subprocess.run(
        [sys.executable, "-m", "scf.cli.main", "verify-science", "--system", "ising"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "phi4-known-score" in ended.stderr


def test_models_keep_their_interface() -> None:
    """What the figures call is what a model of the API has."""
    assert {"energy", "score", "sample"} <= set(dir(api.Model))
