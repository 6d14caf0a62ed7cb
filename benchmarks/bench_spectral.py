"""Does the field body's spectral layer earn its place, at equal CPU time?

Two systems on 16 x 16 sites, with and without `field_modes`, the same seconds of one CPU thread:

* a Gaussian field whose base is diagonal, as above 1,536 numbers where fields are not alike
  everywhere: the network has to learn every correlation by itself;
* phi^4 at kappa 0.26 with the true score, over a base that is whole in Fourier space.
"""

import dataclasses
import time
from unittest import mock

import numpy as np
import torch

from scf.models import energy_model, frame
from scf.verification.reference_systems import GaussianField, Phi4
from scf.verification.science_cases import Case, case_named
from scf.verification.science_figures import measure_case
from scf.verification.verify_science import train_case

SECONDS = 30.0
MODES = (0, 2)
FIGURES = ("steps", "score_error@0.1", "score_error@0.5", "score_error@1", "energy_correlation@0.1",
           "energy_mae@0.1", "ess@0.1", "log_z_error_per_site@0.1",
           "spectrum_error_median")  # fmt: skip


def cases() -> dict[str, tuple[Case, int]]:
    """Each with the size up to which its base is a full covariance."""
    levels = (0.1, 0.5, 1.0)
    field = case_named("gaussian-field")
    settings = {"batch_size": 32, "symmetry": "none", "field_levels": 1, "validation_max": 64,
                "learning_rate": 5e-3}  # fmt: skip
    phi4 = case_named("phi4-known-score")
    return {
        "gaussian field, diagonal base": (
            dataclasses.replace(
                field, make=lambda _: GaussianField.power_law(16), levels=levels, settings=settings
            ),
            0,
        ),
        "phi4 16x16, kappa 0.26, whole base": (
            dataclasses.replace(
                phi4,
                make=lambda _: Phi4(16, 0.26),
                levels=levels,
                settings={**phi4.settings, "batch_size": 32, "validation_max": 64},
            ),
            1536,
        ),
    }


def run() -> dict:
    torch.set_num_threads(1)
    found = {}
    for name, (case, size_max) in cases().items():
        for modes in MODES:
            settings = {**case.settings, "field_modes": modes}
            began = time.process_time()
            with (
                mock.patch.object(frame, "FULL_COVARIANCE_SIZE_MAX", size_max),
                mock.patch.object(energy_model, "FULL_COVARIANCE_SIZE_MAX", size_max),
            ):
                model, system, took = train_case(
                    dataclasses.replace(case, settings=settings), seconds=SECONDS, seed=0
                )
                figures = measure_case(model, case, system, seed=0).figures | took
            assert np.isfinite(figures["score_error@1"])
            shown = {key: round(figures[key], 5) for key in FIGURES if key in figures}
            shown["cpu_s"] = round(time.process_time() - began, 1)
            found[f"{name}, modes {modes}"] = shown
            print(name, modes, shown, flush=True)
    return found
