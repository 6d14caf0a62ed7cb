"""How often does the gate promote what is no better, and find what is?

Simulated: 4,000 candidates a row, each measured on 440 families of ten fossils. The paired gain of
a fossil has standard deviation 1 (sigma); fossils of a family are correlated with rho. Promoting by
the mean of 400 fossils, or by tests over single fossils, stands beside it. `whole_gate` runs
`gate.decide` on reports with five slices of the domain. Beside the decisions: how fast sealed and
training records are searched for near-duplicates, on one core.
"""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scf.verification.gate import decide
from scf.verification.near_duplicates import find_near_duplicates
from scf.verification.report import parse_report
from scf.verification.sequential import SequentialLimits, llr_paths, stops

TRIALS = 4000
FOSSILS = 10
SLICES = 5
LIMITS = SequentialLimits()
FAMILIES = LIMITS.blocks_max

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    alpha: float = 0.05
    min_families: int = 20


def gains(
    gain: float, rho: float, trials: int, seed: int, chunk: int = 250
) -> Iterator[tuple[Floats, Floats]]:
    """(family means, all fossils' standard deviation), trials by trials, fossils on the way."""
    for start in range(0, trials, chunk):
        rng = np.random.default_rng([seed, start])
        shared = math.sqrt(rho) * rng.standard_normal((chunk, FAMILIES, 1), dtype="f4")
        own = math.sqrt(1 - rho) * rng.standard_normal((chunk, FAMILIES, FOSSILS), dtype="f4")
        fossils = (gain + shared + own).astype("f8")
        yield fossils.mean(axis=2), fossils.reshape(chunk, -1).std(axis=1, ddof=1)


def sequential(
    gain: float, *, rho: float = 0.3, trials: int = TRIALS, seed: int = 7
) -> dict[str, float]:
    """Share of candidates that pass the test of the sealed pool, and how many families it took."""
    passed, blocks = [], []
    for means, sigma in gains(gain, rho, trials, seed):
        at, llr = stops(llr_paths(means, sigma, LIMITS), LIMITS)
        passed.append(llr >= LIMITS.llr_high)
        blocks.append(at)
    return {
        "promoted_percent": round(100 * float(np.concatenate(passed).mean()), 2),
        "mean_families": round(float(np.concatenate(blocks).mean()), 1),
    }


def naive(gain: float, rho: float = 0.3, trials: int = TRIALS, seed: int = 8) -> dict[str, float]:
    """The rules that we do not use: 400 single fossils of 40 families, as if independent."""
    better, by_z = [], []
    for start in range(0, trials, 250):
        rng = np.random.default_rng([seed, start])
        shared = math.sqrt(rho) * rng.standard_normal((250, 40, 1))
        own = math.sqrt(1 - rho) * rng.standard_normal((250, 40, FOSSILS))
        fossils = (gain + shared + own).reshape(250, -1)
        mean = fossils.mean(axis=1)
        better.append(mean > 0)
        by_z.append(mean / fossils.std(axis=1, ddof=1) * math.sqrt(fossils.shape[1]) > 1.645)
    return {
        "mean_of_400_is_better": round(100 * float(np.concatenate(better).mean()), 1),
        "z_over_fossils": round(100 * float(np.concatenate(by_z).mean()), 1),
    }


def report_of(means: Floats, sigma: float) -> dict[str, Any]:
    """The smallest report that the gate can judge, with these gains over the champion."""
    names = [f"station-{i % SLICES}/week-{i:03d}" for i in range(len(means))]
    champion = dict.fromkeys(names, 1.0)
    own = {name: 1.0 - float(gain) for name, gain in zip(names, means, strict=True)}
    digest = hashlib.sha256(b"bench").hexdigest()
    return {
        "schema": "scf.report/1", "checkpoint_digest": digest, "plan_id": digest,
        "held_out": {"fossils": FOSSILS * len(names), "families": len(names)},
        "dsm_loss": {"mean": 1.0, "by_family": own},
        "baseline_dsm_loss": {"mean": 2.0, "by_family": champion},
        "champion_dsm_loss": {"mean": 1.0, "by_family": champion, "paired_sigma": sigma},
        "auroc": {}, "physics": {}, "finite": True, "seconds": 1.0, "files": [],
    }  # fmt: skip


def whole_gate(gain: float, *, trials: int = TRIALS, slice_gain: float | None = None) -> float:
    """Share promoted by `decide`; `slice_gain` is that of one slice of the five."""
    promoted = 0
    for means, sigma in gains(gain, 0.3, trials, seed=9, chunk=100):
        if slice_gain is not None:
            means[:, ::SLICES] += slice_gain - gain
        for row, spread in zip(means, sigma.tolist(), strict=True):
            report = parse_report(report_of(row, spread))
            digest = report.checkpoint_digest
            decision = decide(
                report, settings=Settings(), checkpoint_digest=digest, plan_id=digest,
                has_champion=True,
            )  # fmt: skip
            promoted += decision.promote
    return round(100 * promoted / trials, 2)


def strict_slices(gain: float, trials: int = TRIALS) -> float:
    """Share in which a loss beyond 0.05 sigma is ruled out on each of five slices at 95 %."""
    passed = []
    for means, _ in gains(gain, 0.3, trials, seed=10):
        sliced = means.reshape(len(means), -1, SLICES)
        error = sliced.std(axis=1, ddof=1) / math.sqrt(sliced.shape[1])
        passed.append((sliced.mean(axis=1) - 1.664 * error > -0.05).all(axis=1))
    return round(100 * float(np.concatenate(passed).mean()), 1)


def near_duplicates(size: int, training: int, held_out: int = 4096) -> dict[str, float]:
    """Training records a CPU-second, for correlated records of `size` numbers."""
    rng = np.random.default_rng(size)
    # A random walk: neighbouring numbers are alike, as in fields and time series.
    walk = lambda num: rng.standard_normal((num, size)).cumsum(axis=1) / math.sqrt(size)  # noqa: E731
    sealed, blocks = walk(held_out), [walk(training // 10) for _ in range(10)]
    blocks[3][:100] = sealed[:100] * (1 + 5e-4)
    began = time.process_time()
    found = find_near_duplicates(sealed, blocks)
    seconds = time.process_time() - began
    assert found.is_near_N.sum() == 100
    return {
        "records_per_cpu_s": round(training / seconds),
        "pairs_per_cpu_s": round(training * held_out / seconds),
    }


def run() -> dict[str, Any]:
    found: dict[str, Any] = {
        "trials": TRIALS,
        "families_max": FAMILIES,
        "fossils_a_family": FOSSILS,
    }
    for name, gain, rho in [
        ("no_gain_rho_0.3", 0.0, 0.3),
        ("no_gain_rho_0", 0.0, 0.0),
        ("gain_0.1_rho_0.3", 0.1, 0.3),
        ("gain_0.05_rho_0.3", 0.05, 0.3),
        ("loss_0.05_rho_0.3", -0.05, 0.3),
    ]:
        for what, value in sequential(gain, rho=rho).items():
            found[f"{name}.{what}"] = value
    for rule, percent in naive(0.0).items():
        found[f"no_gain_rho_0.3.instead.{rule}_percent"] = percent
    found["whole_gate.no_gain.promoted_percent"] = whole_gate(0.0)
    found["whole_gate.gain_0.1.promoted_percent"] = whole_gate(0.1)
    found["whole_gate.loss_0.05.promoted_percent"] = whole_gate(-0.05)
    found["whole_gate.gain_0.1_but_one_slice_loses_0.3.promoted_percent"] = whole_gate(
        0.1, slice_gain=-0.3
    )
    found["slices_shown_non_inferior_at_gain_0.1_percent"] = strict_slices(0.1)
    for size, training in [(192, 200_000), (4096, 20_000)]:
        for what, value in near_duplicates(size, training).items():
            found[f"near_duplicates.{size}_numbers.{what}"] = value
    print(table(found))
    return found


def table(found: dict[str, Any]) -> str:
    """What was asked, beside what was found."""
    rows = [
        ("false promotion at no gain", "<= 5 % (+-1)", "no_gain"),
        ("power at 0.1 sigma", ">= 85 %", "gain_0.1"),
        ("a loss of 0.05 sigma passes", "<= 1 %", "loss_0.05"),
    ]
    lines = [f"  {'':28} {'asked':14} {'test':>8} {'whole gate':>12}   of {TRIALS:,} each, rho 0.3"]
    for what, asked, name in rows:
        test = found[f"{name}_rho_0.3.promoted_percent"]
        whole = found[f"whole_gate.{name}.promoted_percent"]
        lines.append(f"  {what:28} {asked:14} {test:>6} % {whole:>10} %")
    return "\n".join(lines)
