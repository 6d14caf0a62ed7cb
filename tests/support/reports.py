"""Reports of schema scf.report/1, as `verification.measure` writes them, made by hand."""

import random
from typing import Any

DIGEST = "c" * 64
PLAN_ID = "d" * 64


def report_json(
    *,
    families: int = 24,
    gain: float = 0.2,
    spread: float = 0.05,
    champion_gain: float | None = None,
    seed: int = 1,
    checkpoint_digest: str = DIGEST,
    plan_id: str = PLAN_ID,
) -> dict[str, Any]:
    """A report whose losses lie `gain` (+- `spread` by family) below those of the baseline."""
    generator = random.Random(seed)
    names = [f"station-{i % 3}-2001-W{i:02d}" for i in range(families)]
    base = {name: 0.9 + generator.gauss(0, 0.1) for name in names}

    def losses(shift: float) -> dict[str, Any]:
        values = {name: base[name] - shift - generator.gauss(0, spread) for name in names}
        mean = sum(values.values()) / max(1, len(values))
        return {"mean": mean, "ci95": [mean - 0.02, mean + 0.02], "by_family": values}

    report = {
        "schema": "scf.report/1",
        "checkpoint_digest": checkpoint_digest,
        "plan_id": plan_id,
        "held_out": {"fossils": 7 * families, "families": families},
        "dsm_loss": losses(gain),
        "baseline_dsm_loss": {"mean": 0.9, "by_family": base},
        "energy": {"real": {"q50": -3.1}, "sampled": {"q50": -2.9}, "corrupted": {"q50": 11.0}},
        "auroc": {"closure": 0.97, "shuffled": 0.91},
        "physics": {
            "closure": {"real": 0.8, "sampled": 2.1, "unit": "W/m2", "tolerance": 9.0, "ok": True}
        },
        "finite": True,
        "seconds": 3.5,
        "files": ["energies.png"],
    }
    if champion_gain is not None:
        report["champion_dsm_loss"] = losses(gain - champion_gain)
    return report
