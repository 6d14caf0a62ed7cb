"""Which of two models is kept: both spent the same time, and one of them must be plainly better.

Three things are measured at one noise level, on records that no step has seen:

* ess: effective sample share 1 / (E_p[p/q] E_p[q/p]) against a true energy, where one is known.
* drift: chains that start at such records and follow the model for long should stay the same in
  distribution. Root mean square, over observables, of the change in standard errors; 1 is what
  chance gives.
* auroc: chance that a record off the support (a half taken from another record; numbers moved by a
  scale) has a higher energy than a real one.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from scf.models.energy_model import EnergyModel
from scf.models.samplers import MalaState, mala_step

# Shapes: N records, D modelled numbers, K given numbers, O observables.

TrueEnergy = Callable[[Tensor, float], Tensor]

# What counts as better: that much more ESS, drift lower by this factor, that much more AUROC.
MARGIN_ESS, MARGIN_DRIFT, MARGIN_AUROC = 0.02, 0.8, 0.005
_CHAIN = 200
_ROWS = 256
_TARGET = 0.6


@dataclass(frozen=True)
class Scores:
    """What was measured of one model; `ess` is None where no truth is known."""

    ess: float | None
    drift: float
    auroc: float


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger is kept, and why, in words.

    Attributes:
        kept: The challenger takes the incumbent's place.
        reason: One sentence for the report.
        incumbent, challenger: Their scores; None where it did not come to measuring.
    """

    kept: bool
    reason: str
    incumbent: Scores | None = None
    challenger: Scores | None = None

    def to_json(self) -> dict[str, Any]:
        """For `state.json` and reports."""
        return asdict(self)


def decide(incumbent: Scores, challenger: Scores) -> Verdict:
    """Keep the challenger if one figure is better by its margin and none is worse by it."""
    better, worse = [], []
    pairs = [
        ("off-support AUROC", challenger.auroc - incumbent.auroc, MARGIN_AUROC),
        ("long-chain drift", math.log(incumbent.drift / challenger.drift), -math.log(MARGIN_DRIFT)),
    ]
    if incumbent.ess is not None and challenger.ess is not None:
        pairs.insert(0, ("ESS", challenger.ess - incumbent.ess, MARGIN_ESS))
    for name, gain, margin in pairs:
        if gain >= margin:
            better.append(name)
        elif gain <= -margin:
            worse.append(name)
    kept = bool(better) and not worse
    said = [f"{' and '.join(better)} improved"] if better else ["nothing improved by its margin"]
    said += [f"{' and '.join(worse)} became worse"] if worse else []
    return Verdict(kept, ", ".join(said), incumbent, challenger)


def judge(
    model: EnergyModel,
    clean_ND: Tensor,
    c_NK: Tensor,
    sigma: float,
    *,
    generator: torch.Generator,
    true_energy: TrueEnergy | None = None,
    chain: int = _CHAIN,
) -> Scores:
    """Measure one model on records z (N, D) in its coordinates.

    Args:
        model: The energy.
        clean_ND: Records that no step has seen.
        c_NK: Their given numbers.
        sigma: The noise level, in the model's scale.
        generator: On the CPU. The same state for both models: they meet the same noise.
        true_energy: E(z, sigma) in nats, (N,), in the model's coordinates.
        chain: MALA steps of a chain.
    """
    clean_ND, c_NK = clean_ND[:_ROWS], c_NK[:_ROWS]
    noise_ND = torch.randn(clean_ND.shape, generator=generator).to(clean_ND.device)
    noisy_ND = clean_ND + sigma * noise_ND
    sigma_N = noisy_ND.new_full((len(noisy_ND),), sigma)
    ess = None
    with torch.no_grad():
        energy_N = model.energy(noisy_ND, sigma_N, c_NK)
        if true_energy is not None:
            gap_N = (energy_N - true_energy(noisy_ND, sigma)).double()
            gap_N = gap_N - gap_N.mean()
            ess = float(1 / (gap_N.exp().mean() * (-gap_N).exp().mean()))
        aurocs = []
        for spoiled_ND in _off_support(clean_ND, generator):
            spoiled_N = model.energy(spoiled_ND + sigma * noise_ND, sigma_N, c_NK)
            aurocs.append(float((spoiled_N[:, None] > energy_N).double().mean()))
    drift = _drift(model, noisy_ND, sigma, c_NK, chain, generator)
    return Scores(ess, drift, sum(aurocs) / len(aurocs))


def _off_support(clean_ND: Tensor, generator: torch.Generator) -> list[Tensor]:
    size = clean_ND.shape[1]
    spliced_ND = clean_ND.clone()
    spliced_ND[:, size // 2 :] = clean_ND.roll(1, dims=0)[:, size // 2 :]
    moved_ND = clean_ND.clone()
    sign_N = torch.randint(0, 2, (len(clean_ND),), generator=generator).to(clean_ND) * 2 - 1
    at_N = torch.randint(0, size, (len(clean_ND),), generator=generator).to(clean_ND.device)
    moved_ND[torch.arange(len(clean_ND)), at_N] += sign_N
    return [moved_ND] if size < 4 else [spliced_ND, moved_ND]


def _drift(
    model: EnergyModel,
    noisy_ND: Tensor,
    sigma: float,
    c_NK: Tensor,
    chain: int,
    generator: torch.Generator,
) -> float:
    state = MalaState.at(model, model.base.rotate(noisy_ND, c_NK), sigma, c_NK)
    before_NO = _observables(state)
    step_size = 0.3
    for _ in range(chain):
        state, taken = mala_step(model, state, step_size=step_size, generator=generator)
        step_size = min(2.0, max(1e-4, step_size * math.exp(0.5 * (taken - _TARGET))))
    after_NO = _observables(state)
    # Start and end of a long chain are nearly independent, so their variances add.
    error_O = ((before_NO.var(dim=0) + after_NO.var(dim=0)) / len(before_NO)).sqrt()
    change_O = (after_NO.mean(dim=0) - before_NO.mean(dim=0)) / error_O.clamp(min=1e-12)
    return float(change_O.square().mean().sqrt())


def _observables(state: MalaState) -> Tensor:
    """Energy, and along the base's directions in four groups the mean square and fourth power."""
    y_ND = state.w_BD / state.variance_BD.sqrt()
    columns = [state.energy_B]
    for group in y_ND.tensor_split(min(4, y_ND.shape[1]), dim=1):
        columns += [group.square().mean(dim=1), group.square().square().mean(dim=1)]
    return torch.stack(columns, dim=1).double()
