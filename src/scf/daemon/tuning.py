"""Propose settings of training from past attempts, with Optuna (extra `[tune]`). Off by default.

A proposal is a function of the past and of the situation: the same both give the same settings,
so an intent stays a value. What is proposed lies within the operator's bounds. The measure of a
past attempt is its held-out denoising loss over that of a Gaussian on the same fossils, so that
attempts on different vaults can be compared.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scf.config import TuneSettings
from scf.core.canonical import canonical_json
from scf.core.errors import MissingTool
from scf.core.identity import sha256_hex
from scf.runs.record import Run

# The newest attempts guide; older ones were made by other code on other fossils.
PAST_MAX = 200


@dataclass(frozen=True)
class PastAttempt:
    """An attempt that was measured: its settings, and its loss over the baseline's."""

    config: Mapping[str, Any]
    value: float


def past_attempts(runs: Iterable[Run]) -> list[PastAttempt]:
    """The measured ones among these runs, oldest first."""
    found = []
    for run in runs:
        loss, baseline = run.facts.get("dsm_loss"), run.facts.get("baseline_dsm_loss")
        config = run.intent.get("config")
        if loss is not None and baseline and isinstance(config, dict):
            found.append(PastAttempt(config, float(loss) / float(baseline)))
    return found[-PAST_MAX:]


def propose(
    past: Sequence[PastAttempt], base: Mapping[str, Any], tune: TuneSettings, situation: Any
) -> dict[str, Any]:
    """`base` with the proposed settings over it.

    Args:
        past: What was tried, oldest first; attempts outside the bounds are passed over.
        base: The settings in force.
        tune: Bounds.
        situation: JSON; seeds what is left to chance.

    Raises:
        MissingTool: Optuna is not installed.
    """
    if not tune.enabled:
        return dict(base)
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingTool(
            "[tune] enabled = true needs Optuna", remedy="pip install 'scf[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = _space(optuna.distributions, tune)
    if not space:
        return dict(base)
    seed = int(sha256_hex(canonical_json(situation))[:8], 16)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=tune.first_random)
    study = optuna.create_study(sampler=sampler, direction="minimize")
    for attempt in past:
        params = _params(attempt.config, base, space)
        if params is not None and math.isfinite(attempt.value):
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=space, value=attempt.value)
            )
    return {**base, **study.ask(space).params}


def _space(kinds: Any, tune: TuneSettings) -> dict[str, Any]:
    space = {}
    for name in ("learning_rate", "weight_decay"):
        low, high = getattr(tune, f"{name}_min"), getattr(tune, f"{name}_max")
        if low < high:
            space[name] = kinds.FloatDistribution(low, high, log=True)
    low, high = tune.batch_size_min, tune.batch_size_max
    sizes = [2**n for n in range(21) if low <= 2**n <= high]
    if len(sizes) > 1:
        space["batch_size"] = kinds.CategoricalDistribution(sizes)
    return space


def _params(
    config: Mapping[str, Any], base: Mapping[str, Any], space: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The part of an attempt's settings that the space has; None where one lies outside of it.

    Attempts with another preset were other networks and say nothing here.
    """
    if config.get("preset") != base.get("preset") or not space.keys() <= config.keys():
        return None
    params = {name: config[name] for name in space}
    is_inside = all(
        kind.low <= params[name] <= kind.high
        if hasattr(kind, "low")
        else params[name] in kind.choices
        for name, kind in space.items()
    )
    return params if is_inside else None
