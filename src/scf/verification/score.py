"""Score fossils: the energy of each under a model, in input order.

    python -m scf.verification.score MODEL PATH... [--sigma S] [--json]

One line a fossil: `cid`, `energy` (nats), `sigma`, `score_norm` (1/sigma_unit). A fossil is taken
as it is, as a point of the density smoothed by sigma; the energy is -ln of that density, in the
data's own coordinates. Sigma is in the data's own unit where all fields share one, else in
multiples of each unit group's scale; `config.json` of the model says which (`sigma_unit`).
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scf.core.errors import InputError, ScfError, UsageError
from scf.fertilization.fossil_batcher import read_records
from scf.models.record_energy import RecordEnergy
from scf.training.checkpoint import load_energy
from scf.training.checkpoint_files import find_checkpoint, read_config
from scf.vault.fossil import Fossil

_ROWS_AT_ONCE = 2048


class FieldsDiffer(InputError):
    """A fossil has not the fields that the model was trained on."""

    def __init__(self, cid: str, reason: str) -> None:
        super().__init__(
            f"fossil {cid}: {reason}",
            remedy="Score fossils of the kind that the model was trained on.",
        )


@dataclass(frozen=True)
class FossilScore:
    """What a model says about one fossil; see the module's words."""

    cid: str
    energy: float
    sigma: float
    score_norm: float


def score_fossils(
    energy: RecordEnergy, fossils: Iterator[Fossil], sigma: float
) -> Iterator[FossilScore]:
    """Scores in the order of the fossils, in bounded memory.

    Raises:
        UsageError: sigma is not above zero.
        FieldsDiffer: A fossil has other fields, shapes or units than the model.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UsageError(f"sigma {sigma} must be a finite number above 0")
    while part := list(itertools.islice(fossils, _ROWS_AT_ONCE)):
        for fossil in part:
            check_fields(energy, fossil)
        names = [field.name for field in (*energy.layout.modelled, *energy.layout.given)]
        arrays = [fossil.arrays() for fossil in part]
        x_ND, c_NK = energy.layout.pack({name: [a[name] for a in arrays] for name in names})
        found = energy.scored(x_ND, sigma, c_NK)
        for fossil, value, norm in zip(part, found.energy_N, found.score_norm_N, strict=True):
            yield FossilScore(fossil.cid, float(value), sigma, float(norm))


def check_fields(energy: RecordEnergy, fossil: Fossil) -> None:
    """Raise FieldsDiffer unless the fossil has the model's fields, in its shapes and units."""
    specs = {spec.name: spec for spec in fossil.specs}
    for field in (*energy.layout.modelled, *energy.layout.given):
        spec = specs.get(field.name)
        if spec is None:
            raise FieldsDiffer(fossil.cid, f"field {field.name!r} is missing")
        if tuple(spec.shape) != field.shape or spec.unit != field.unit:
            raise FieldsDiffer(
                fossil.cid,
                f"field {field.name!r} is {list(spec.shape)} in {spec.unit!r}, "
                f"the model has {list(field.shape)} in {field.unit!r}",
            )


def default_sigma(model: Path) -> float:
    """The sigma at which a model is scored unless told otherwise, in its `sigma_unit`."""
    return float(read_config(find_checkpoint(model))["score_sigma"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        energy = load_energy(options.model)
        sigma = options.sigma if options.sigma is not None else default_sigma(options.model)
        low, high = energy.sigma_range
        if not low <= sigma <= high:
            sys.stderr.write(
                f"score: sigma {sigma:g} lies outside the trained range {low:g} to {high:g} "
                f"({energy.sigma_unit}); energies there are extrapolated\n"
            )
        for scored in score_fossils(energy, read_records(*options.paths), sigma):
            sys.stdout.write(_line(scored, as_json=options.json))
    except ScfError as error:
        sys.stderr.write(f"score: {error}\n")
        if error.remedy:
            sys.stderr.write(f"       {error.remedy}\n")
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: nobody is left to be told
        return 0
    return 0


def _line(scored: FossilScore, *, as_json: bool) -> str:
    if as_json:
        value: dict[str, Any] = vars(scored)
        return json.dumps(value, allow_nan=False) + "\n"
    return f"{scored.cid}  {scored.energy:14.6f}  {scored.sigma:g}  {scored.score_norm:.6g}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.verification.score",
        description="Energy of each fossil under a model, one line a fossil in input order.",
    )
    parser.add_argument("model", type=Path, help="a checkpoint or a generation folder")
    parser.add_argument("paths", nargs="+", type=Path, help="NDJSON files or folders of fossils")
    parser.add_argument(
        "--sigma", type=float, help="noise level, in the model's sigma_unit (default: score_sigma)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
