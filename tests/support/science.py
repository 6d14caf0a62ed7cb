"""A reference system in place of a trained model, and a case that takes a second."""

import numpy as np

from scf.verification.reference_systems import GaussianField
from scf.verification.science_cases import Case, Target

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
