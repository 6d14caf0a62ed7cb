"""Foundries that have something to release, and small damages to releases."""

import shutil
from datetime import date
from pathlib import Path

from scf.release.foundry import open_foundry
from scf.release.weekly import ReleaseResult, make_release
from scf.zoo.entry import Generation
from scf.zoo.registry import Zoo
from support.foundries import SmallFoundry, small_foundry
from support.runs import MeasuredRun, attested, fill_vault, measured_run


def zoo_of(place: SmallFoundry) -> Zoo:
    return Zoo.open(place.drive.folder("model_zoo"), clock=place.clock)


def promote(place: SmallFoundry, run: MeasuredRun) -> Generation:
    """Attest and promote a run."""
    return zoo_of(place).promote(
        run_id=run.run_id,
        checkpoint=run.checkpoint,
        report_folder=run.report_folder,
        plan=run.plan,
        proof=attested(place, run),
        keys=[place.keys["foundry"]],
    )


def releasable(base: Path, *, width: int = 8) -> SmallFoundry:
    """A foundry with 40 fossils and one promoted generation."""
    base.mkdir(parents=True, exist_ok=True)
    place = small_foundry(base)
    fill_vault(place)
    promote(place, measured_run(place, width=width))
    return place


def release_week(
    place: SmallFoundry, *, week: date | None = None, dry_run: bool = False
) -> ReleaseResult:
    """Make the release of a week, by the foundry's own clock if none is named."""
    with open_foundry(place.drive, place.home, code_version="0.1.0", clock=place.clock) as foundry:
        return make_release(foundry, week=week, dry_run=dry_run)


def writable_copy(release: Path, target: Path) -> Path:
    """A copy whose files may be changed."""
    shutil.copytree(release, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def take_away(release: Path) -> None:
    """Delete a release, which is read-only."""
    for path in [release, *release.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(release)
