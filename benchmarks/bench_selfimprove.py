"""Does the foundry improve its own model, week after week, and is the gain real?

Seven simulated weeks of a whole foundry (tests/support/simulated_weeks.py): real training,
measuring, gate, zoo and releases on records whose density is known, a mixture of twelve Gaussians
in eight dimensions. 250 fossils in the first week, then 250, 500, none, 1,000, 60 and 2,000. Beside
each generation: the first one never trained again (frozen), and training on the same plan and
within the same steps from nothing. Going on has had the steps of the weeks before as well, so the
last plan is also trained on from nothing with the steps of all weeks together.

The foundry's own figures are those of its releases: gains on its sealed pool, with 95 % intervals.
They are checked against the truth on 3,000 records that it never saw: loss, and how far energies
lie from the exact ones (nats). The last week's notes and picture are kept under results/.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

WEEKS = (250, 250, 500, 0, 1000, 60, 2000)
CHECKED = 3000
SIGMA = 0.3
KEPT = Path(__file__).parent / "results" / "selfimprove"


def truth_check(checkpoints: dict[str, Path], truth: Any) -> dict[str, dict[str, float]]:
    """Loss on fresh draws and mean error of the energy, by name; all in one frame and noise."""
    from scf.training.checkpoint import load_energy
    from scf.verification.denoising import HeldOut, add_noise, model_losses

    x = truth.sample(CHECKED, np.random.default_rng(99))
    fresh = HeldOut(
        x, np.zeros((CHECKED, 0)), [f"fresh-{i}" for i in range(CHECKED)], ["a"] * CHECKED
    )
    models = {name: load_energy(path) for name, path in checkpoints.items()}
    frame = next(iter(models.values()))
    noisy = add_noise(fresh, frame, seed=0)
    smoothed = x + SIGMA * np.random.default_rng(98).standard_normal(x.shape)
    exact = truth.energy(smoothed, SIGMA)
    found = {}
    for name, model in models.items():
        error = np.abs(model.energy(smoothed, SIGMA, fresh.c_NK) - exact)
        found[name] = {
            "loss": round(float(model_losses(noisy, model, frame).mean()), 4),
            "energy_error_nats": round(float(error.mean()), 3),
        }
    return found


def train_once(plan: Path, foundry: Any, generations: int, out: Path) -> Path:
    """From nothing on the last plan with as many steps as all generations took together."""
    from scf.training.train_ebdm import main

    config = out.with_suffix(".json")
    steps = foundry.max_steps * generations
    settings = {"preset": "tiny", "max_steps": steps, "max_seconds": 600.0, "device": "cpu"}
    config.write_text(json.dumps(settings))
    vault = foundry.works.root / "fossil_vault"
    command = ["--plan", plan, "--vault", vault, "--config", config, "--out", out]
    assert main([str(part) for part in command]) == 0
    return out


def run() -> dict[str, Any]:
    from support.simulated_weeks import SimulatedWeeks

    figures: dict[str, Any] = {"weeks": len(WEEKS), "fresh_fossils": list(WEEKS)}
    with tempfile.TemporaryDirectory() as place:
        # A new home is recorded for the user; not this one.
        os.environ["XDG_CONFIG_HOME"] = str(Path(place) / "config")
        foundry = SimulatedWeeks(Path(place))
        controls: dict[str, Path] = {}
        for number, fresh in enumerate(WEEKS, start=1):
            made, release = foundry.live(fresh)
            about = json.loads((release / "RELEASE.json").read_text())
            figures[f"week_{number}.fresh_fossils"] = fresh
            figures[f"week_{number}.kind"] = about["kind"]
            figures[f"week_{number}.generation"] = about["generation"]["name"]
            if made is not None and "generation" in made.facts:
                job = foundry.works.root / "system_cache" / "jobs" / f"{made.run_id}-control-1"
                if job.is_dir():
                    controls[made.facts["generation"]] = job / "outputs" / "checkpoint"
        steps = json.loads((release / "metrics.json").read_text())["improvement"]
        for step in steps:
            for name in ("over_champion", "over_frozen", "over_scratch"):
                if step[name] is not None:
                    low, high = (round(end, 4) for end in step[name]["ci95"])
                    told = f"{step[name]['mean']:+.4f} ({low} to {high})"
                    figures[f"{step['generation']}.{name}"] = told
        zoo = foundry.works.root / "model_zoo"
        models = {step["generation"]: zoo / step["generation"] / "checkpoint" for step in steps}
        last = zoo / steps[-1]["generation"]
        models[f"{last.name}.from_nothing_all_weeks_steps"] = train_once(
            last / "plan.json", foundry, len(steps), Path(place) / "all_steps"
        )
        models |= {f"{name}.from_nothing": path for name, path in controls.items()}
        for name, found in truth_check(models, foundry.truth).items():
            for what, value in found.items():
                figures[f"truth.{name}.{what}"] = value
        KEPT.mkdir(exist_ok=True)
        shutil.copyfile(release / "NOTES.md", KEPT / "NOTES.md")
        shutil.copyfile(release / "plots" / "improvement.svg", KEPT / "improvement.svg")
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures["cpu_s"] = round(sum(usage.ru_utime + usage.ru_stime for usage in spent))
    return figures
