"""How many of some fossils are strange to a model? A short job for the conductor.

    python -m scf.verification.novelty --checkpoint DIR --vault DIR --asked FILE --out FILE

`--asked` holds `{"shards": [...], "sigma": S, "threshold": E, "fossils_max": N}`: shards of the
vault, newest last; the noise level and the energy (nats) above which a fossil is strange, from the
report that the model was measured with. Written: `{"schema", "asked", "strange"}`. Fossils that the
model cannot read, because their fields are others, are strange beyond measure and count so.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from scf.core.canonical import canonical_json
from scf.core.errors import ScfError
from scf.fertilization.fossil_batcher import read_records
from scf.storage import durable
from scf.training.checkpoint import load_energy
from scf.vault.fossil import Fossil
from scf.verification.score import FieldsDiffer, check_fields, score_fossils

SCHEMA = "scf.novelty/1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        asked = json.loads(options.asked.read_bytes())
        energy = load_energy(options.checkpoint)
        # The newest shards first: what has just come is what is asked about.
        paths = [options.vault / name for name in reversed(asked["shards"])]
        fossils = list(itertools.islice(read_records(*paths), int(asked["fossils_max"])))
        known, foreign = [], 0
        for fossil in fossils:
            try:
                check_fields(energy, fossil)
            except FieldsDiffer:
                foreign += 1
            else:
                known.append(fossil)
        strange = foreign + sum(
            scored.energy > asked["threshold"]
            for scored in score_fossils(energy, _each(known), float(asked["sigma"]))
        )
        found = {"schema": SCHEMA, "asked": len(fossils), "strange": strange}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(options.out, canonical_json(found))
    except ScfError as error:
        sys.stderr.write(f"novelty: {error}\n")
        return error.exit_code
    return 0


def _each(fossils: Sequence[Fossil]) -> Iterator[Fossil]:
    yield from fossils


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.verification.novelty",
        description="Count the fossils of some shards that are strange to a model.",
    )
    for name in ("checkpoint", "vault", "asked", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
