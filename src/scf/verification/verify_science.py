"""Is this code right on something that is known? Train on reference systems and compare.

    python -m scf.verification.verify_science [--system NAME]... [--seconds S] [--seed N]
        [--out DIR] [--json]

For each system: draw records, train for `--seconds` of CPU time (one thread), measure against the
exact energies (`science_figures`), print what is asked beside what was found, and write
`science.json` and one picture a system into `--out`. Exit code 5 where a figure is missed.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scf.core.errors import ScfError, UsageError, VerificationFailed
from scf.models.physics import register
from scf.storage.partitions import Folder
from scf.training.api import Model, fit
from scf.verification.reference_darcy import DarcyFlow
from scf.verification.reference_systems import Array
from scf.verification.science_cases import CASES, Case, Joined, System, apart, case_named
from scf.verification.science_figures import Measured, measure_case, rows_of
from scf.verification.science_pictures import draw_science

SCHEMA = "scf.science/1"
REPORT_NAME = "science.json"
DEFAULT_SECONDS = 45.0


class Shortfall(VerificationFailed):
    """Some figures were missed."""

    def __init__(self, missed: int, total: int) -> None:
        super().__init__(
            f"{missed} of {total} figures were missed",
            remedy=f"The budget they are asked for is --seconds {DEFAULT_SECONDS:g}; "
            "docs/science.md says what each means.",
        )


def train_case(
    case: Case, *, seconds: float, seed: int
) -> tuple[Model | Joined, System, dict[str, Any]]:
    """A model of a case's system, the system, and what the training took.

    Args:
        case: What to train on.
        seconds: CPU seconds of training; measuring the normaliser comes on top.
        seed: Of the records and of the training.
    """
    rng = np.random.default_rng([seed, 0])
    system = case.make(rng)
    x = system.sample(case.num, rng)
    for law in case.laws:
        register(law)
    began = time.process_time()
    model = fit(
        apart(x, case.fields) if case.fields else x,
        units=case.units or None,
        boundary=case.boundary,
        true_score=_true_score(system, x) if case.has_true_score else None,
        seconds=seconds,
        seed=seed,
        clock=time.process_time,
        device="cpu",
        threads=1,
        patience=0.0,
        **case.settings,
    )
    took = {
        "cpu_seconds": round(time.process_time() - began, 1),
        "steps": model.state["step"],
        "steps_per_s": round(model.state["step"] / max(model.state["seconds"], 1e-9), 1),
        "records": case.num,
    }
    return Joined(model, case.fields) if case.fields else model, system, took


def _true_score(system: System, x: Array) -> Array:
    assert not isinstance(system, DarcyFlow)
    return system.score(x)


def run_cases(
    cases: Sequence[Case],
    *,
    seconds: float,
    seed: int,
    tell: Callable[[str], object],
    keep: Callable[[Case, Measured], None],
) -> dict[str, Any]:
    """Train and measure each case; the content of `science.json`."""
    results: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    for case in cases:
        tell(f"{case.name}: {case.about}\n")
        model, system, took = train_case(case, seconds=seconds, seed=seed)
        measured = measure_case(model, case, system, seed=seed)
        rows = rows_of(case, measured.figures)
        table += rows
        finite = {k: v if math.isfinite(v) else None for k, v in measured.figures.items()}
        results.append({"system": case.name, **took, "figures": finite})
        keep(case, measured)
        tell(f"  {took['steps']} steps, {took['cpu_seconds']} CPU seconds\n")
    return {
        "schema": SCHEMA,
        "seed": seed,
        "seconds": seconds,
        "table": table,
        "systems": results,
        "met": all(row["met"] for row in table),
    }


def table_lines(report: dict[str, Any]) -> list[str]:
    """The table for people."""
    lines = [f"{'system':18} {'figure':26} {'asked':>10} {'measured':>10}  verdict"]
    for row in report["table"]:
        verdict = "met" if row["met"] else "SHORT"
        found = "none" if row["measured"] is None else f"{row['measured']:.5f}"
        lines.append(
            f"{row['system']:18} {row['figure']:26} {row['asked']:>10} {found:>10}  {verdict}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if not options.seconds > 0:
            raise UsageError(f"--seconds {options.seconds} must be above 0")
        out = Folder.at(options.out)

        def keep(case: Case, measured: Measured) -> None:
            with out.open_staged(f"{case.name}.png") as file:
                draw_science(file, case.about, measured)

        report = run_cases(
            [case_named(name) for name in options.system]
            or [case for case in CASES if not case.is_long],
            seconds=options.seconds,
            seed=options.seed,
            tell=sys.stderr.write,
            keep=keep,
        )
        out.write_json(REPORT_NAME, report)
        if options.json:
            sys.stdout.write(json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n")
        else:
            sys.stdout.write("\n".join(table_lines(report)) + "\n")
        sys.stderr.write(f"report and pictures in {out.path}\n")
        if not report["met"]:
            missed = sum(not row["met"] for row in report["table"])
            raise Shortfall(missed, len(report["table"]))
    except ScfError as error:
        sys.stderr.write(f"verify-science: {error}\n")
        if error.remedy:
            sys.stderr.write(f"                {error.remedy}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.verification.verify_science",
        description="Train on systems whose energy is known, and compare.",
        epilog="Exit codes: 0 all figures met, 5 some missed.",
    )
    names = [case.name for case in CASES]
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        choices=names,
        help="default: all but those that take long (phi4-32-...); may be repeated",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=DEFAULT_SECONDS,
        help=f"CPU seconds of training a system (default {DEFAULT_SECONDS:g})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of records, training and measuring")
    parser.add_argument("--out", type=Path, default=Path("verify-science"), help="folder to write")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
