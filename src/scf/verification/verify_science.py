"""Is this code right on something that is known? Train on reference systems and compare.

    python -m scf.verification.verify_science [--system NAME]... [--seconds S] [--seed N]
        [--out DIR] [--json] [--list]

For each system: draw records, train for its CPU seconds (one thread), measure against the exact
energies (`science_figures`), print what is asked beside what was found (`science_table`), and write
`science.json` and one picture a system into `--out`. Exit code 5 where a figure is missed by more
than docs/science.md says, or a check shows a defect; 0 otherwise.
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
from scf.verification.reference_xy import XYLattice
from scf.verification.science_cases import CASES, Case, Joined, System, apart, case_named
from scf.verification.science_figures import Measured, measure_case
from scf.verification.science_pictures import draw_science
from scf.verification.science_table import (
    is_right,
    row_lines,
    rows_of,
    summary_of,
    table_lines,
)

SCHEMA = "scf.science/1"
REPORT_NAME = "science.json"


class Shortfall(VerificationFailed):
    """Figures were missed by more than is documented, or a check shows a defect."""

    def __init__(self, table: list[dict[str, Any]]) -> None:
        wrong = [f"{row['system']} {row['figure']}" for row in table if not is_right([row])]
        super().__init__(
            f"{len(wrong)} of {len(table)} figures and checks failed: {', '.join(wrong)}",
            remedy="Figures are asked for on an idle machine, without --seconds: fewer steps give "
            "less. docs/science.md section 10 says what each means. A DEFECT is none of time.",
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
    assert not isinstance(system, DarcyFlow | XYLattice)
    return system.score(x)


def run_cases(
    cases: Sequence[Case],
    *,
    seconds: float | None = None,
    seed: int,
    tell: Callable[[str], object],
    keep: Callable[[Case, Measured, dict[str, Any]], None],
) -> dict[str, Any]:
    """Train and measure each case; the content of `science.json`.

    Args:
        cases: Which.
        seconds: CPU seconds of training for each; default each case's own.
        seed: Of records, training and measuring.
        tell: Told of progress.
        keep: Given what each picture needs and the report so far, after each case.
    """
    results: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    report = _report(table, results, seed=seed, seconds=seconds)
    for case in cases:
        tell(f"{case.name}: {case.about}\n")
        model, system, took = train_case(case, seconds=seconds or case.seconds, seed=seed)
        began = time.process_time()
        measured = measure_case(model, case, system, seed=seed)
        took["measuring_cpu_seconds"] = round(time.process_time() - began, 1)
        rows = rows_of(case, measured.figures)
        table += rows
        finite = {k: v if math.isfinite(v) else None for k, v in measured.figures.items()}
        results.append({"system": case.name, **took, "figures": finite})
        report = _report(table, results, seed=seed, seconds=seconds)
        keep(case, measured, report)
        tell("".join(f"  {line}\n" for line in row_lines(rows)))
        tell(f"  {took['steps']} steps, {took['cpu_seconds']} CPU seconds\n")
    return report


def _report(
    table: list[dict[str, Any]],
    results: list[dict[str, Any]],
    *,
    seed: int,
    seconds: float | None,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "seed": seed,
        "seconds": seconds,
        "table": table,
        "systems": results,
        "met": all(row["met"] for row in table),
        "right": is_right(table),
        "summary": summary_of(table),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.list:
            sys.stdout.writelines(_listed(case) for case in CASES)
            return 0
        if options.seconds is not None and not options.seconds > 0:
            raise UsageError(f"--seconds {options.seconds} must be above 0")
        out = Folder.at(options.out)

        def keep(case: Case, measured: Measured, so_far: dict[str, Any]) -> None:
            with out.open_staged(f"{case.name}.png") as file:
                draw_science(
                    file,
                    case.about,
                    measured,
                    is_field=bool(case.boundary),
                    unit="the system's own unit" if case.unit else "standard deviations",
                )
            out.write_json(REPORT_NAME, so_far)

        report = run_cases(
            [case_named(name) for name in options.system]
            or [case for case in CASES if not case.is_long],
            seconds=options.seconds,
            seed=options.seed,
            tell=sys.stderr.write,
            keep=keep,
        )
        if options.json:
            sys.stdout.write(json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n")
        else:
            sys.stdout.write("\n".join(table_lines(report)) + "\n")
        sys.stderr.write(f"report and pictures in {out.path}\n")
        if not report["right"]:
            raise Shortfall(report["table"])
    except ScfError as error:
        sys.stderr.write(f"verify-science: {error}\n")
        if error.remedy:
            sys.stderr.write(f"                {error.remedy}\n")
        return error.exit_code
    return 0


def _listed(case: Case) -> str:
    """What `--list` says of a case."""
    named = ", only where named" if case.is_long else ""
    return f"{case.name:18} {case.about} ({case.seconds:g} CPU s{named})\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.verification.verify_science",
        description="Train on systems whose energy is known, and compare.",
        epilog="Exit codes: 0 all figures met, or short no further than docs/science.md says; 5 "
        "one is short beyond that, or a check shows a defect (wrong sign, broken sampler).",
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
        help="CPU seconds of training a system (default: its own, see --list)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of records, training and measuring")
    parser.add_argument("--out", type=Path, default=Path("verify-science"), help="folder to write")
    parser.add_argument("--list", action="store_true", help="the systems and their CPU seconds")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
