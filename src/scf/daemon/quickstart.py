"""`scf quickstart`: real records in, one whole turn of the loop, a verified weekly release out.

Nothing here is special to the quickstart: it makes a foundry as `scf init` does, ingests as
`scf ingest` does, lets the conductor run until it is idle, and starts the release's own verifier in
a process that knows nothing of ours. The records are the typical meteorological years that ship
inside the pvlib package.
"""

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scf.config import FoundryConfig, TrainingSettings, load_config
from scf.config.home import source_checkout
from scf.config.settings import CONFIG_NAME
from scf.core.clock import SystemClock
from scf.core.errors import NothingToDo, ScfError, UsageError, VerificationFailed
from scf.core.units import format_duration
from scf.daemon.rooms import Rooms, open_local_door
from scf.daemon.scf_daemon import run_daemon
from scf.daemon.setup import initialise
from scf.fertilization.primordial_soup import IngestProgress, IngestReport, PrimordialSoupIngestor
from scf.fertilization.readers.tmy import demo_files
from scf.runs.store import RunStore
from scf.signing.keys import load_signer
from scf.storage import durable
from scf.storage.partitions import Drive, Folder
from scf.vault.journal import Vault

Talk = Callable[[str], None]

VERIFY_TIMEOUT_S = 120.0
# Steps after which the held-out loss of these records has settled (docs/LOG.md), and a limit for
# machines that would take very long over them.
STEPS = 2500
SECONDS_MAX = 150.0
REPORT_NAME = "report.md"


class QuickstartIncomplete(ScfError):
    """The loop did not come round: the reason is in the message."""


@dataclass(frozen=True)
class Outcome:
    """What a quickstart leaves.

    Attributes:
        root, home: The foundry.
        ingest: Counts of all three stations together.
        generation, run_id: What was promoted, and the run that made it.
        release: The release's folder.
        metrics: The held-out report of the promoted generation.
        picture: The picture to look at; None if measuring drew none.
        report: The page with all of it.
        seconds: Wall time of each part, in order.
    """

    root: Path
    home: Path
    ingest: Mapping[str, int]
    generation: str
    run_id: str
    release: Path
    metrics: Mapping[str, Any]
    picture: Path | None
    report: Path
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "schema_version": 1,
            "root": str(self.root),
            "home": str(self.home),
            "ingest": dict(self.ingest),
            "generation": self.generation,
            "run": self.run_id,
            "release": str(self.release),
            "metrics": dict(self.metrics),
            "picture": str(self.picture) if self.picture else None,
            "report": str(self.report),
            "seconds": dict(self.seconds),
        }

    def text(self) -> str:
        """For people."""
        return "\n".join([*_summary(self), "", *_where_to_look(self)])


def run_quickstart(config: FoundryConfig, *, report_folder: Path | None, talk: Talk) -> Outcome:
    """Do one whole turn; see `scf quickstart --help`.

    Raises:
        NothingToDo: The records are in the vault and their release stands.
        QuickstartIncomplete: No generation or no release came out, with the reason.
        MissingTool: pvlib or torch is not installed.
    """
    began = time.monotonic()
    seconds: dict[str, float] = {}
    files = demo_files()
    places = initialise(config.home, config.root or _default_root())
    config = _with_budget(load_config(places.home, root=places.root, environment={}))
    drive = Drive.open(places.root)
    talk(f"[1/4] Foundry: drive {places.root}, home {places.home}")

    talk("[2/4] Ingest: typical meteorological years of three stations, from the pvlib package")
    mark = time.monotonic()
    reports = _ingest(config, drive, files, talk)
    counts = {
        name: sum(getattr(report, name) for report in reports)
        for name in ("read", "accepted", "duplicates", "quarantined")
    }
    seconds["ingest"] = round(time.monotonic() - mark, 1)
    talk(
        f"      {counts['read']} days read: {counts['accepted']} accepted, "
        f"{counts['duplicates']} known already, {counts['quarantined']} quarantined "
        f"({format_duration(seconds['ingest'])})"
    )

    before = _standing(config, drive)
    talk(
        "[3/4] Conductor: plan, train on the CPU, measure on held-out weeks, sign, promote, release"
    )
    mark = time.monotonic()
    code = run_daemon(config, until_idle=True, talk=lambda line: talk(f"      {line}"))
    seconds["conductor"] = round(time.monotonic() - mark, 1)
    generation, release = _standing(config, drive)
    if code != 0 or generation is None or release is None:
        raise QuickstartIncomplete(
            f"no release came out: {_last_reason(config)}",
            remedy="A slow or busy machine may need more than "
            f"{config.training.max_seconds:.0f} s of training: raise [training] max_seconds in "
            f"{places.home / CONFIG_NAME}, remove {places.root} and start again.",
        )
    folder = Folder.at(report_folder or places.home / "quickstart")
    is_told = (folder.path / REPORT_NAME).exists()
    if counts["accepted"] == 0 and before == (generation, release) and is_told:
        raise NothingToDo(
            f"nothing new: {counts['duplicates']} days are in the vault already, "
            f"{generation} stands and {release.name} is released"
        )

    talk("[4/4] Verify: the release's own verifier, in a process that knows nothing of scf")
    mark = time.monotonic()
    for line in _verify_as_a_stranger(release, places.home / "keys" / "foundry.pub").splitlines():
        talk(f"      {line}")
    seconds["verify"] = round(time.monotonic() - mark, 1)
    seconds["total"] = round(time.monotonic() - began, 1)
    outcome = _outcome(config, drive, generation, release, counts, seconds, folder)
    _write_report(outcome)
    return outcome


def _with_budget(config: FoundryConfig) -> FoundryConfig:
    """Enough steps for these records, and time for them on a slow machine; settings made stand."""
    if config.training != TrainingSettings():
        return config
    training = dataclasses.replace(config.training, max_steps=STEPS, max_seconds=SECONDS_MAX)
    return dataclasses.replace(config, training=training)


def _last_reason(config: FoundryConfig) -> str:
    with contextlib.closing(RunStore.open(config.home, SystemClock())) as store:
        runs = store.runs(limit=1)
    return f"{runs[-1].run_id} is {runs[-1].state}: {runs[-1].reason}" if runs else "no run started"


def _default_root() -> Path:
    checkout = source_checkout()
    if checkout is None:
        raise UsageError(
            "no root given", remedy="Name a folder with room: `scf quickstart --root DIR`."
        )
    return checkout / "data" / "drive"


def _ingest(
    config: FoundryConfig, drive: Drive, files: list[Path], talk: Talk
) -> list[IngestReport]:
    signer = load_signer(config.home / "keys", "vault")
    told: set[str] = set()

    def tell(progress: IngestProgress) -> None:
        if progress.origin not in told:
            told.add(progress.origin)
            talk(f"      reading {progress.origin}")

    with Vault.open(drive, config.home, signer) as vault:
        ingestor = PrimordialSoupIngestor(vault, progress=tell, home=config.home)
        return [ingestor.ingest(path) for path in files]


def _standing(config: FoundryConfig, drive: Drive) -> tuple[str | None, Path | None]:
    """The champion's name and the newest release's folder, as they stand."""
    champion = Rooms.open(config, SystemClock(), open_local_door).champion()
    releases = sorted((drive.root / "release_history").glob("week-*"))
    return (champion.name if champion else None, releases[-1] if releases else None)


def _verify_as_a_stranger(release: Path, key: Path) -> str:
    """Run the verifier that lies in the release, isolated from our packages (`python -I`)."""
    command = [sys.executable, "-I", str(release / "verify_release.py"), str(release)]
    done = subprocess.run(
        [*command, "--key", str(key)],
        cwd=release,
        capture_output=True,
        text=True,
        timeout=VERIFY_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise VerificationFailed(f"{release} does not verify:\n{done.stdout}{done.stderr}")
    return done.stdout


def _outcome(
    config: FoundryConfig,
    drive: Drive,
    generation: str,
    release: Path,
    counts: Mapping[str, int],
    seconds: Mapping[str, float],
    folder: Folder,
) -> Outcome:
    champion = Rooms.open(config, SystemClock(), open_local_door).zoo().generation(generation)
    metrics = durable.read_json(champion.path / "report.json")
    picture = None
    for plot in sorted((champion.path / "plots").glob("*.png")):
        picture = picture or folder.write_file(plot.name, plot.read_bytes())
    return Outcome(
        root=drive.root,
        home=config.home,
        ingest=counts,
        generation=generation,
        run_id=champion.run_id,
        release=release,
        metrics=metrics,
        picture=picture,
        report=folder.path / REPORT_NAME,
        seconds=seconds,
    )


def _summary(outcome: Outcome) -> list[str]:
    metrics, ingest = outcome.metrics, outcome.ingest
    days, families = metrics["held_out"]["fossils"], metrics["held_out"]["families"]
    loss, gaussian = metrics["dsm_loss"]["mean"], metrics["gaussian_dsm_loss"]["mean"]
    lines = [
        f"One whole turn of the loop in {format_duration(outcome.seconds['total'])}.",
        "",
        f"  records     {ingest['read']} station-days, {ingest['quarantined']} quarantined",
        f"  model       {outcome.generation} ({outcome.run_id})",
        f"  held out    {days} days of {families} station-weeks that no run trains on",
        f"  denoising   loss {loss:.3f}; a Gaussian with the full covariance has {gaussian:.3f}",
        "  energy      AUROC, real against corrupted held-out days:",
    ]
    lines += [f"                {name:32} {value:.3f}" for name, value in metrics["auroc"].items()]
    lines.append("  physics     mean residual on real and on sampled days:")
    for name, check in metrics["physics"].items():
        real, sampled = _figure(check["real"]), _figure(check["sampled"])
        lines.append(f"                {name:32} {real} and {sampled} {check['unit']}")
    return lines


def _where_to_look(outcome: Outcome) -> list[str]:
    return [
        f"  picture     {outcome.picture}",
        f"  report      {outcome.report}",
        f"  release     {outcome.release}",
        "",
        "Next: `scf status`, `scf runs`, `scf zoo list`, `scf ingest PATH` with your own records,",
        f"      `scf score {outcome.root}/model_zoo/{outcome.generation} FILE --json`.",
    ]


def _write_report(outcome: Outcome) -> None:
    page = [
        "# Quickstart report",
        "",
        "The records are typical meteorological years: each strings together months of different",
        "years, and mixes measured with modelled values. How often each source and uncertainty",
        "flag occurs, by channel, is kept in every fossil's provenance.",
        "",
        "```",
        *_summary(outcome),
        "",
        *_where_to_look(outcome),
        "```",
    ]
    if outcome.picture is not None:
        page += ["", f"![Real against sampled and corrupted days]({outcome.picture.name})"]
    folder = Folder.at(outcome.report.parent)
    folder.write_file(outcome.report.name, ("\n".join(page) + "\n").encode())
    folder.write_json("report.json", outcome.to_json())


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
