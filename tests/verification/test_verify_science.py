"""`scf verify-science`: the measuring is right, the table is plain, the program ends as promised."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scf.training import api
from scf.verification.reference_systems import GaussianField, GaussianMixture, Phi4
from scf.verification.science_cases import CASES, Case, Target, case_named
from scf.verification.science_figures import measure_case
from scf.verification.science_table import table_lines
from scf.verification.verify_science import main, run_cases
from support.science import Exact, gaussian_case


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
        keep=lambda case, measured, report: kept.update({case.name: (measured, report)}),
    )
    assert [row["verdict"] for row in report["table"]] == ["met", "SHORT", *["sound"] * 3]
    assert (report["met"], report["right"]) == (False, False)
    lines = table_lines(report)
    assert lines[2].endswith("SHORT")
    assert lines[3].split() == ["field", "checks", "3", "sound"]
    assert lines[-1] == report["summary"]
    measured, so_far = kept["field"]
    assert measured.sampled.shape == (1024, 6, 6)
    assert so_far == report
    json.dumps(report, allow_nan=False)


def test_every_target_names_a_figure_and_every_case_its_system() -> None:
    for case in CASES:
        assert case_named(case.name) is case
        for target in case.targets:
            level = target.figure.partition("@")[2]
            assert not level or float(level) in case.levels
            if target.known is not None:  # further from what is asked, not nearer
                assert not target.is_met(target.known)


def test_the_program_writes_report_and_pictures(tmp_path: Path, monkeypatch, capsys) -> None:
    """Short of time some figures are missed: exit code 5, and everything is there to be read."""
    monkeypatch.setattr(
        "scf.verification.verify_science.CASES", (gaussian_case(name="gaussian-field"),)
    )
    monkeypatch.setattr("scf.verification.verify_science._parser", _parser_of(tmp_path))
    assert main([]) == 5
    out, told = capsys.readouterr()
    assert "score_error@0.1" in out
    assert "1 of 5 figures and checks failed: gaussian-field ess@1" in told
    report = json.loads((tmp_path / "science.json").read_text())
    assert report["schema"] == "scf.science/1"
    assert (tmp_path / "gaussian-field.png").stat().st_size > 10_000


def test_a_shortfall_that_is_documented_ends_well(tmp_path: Path, monkeypatch, capsys) -> None:
    """Exit code 0, and the table says that it is short."""
    known = Target("ess@1", 2.0, at_least=True, known=0.5)
    monkeypatch.setattr("scf.verification.verify_science.CASES", (gaussian_case(targets=(known,)),))
    monkeypatch.setattr("scf.verification.verify_science._parser", _parser_of(tmp_path))
    assert main([]) == 0
    assert "short, known" in capsys.readouterr().out


def test_systems_are_listed() -> None:
    """Each with its CPU seconds; nothing is trained."""
    command = [sys.executable, "-m", "scf.cli.main", "verify-science", "--list"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0
    assert [line.split()[0] for line in ended.stdout.splitlines()] == [c.name for c in CASES]
    assert "only where named" in ended.stdout


def _parser_of(out: Path):
    import argparse

    def make() -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser()
        parser.set_defaults(system=[], seconds=5.0, seed=0, out=out, json=False, list=False)
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
