"""Contrastive divergence with Langevin dynamics, as a second phase that must earn its place.

Denoising sees the energy where noisy data lie. Contrastive divergence (Hinton 2002) looks where the
model itself goes: it lowers the energy of noisy records and raises that of the model's own draws,

    L_cd = mean E(z0 + sigma n, sigma) - mean E(z-, sigma),     z- by chains that follow exp(-E).

At each of a few small noise levels a replay buffer holds the chains (Tieleman 2008); they begin as
draws of the probability-flow ODE. Steps are Metropolis-adjusted, with a length that keeps the
acceptance between 0.5 and 0.7. The weight is small and the denoising losses go on, after Energy
Matching (arXiv 2504.10612).

Two copies of the model then get the same time: one goes on denoising, one does this. The second is
kept only where `verdict.decide` finds it better. A run that becomes unstable stops with a named
error; a NaN is never replaced by a number.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scf.core.errors import TrainingError
from scf.models.descent import geometric_levels
from scf.models.energy_model import EnergyModel
from scf.models.losses import denoising_and_dual
from scf.models.noise import NoiseRange
from scf.models.samplers import MalaState, heun, mala_step
from scf.training.checkpoint import Snapshot
from scf.training.data import ModelRows, TrainingData, model_rows, seed_of
from scf.training.train_config import TrainConfig
from scf.training.verdict import TrueEnergy, Verdict, decide, judge

# Shapes: B minibatch, D modelled numbers, K given numbers.

ACCEPTANCE = (0.5, 0.7)
_LEVELS = 3
_BUFFER = 256
_MOVES = 4
_SIGMA_HIGH = 0.5
# Guards. An acceptance this low for so many steps in a row means that chains stand still; a gap of
# so many spreads of the data's energies means that the energy has run away.
_STUCK, _STUCK_STEPS = 0.05, 20
_GAP_MAX = 10.0
# Steps in which the buffers' step sizes settle before the guards count.
_SETTLING = 50
_AVERAGE = 0.99


class ContrastiveUnstable(TrainingError):
    """The second phase has lost its footing; the model of the first phase is unharmed."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(
            f"contrastive phase stopped at step {step}: {reason}",
            remedy="Lower contrastive_weight, or set contrastive_seconds to 0.",
        )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Settings of the second phase.

    Attributes:
        seconds: Time for each of the two copies.
        weight: Of the contrastive term against denoising.
        dual_weight: As in the first phase.
        learning_rate: Constant; the last of the first phase.
        batch_size: Records of a step.
        sigma: The smallest noise level of the chains, and the level at which the verdict is taken.
        seed: Of minibatches, noise and chains.
        steps_max: Limit on steps, for tests.
    """

    seconds: float
    weight: float = 1e-3
    dual_weight: float = 0.05
    learning_rate: float = 5e-4
    batch_size: int = 128
    sigma: float = 0.05
    seed: int = 0
    steps_max: int = 1_000_000


class ReplayBuffer:
    """Chains at one noise level, moved by MALA with an adapted step.

    Attributes:
        sigma: The level.
        acceptance: Running mean of the fraction of proposals taken.
        step_size: In units of the base's variance.
    """

    def __init__(self, sigma: float, z_PD: Tensor, c_PK: Tensor) -> None:
        self.sigma, self.z_PD, self.c_PK = sigma, z_PD, c_PK
        self.step_size, self.acceptance = 0.3, sum(ACCEPTANCE) / 2

    def draw(
        self, model: EnergyModel, num: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Move `num` of the chains; give them (num, D) and their given numbers (num, K)."""
        place = torch.randperm(len(self.z_PD), generator=generator)[:num]
        c_BK = self.c_PK[place]
        state = MalaState.at(model, model.base.rotate(self.z_PD[place], c_BK), self.sigma, c_BK)
        for _ in range(_MOVES):
            state, taken = mala_step(model, state, step_size=self.step_size, generator=generator)
            self.acceptance += 0.05 * (taken - self.acceptance)
            # Towards the middle of the range: longer while much is taken, shorter while little is.
            self.step_size *= math.exp(0.1 * (taken - sum(ACCEPTANCE) / 2))
            self.step_size = min(4.0, max(1e-6, self.step_size))
        z_BD = model.base.rotate_back(state.w_BD, c_BK)
        self.z_PD[place] = z_BD
        return z_BD, c_BK


def second_phase(
    model: EnergyModel,
    noise: NoiseRange,
    rows: ModelRows,
    held: ModelRows,
    phase: Phase,
    clock: Callable[[], float],
    true_energy: TrueEnergy | None = None,
) -> tuple[EnergyModel, Verdict]:
    """Try contrastive divergence; give the model that is to be used, and why.

    Args:
        model: After the first phase. It is not changed.
        noise: Its trained range.
        rows: Records trained on, in the model's coordinates.
        held: Records that no step sees: the verdict is taken on them. Without any, on `rows`.
        phase: Settings.
        clock: Seconds, as `phase.seconds` counts them.
        true_energy: E(z, sigma), where the truth is known.
    """
    judged = held if len(held.z_ND) >= 2 else rows
    plain = _train(model, noise, rows, phase, clock, weight=0.0)
    try:
        challenger = _train(model, noise, rows, phase, clock, weight=phase.weight)
        if challenger is None or plain is None:
            return model, Verdict(kept=False, reason="there was no time for a step")
    except ContrastiveUnstable as error:
        return plain or model, Verdict(kept=False, reason=str(error))
    scores = [
        judge(
            each,
            judged.z_ND,
            judged.c_NK,
            phase.sigma,
            generator=torch.Generator().manual_seed(seed_of(phase.seed, "verdict", 0)),
            true_energy=true_energy,
        )
        for each in (plain, challenger)
    ]
    verdict = decide(*scores)
    return (challenger if verdict.kept else plain), verdict


def try_contrast(
    last: Snapshot,
    data: TrainingData,
    config: TrainConfig,
    device: torch.device,
    clock: Callable[[], float],
) -> Snapshot:
    """The second phase of a training run: its end, with the model that is to be used.

    The verdict goes into `progress.contrastive`, whence it comes to `state.json` and to reports.
    """
    if data.rows is None:
        reason = "records that are streamed cannot be drawn at random; raise memory_max_bytes"
        last.progress.contrastive = Verdict(kept=False, reason=reason).to_json()
        return last
    frame = last.energy.frame
    rows, held = (_on(model_rows(frame, part), device) for part in (data.rows, data.validation))
    phase = Phase(
        seconds=config.contrastive_seconds,
        weight=config.contrastive_weight,
        dual_weight=config.dual_weight,
        learning_rate=config.learning_rate_at(max(last.progress.step, config.warmup_steps)),
        batch_size=min(config.batch_size, len(rows.z_ND)),
        sigma=config.score_sigma,
        seed=config.seed,
    )
    began = last.energy.model.to(device)
    model, verdict = second_phase(began, last.energy.noise, rows, held, phase, clock)
    last.progress.contrastive = verdict.to_json()
    return replace(last, energy=replace(last.energy, model=model.cpu()))


def _on(rows: ModelRows, device: torch.device) -> ModelRows:
    z_ND, c_NK, s_ND = rows
    return ModelRows(z_ND.to(device), c_NK.to(device), None if s_ND is None else s_ND.to(device))


def _train(
    start: EnergyModel,
    noise: NoiseRange,
    rows: ModelRows,
    phase: Phase,
    clock: Callable[[], float],
    *,
    weight: float,
) -> EnergyModel | None:
    """A copy of the model after so many seconds; its weights averaged. None without a step.

    Raises:
        ContrastiveUnstable: A loss is not finite, chains stand still, or the energies run away.
    """
    began = clock()
    model = copy.deepcopy(start).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=phase.learning_rate, betas=(0.9, 0.99),
                                  weight_decay=0.0)  # fmt: skip
    average = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed_of(phase.seed, "contrastive", 0))
    buffers = _buffers(model, noise, rows, phase, generator) if weight else []
    guard = Guard()
    step = 0
    while clock() - began < phase.seconds and step < phase.steps_max:
        step += 1
        index = torch.randint(len(rows.z_ND), (phase.batch_size,), generator=generator)
        clean_BD, c_BK = rows.z_ND[index], rows.c_NK[index]
        known_BD = None if rows.true_score_ND is None else rows.true_score_ND[index]
        sigma_B = noise.draw(len(index), generator).to(clean_BD)
        noise_BD = torch.randn(clean_BD.shape, generator=generator).to(clean_BD)
        found = denoising_and_dual(
            model, clean_BD, noise_BD, sigma_B, c_BK, true_score_BD=known_BD,
            is_steady=known_BD is not None,
        )  # fmt: skip
        loss = found.denoising_B.mean() + phase.dual_weight * found.dual_B.mean()
        if buffers:
            buffer = buffers[step % len(buffers)]
            gap = _contrast(model, buffer, clean_BD, noise_BD, c_BK, generator, guard, step)
            loss = loss + weight * gap
        if not bool(loss.detach().isfinite()):
            raise ContrastiveUnstable(step, "the loss is not finite")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        keep = min(_AVERAGE, step / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - keep)
    if step == 0:
        return None
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)
    return model.eval()


def _buffers(
    model: EnergyModel,
    noise: NoiseRange,
    rows: ModelRows,
    phase: Phase,
    generator: torch.Generator,
) -> list[ReplayBuffer]:
    """One buffer a level, begun with draws of the probability-flow ODE down to it."""
    buffers = []
    for sigma in geometric_levels(max(_SIGMA_HIGH, 2 * phase.sigma), phase.sigma, _LEVELS):
        index = torch.randint(len(rows.z_ND), (_BUFFER,), generator=generator)
        c_PK = rows.c_NK[index]
        z_PD = heun(model, noise, c_PK, steps=18, generator=generator, sigma_end=sigma)
        buffers.append(ReplayBuffer(sigma, z_PD, c_PK))
    return buffers


def _contrast(
    model: EnergyModel,
    buffer: ReplayBuffer,
    clean_BD: Tensor,
    noise_BD: Tensor,
    c_BK: Tensor,
    generator: torch.Generator,
    guard: "Guard",
    step: int,
) -> Tensor:
    """Mean energy of noisy records minus that of the chains, per number, with its gradient."""
    num = min(len(clean_BD), len(buffer.z_PD))
    drawn_BD, drawn_BK = buffer.draw(model, num, generator)
    sigma_B = clean_BD.new_full((len(clean_BD),), buffer.sigma)
    real_B = model.energy(clean_BD + buffer.sigma * noise_BD, sigma_B, c_BK)
    drawn_B = model.energy(drawn_BD, sigma_B[:num], drawn_BK)
    guard.look(step, real_B.detach(), drawn_B.detach(), buffer.acceptance)
    return (real_B.mean() - drawn_B.mean()) / clean_BD.shape[1]


class Guard:
    """Looks at each step of the chains, and stops a phase that has become unstable."""

    def __init__(self) -> None:
        self._stuck = 0

    def look(self, step: int, real_B: Tensor, drawn_B: Tensor, acceptance: float) -> None:
        """Raises ContrastiveUnstable."""
        if not bool(real_B.isfinite().all() & drawn_B.isfinite().all()):
            raise ContrastiveUnstable(step, "an energy is not finite")
        self._stuck = self._stuck + 1 if acceptance < _STUCK else 0
        if self._stuck > _STUCK_STEPS:
            raise ContrastiveUnstable(step, f"only {acceptance:.3f} of proposals are accepted")
        gap = float((drawn_B.mean() - real_B.mean()).abs() / real_B.std().clamp(min=1e-6))
        if step > _SETTLING and gap > _GAP_MAX:
            raise ContrastiveUnstable(
                step, f"energies of chains and data are {gap:.0f} spreads apart"
            )
