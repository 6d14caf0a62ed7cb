"""What differs between two releases: model, numbers, data, software, settings.

Both are read, not verified; `scf release verify` does that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.errors import InputError, UsageError
from scf.release.chain import Released, all_released, read_released
from scf.storage import durable
from scf.storage.partitions import Folder

# A release names its own figures; these are the ones that people ask for first.
_FACTS = ("name", "made_at", "kind")


class UnknownRelease(UsageError):
    """No release of that name is on the drive."""


@dataclass(frozen=True)
class Change:
    """One thing that is not the same in both."""

    what: str
    before: Any
    after: Any


def find_release(releases: Folder, name: str) -> Released:
    """A release by name (`week-2026-11-16`, `2026-11-16`, `latest`).

    Raises:
        UnknownRelease: The remedy lists those there are.
        ReleaseDamaged: It cannot be read.
    """
    known = {released.path.name: released for released in all_released(releases)}
    if name == "latest" and known:
        return known[max(known)]
    for wanted in (name, f"week-{name}"):
        if wanted in known:
            return known[wanted]
    raise UnknownRelease(
        f"no release {name!r} in {releases.path}",
        remedy=f"There are: {', '.join(known)}." if known else "Nothing was released yet.",
    )


def show(released: Released) -> dict[str, Any]:
    """What a release is, in one JSON object: its facts, numbers and sizes."""
    about = released.about
    metrics = _json(released.path / "metrics.json")
    report = metrics.get("report", {})
    return {
        **{key: about.get(key) for key in _FACTS},
        "path": str(released.path),
        "release_sha256": released.sha256,
        "generation": about["generation"],
        "plan": about["plan"],
        "carried_by": released.carried_by,
        "previous": about["previous"],
        "audit": about["audit"],
        "absent": about["absent"],
        "num_files": len(about["files"]) + 2,
        "size_bytes": sum(entry["size_bytes"] for entry in about["files"].values()),
        "held_out": report.get("held_out"),
        "losses": _losses(report),
        "gate": {key: metrics.get("gate", {}).get(key) for key in ("promote", "reasons")},
        "week": metrics.get("week"),
    }


def diff(before: Released, after: Released) -> dict[str, Any]:
    """What changed from one release to another: `changes` by section, and fossils in and out."""
    sections = {
        "model": _changes(_model(before), _model(after)),
        "numbers": _changes(_numbers(before), _numbers(after)),
        "software": _changes(_software(before), _software(after)),
        "settings": _changes(_settings(before), _settings(after)),
    }
    return {
        "before": before.name,
        "after": after.name,
        "changes": {
            name: [{"what": c.what, "before": c.before, "after": c.after} for c in changes]
            for name, changes in sections.items()
        },
        "fossils": _fossil_changes(before, after),
    }


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    return [
        Change(what, before.get(what), after.get(what))
        for what in sorted(set(before) | set(after))
        if before.get(what) != after.get(what)
    ]


def _model(released: Released) -> dict[str, Any]:
    about = released.about
    plan = {f"plan.{key}": value for key, value in about["plan"].items()}
    return {**about["generation"], **plan, "kind": about.get("kind")}


def _numbers(released: Released) -> dict[str, Any]:
    report = _json(released.path / "metrics.json").get("report", {})
    return {
        **_losses(report),
        **{f"auroc.{name}": value for name, value in report.get("auroc", {}).items()},
        **{
            f"physics.{name}.sampled": check.get("sampled")
            for name, check in report.get("physics", {}).items()
        },
        **{
            f"held_out.{name}": report.get("held_out", {}).get(name)
            for name in ("fossils", "families")
        },
    }


def _losses(report: Mapping[str, Any]) -> dict[str, Any]:
    names = ("dsm_loss", "baseline_dsm_loss", "gaussian_dsm_loss", "champion_dsm_loss")
    found = {}
    for name in names:
        value = report.get(name)
        if value is not None:
            found[name] = value["mean"] if isinstance(value, Mapping) else value
    return found


def _software(released: Released) -> dict[str, Any]:
    path = released.path / "config" / "constraints.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.split("==") for line in lines if "==" in line)
    return {**dict(pairs), **released.about["code"]}


def _settings(released: Released) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("foundry", "model"):
        _flatten(_json(released.path / "config" / f"{name}.json"), name, found)
    return found


def _flatten(value: Any, name: str, into: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(item, f"{name}.{key}", into)
    else:
        into[name] = value


def _fossil_changes(before: Released, after: Released) -> dict[str, int | None]:
    """Fossils in, out and kept; None where a list of fossils is not on the drive."""
    old, new = _cids(before), _cids(after)
    if old is None or new is None:
        return {"in": None, "out": None, "kept": None}
    return {"in": len(new - old), "out": len(old - new), "kept": len(new & old)}


def _cids(released: Released) -> set[str] | None:
    carried = released.carried_by
    folder = released.path.parent / carried["name"] if carried else released.path
    path = folder / "evidence" / "fossils.txt"
    if not path.is_file():
        return None
    if carried and read_released(folder).sha256 != carried["release_sha256"]:
        return None
    with path.open() as lines:
        return {line.split(" ")[0] for line in lines if not line.endswith(" excluded\n")}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = durable.read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}
