"""`scf train`, `score`, `sample`, `verify-science`: each starts its program with the same Python.

They run as processes of their own, so that the command line never loads torch.
"""

import subprocess
import sys
from pathlib import Path

import click

from scf.cli.common import Context, common_options, json_option
from scf.core.errors import InputError, MissingTool

_FOLDER = click.Path(path_type=Path, file_okay=False)
_ANY = click.Path(path_type=Path)


@click.command()
@click.argument("more", nargs=-1, type=_ANY, metavar="[PATH]...")
@click.option(
    "--fossils",
    "fossils",
    multiple=True,
    required=True,
    type=_ANY,
    metavar="PATH...",
    help="NDJSON files or folders of fossils; several may follow one --fossils.",
)
@click.option("--out", type=_FOLDER, required=True, help="Folder for the checkpoint.")
@click.option("--preset", help="Defaults by name: tiny, base, h100.")
@click.option("--config", "config_file", type=_ANY, help="Settings as JSON.")
@click.option("--max-seconds", type=float, help="Limit on training time, resumes included.")
@click.option("--max-steps", type=int, help="Limit on steps, resumes included.")
@click.option("--seed", type=int, help="The same seed gives the same run on a CPU.")
@click.option("--device", type=click.Choice(["auto", "cuda", "mps", "cpu"]))
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, if any.")
@click.option("--parent", type=_ANY, help="Checkpoint whose weights and frame to go on from.")
@click.option("--progress", type=_ANY, help="Append progress here, one JSON object a line.")
@click.option("--tensorboard", type=_FOLDER, help="Folder for TensorBoard's event files.")
@common_options
def train(
    context: Context,
    more: tuple[Path, ...],
    fossils: tuple[Path, ...],
    resume: bool,
    config_file: Path | None,
    **options: object,
) -> int:
    """Train an energy-based diffusion model on fossils.

    Ctrl-C (or SIGTERM) writes a checkpoint and ends in order; --resume goes on from it.
    """
    context.require_clear("training")
    arguments = ["--fossils", *map(str, (*fossils, *more))]
    if config_file is not None:
        arguments += ["--config", str(config_file)]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return _run("scf.training.train_ebdm", [*arguments, *(["--resume"] if resume else [])])


@click.command()
@click.argument("model", type=_ANY)
@click.argument("paths", nargs=-1, required=True, type=_ANY)
@click.option("--sigma", type=float, help="Noise level, in the model's sigma_unit.")
@json_option
@common_options
def score(
    context: Context, model: Path, paths: tuple[Path, ...], sigma: float | None, as_json: bool
) -> int:
    """Energy of each fossil under MODEL (nats), one line a fossil in input order."""
    del context
    arguments = [str(model), *map(str, paths)]
    if sigma is not None:
        arguments += ["--sigma", repr(sigma)]
    return _run("scf.verification.score", [*arguments, *(["--json"] if as_json else [])])


@click.command()
@click.argument("model", type=_ANY)
@click.option("--num", type=int, required=True, help="How many records.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--steps", type=int, help="Noise levels of the solver (default 32).")
@click.option("--langevin", type=int, help="Langevin steps after it (default 0).")
@click.option("--seed", type=int, help="The same seed gives the same records on a CPU.")
@common_options
def sample(context: Context, model: Path, **options: object) -> int:
    """Draw records from MODEL into an npz file, one array a field."""
    del context
    arguments = [str(model)]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", str(value)]
    return _run("scf.verification.sample", arguments)


@click.command("verify-science")
@click.option(
    "--system",
    multiple=True,
    metavar="NAME",
    help="One of --list; may be repeated. Default: all but those that take long.",
)
@click.option("--list", "is_list", is_flag=True, help="The systems, and the CPU seconds of each.")
@click.option("--seconds", type=float, help="CPU seconds of training a system (default: its own).")
@click.option("--seed", type=int, help="Of records, training and measuring.")
@click.option("--out", type=_FOLDER, help="Folder for report and pictures (./verify-science).")
@json_option
@common_options
def verify_science(
    context: Context, system: tuple[str, ...], is_list: bool, as_json: bool, **options: object
) -> int:
    """Train on systems whose energy is known exactly, and compare.

    Prints what is asked beside what was measured. Exit code 5 where a figure is missed by more than
    docs/science.md says, or a check shows a defect (a wrong sign, a broken sampler).
    """
    del context
    arguments = [part for name in system for part in ("--system", name)]
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name}", str(value)]
    module = "scf.verification.verify_science"
    arguments += ["--list"] if is_list else []
    return _run(module, [*arguments, *(["--json"] if as_json else [])])


def _run(module: str, arguments: list[str]) -> int:
    """Run a program of ours; its exit code is ours. Ctrl-C reaches it, and we wait for its end."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingTool(
            "training and scoring need torch, which is not installed",
            remedy="Install the extra: `pip install 'scf[train]'`.",
        )
    try:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    except OSError as error:
        raise InputError(f"{sys.executable}: cannot be started: {error.strerror}") from error
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it the same signal; it ends in order
