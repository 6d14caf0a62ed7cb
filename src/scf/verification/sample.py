"""Draw records from a model into an npz file.

    python -m scf.verification.sample MODEL --num N --out FILE.npz [--steps K] [--seed N]

The file holds one array for each field, [N, *shape], in original units and the field's own dtype.
Given fields (coordinates such as cos_zenith) are those of training records drawn at random, and are
in the file too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from scf.core.errors import ScfError, UsageError
from scf.models.record_energy import as_fields
from scf.storage.partitions import Folder
from scf.training.checkpoint import load_energy


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.num < 1 or options.steps < 2 or options.langevin < 0:
            raise UsageError("--num must be at least 1, --steps at least 2, --langevin at least 0")
        energy = load_energy(options.model)
        generator = torch.Generator().manual_seed(options.seed)
        given_NK = energy.draw_given(options.num, generator)
        x_ND = energy.sample(
            given_NK, steps=options.steps, generator=generator, langevin_steps=options.langevin
        )
        out: Path = options.out
        with Folder.at(out.parent).open_staged(out.name) as file:
            np.savez(file, **as_fields(energy, x_ND, given_NK))  # type: ignore[arg-type]
    except ScfError as error:
        sys.stderr.write(f"sample: {error}\n")
        if error.remedy:
            sys.stderr.write(f"        {error.remedy}\n")
        return error.exit_code
    sys.stderr.write(f"{options.num} records written to {out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.verification.sample",
        description="Draw records from a model into an npz file, one array a field.",
    )
    parser.add_argument("model", type=Path, help="a checkpoint or a generation folder")
    parser.add_argument("--num", type=int, required=True, help="how many records")
    parser.add_argument("--out", type=Path, required=True, help="the npz file to write")
    parser.add_argument(
        "--steps", type=int, default=32, help="noise levels of the solver (default 32)"
    )
    parser.add_argument(
        "--langevin", type=int, default=0, help="Metropolis-adjusted Langevin steps after it"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same records (CPU)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
