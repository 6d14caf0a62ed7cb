"""`report.json`: what was measured about a checkpoint on held-out fossils. Schema scf.report/1.

`verification.measure` writes it, in a process that may be anywhere; the gate, the zoo and the
release read it through `parse_report`, which believes nothing about its form. Losses are denoising
score-matching losses, dimensionless (weighted by sigma^2), lower is better.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scf.core.errors import InputError
from scf.core.identity import is_sha256_hex
from scf.storage import durable

SCHEMA = "scf.report/1"


class ReportInvalid(InputError):
    """A report does not have the form of scf.report/1."""


@dataclass(frozen=True)
class Loss:
    """A held-out loss.

    Attributes:
        mean: Over held-out fossils.
        ci95: A 95 % interval for the mean, or None where it was not measured.
        by_family: Mean of each held-out family; empty where only the overall mean is known.
        paired_sigma: Standard deviation over fossils of this loss minus the candidate's; None where
            it was not measured.
    """

    mean: float
    ci95: tuple[float, float] | None = None
    by_family: Mapping[str, float] = field(default_factory=dict)
    paired_sigma: float | None = None


@dataclass(frozen=True)
class Earlier:
    """Somebody else on the same fossils and noise: a champion of some weeks ago.

    Attributes:
        name: Its generation.
        weeks_ago: When it was the champion.
        loss: Its held-out loss, by family.
    """

    name: str
    weeks_ago: int
    loss: Loss


@dataclass(frozen=True)
class Cost:
    """What a model takes to run.

    Attributes:
        num_parameters: Its size.
        energy_j_per_fossil: Measured electrical work for scoring one fossil; None where unmetered.
    """

    num_parameters: int | None = None
    energy_j_per_fossil: float | None = None


@dataclass(frozen=True)
class NearDuplicates:
    """Held-out fossils that lie within a thousandth (relative L2) of one that was trained on.

    Attributes:
        found: How many.
        left_out: Whether they were left out of every measured number.
        is_complete: Whether every training fossil was compared.
        skipped: Why none was; "" where they were.
    """

    found: int
    left_out: bool
    is_complete: bool
    skipped: str

    @property
    def is_harmless(self) -> bool:
        """Whether the pool that was measured on holds none."""
        return self.found == 0 or self.left_out

    def sentence(self) -> str:
        """What was found, in words."""
        if self.skipped:
            return f"not looked for near-duplicates: {self.skipped}"
        part = "" if self.is_complete else " (not all of them were compared in the time given)"
        if not self.found:
            return f"no held-out fossil lies within 1e-3 of one trained on{part}"
        fate = "left out of the pool" if self.left_out else "too many for the pool to be sealed"
        return f"{self.found} held-out fossils lie within 1e-3 of one trained on{part}: {fate}"


@dataclass(frozen=True)
class PhysicsCheck:
    """One constraint: its mean residual on real and on sampled fossils, in `unit`.

    Attributes:
        ok: Whether the samples keep the constraint within `tolerance`.
    """

    real: float | None
    sampled: float | None
    unit: str
    tolerance: float | None
    ok: bool

    @property
    def is_kept(self) -> bool:
        """`ok`, unless the numbers beside it say otherwise; real records may exceed a tolerance."""
        if self.sampled is None or self.tolerance is None:
            return self.ok
        return self.ok and self.sampled <= max(self.tolerance, self.real or 0.0)


@dataclass(frozen=True)
class Report:
    """A report whose form is known to be right; whether it is good is the gate's matter.

    Attributes:
        dsm_loss: The candidate's; None only if it was not finite.
        baseline: Independent Gaussians with the training means and variances, by their exact score.
        gaussian: The Gaussian with the full training covariance; None where it was not measured.
        champion: The standing champion on the same fossils and noise; None for a first generation.
        auroc: By corruption: chance that a corrupted fossil has a higher energy than a real one.
        files: Names of plots beside the report.
        raw: The whole JSON object, for keeping.
        slices: Domain slice of each held-out family, where the report names them.
        earlier: Champions of some weeks ago.
        scratch: The same plan and budget from nothing, where that control was trained.
        anchor: (candidate, champion) on a frozen set of fossils that never changes.
        cost, champion_cost: What both take to run, where that was measured.
        near_duplicates: Held-out fossils near to training fossils; None where nobody looked.
    """

    checkpoint_digest: str
    plan_id: str
    fossils: int
    families: int
    finite: bool
    dsm_loss: Loss | None
    baseline: Loss
    gaussian: Loss | None
    champion: Loss | None
    auroc: Mapping[str, float]
    physics: Mapping[str, PhysicsCheck]
    seconds: float
    files: tuple[str, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)
    slices: Mapping[str, str] = field(default_factory=dict)
    earlier: tuple[Earlier, ...] = ()
    scratch: Loss | None = None
    anchor: tuple[Loss, Loss] | None = None
    cost: Cost = Cost()
    champion_cost: Cost = Cost()
    near_duplicates: NearDuplicates | None = None


def read_report(path: Path) -> Report:
    """Read and parse `path`. Raises ReportInvalid (or InputError: unreadable, not JSON)."""
    try:
        return parse_report(durable.read_json(path))
    except ReportInvalid as error:
        raise ReportInvalid(f"{path}: {error}") from error


def parse_report(value: Any) -> Report:
    """Read the JSON object of a report. Keys that are not known are kept in `raw`.

    Raises:
        ReportInvalid: Names the key and what was found there.
    """
    top = _mapping(value, "the report")
    if top.get("schema") != SCHEMA:
        raise ReportInvalid(f"schema is {top.get('schema')!r}, expected {SCHEMA!r}")
    finite = _boolean(top.get("finite"), "finite")
    held_out = _mapping(top.get("held_out"), "held_out")
    loss = top.get("dsm_loss")
    if loss is None and finite:
        raise ReportInvalid("dsm_loss is absent although the model is said to be finite")
    champion, gaussian = top.get("champion_dsm_loss"), top.get("gaussian_dsm_loss")
    report = Report(
        checkpoint_digest=_digest(top.get("checkpoint_digest"), "checkpoint_digest"),
        plan_id=_digest(top.get("plan_id"), "plan_id"),
        fossils=_count(held_out.get("fossils"), "held_out.fossils"),
        families=_count(held_out.get("families"), "held_out.families"),
        finite=finite,
        dsm_loss=None if loss is None else _loss(loss, "dsm_loss"),
        baseline=_loss(top.get("baseline_dsm_loss"), "baseline_dsm_loss"),
        gaussian=None if gaussian is None else _loss(gaussian, "gaussian_dsm_loss"),
        champion=None if champion is None else _loss(champion, "champion_dsm_loss"),
        auroc=_aurocs(top.get("auroc"), finite=finite),
        physics={
            name: _physics(check, f"physics.{name}")
            for name, check in _mapping(top.get("physics"), "physics").items()
        },
        seconds=_number(top.get("seconds"), "seconds"),
        files=_file_names(top.get("files")),
        raw=top,
        slices=_slices(held_out.get("slices", {})),
        earlier=_earlier(top.get("earlier_champions", [])),
        scratch=None if top.get("scratch") is None else _scratch(top["scratch"]),
        anchor=None if top.get("anchor") is None else _anchor(top["anchor"]),
        cost=_cost(top.get("cost", {}), "cost"),
        champion_cost=_cost(top.get("champion_cost", {}), "champion_cost"),
        near_duplicates=(
            None if top.get("near_duplicates") is None else _near_duplicates(top["near_duplicates"])
        ),
    )
    if report.dsm_loss and len(report.dsm_loss.by_family) != report.families:
        raise ReportInvalid(
            f"dsm_loss.by_family names {len(report.dsm_loss.by_family)} families, "
            f"held_out.families says {report.families}"
        )
    return report


def _loss(value: Any, where: str) -> Loss:
    """A loss: an object with mean and by_family, or a bare number."""
    if not isinstance(value, Mapping):
        return Loss(_number(value, where))
    families = _mapping(value.get("by_family", {}), f"{where}.by_family")
    interval, sigma = value.get("ci95"), value.get("paired_sigma")
    if interval is not None:
        if not isinstance(interval, list) or len(interval) != 2:
            raise ReportInvalid(f"{where}.ci95 is {interval!r}, expected [low, high]")
        low, high = (_number(bound, f"{where}.ci95") for bound in interval)
        interval = (low, high)
    return Loss(
        mean=_number(value.get("mean"), f"{where}.mean"),
        ci95=interval,
        by_family={
            name: _number(loss, f"{where}.by_family[{name!r}]") for name, loss in families.items()
        },
        paired_sigma=None if sigma is None else _number(sigma, f"{where}.paired_sigma"),
    )


def _slices(value: Any) -> dict[str, str]:
    """Slice by family, from families by slice."""
    found: dict[str, str] = {}
    for name, families in _mapping(value, "held_out.slices").items():
        if not isinstance(families, list) or not all(isinstance(f, str) for f in families):
            raise ReportInvalid(f"held_out.slices[{name!r}] is {_short(families)}, expected names")
        found |= dict.fromkeys(families, name)
    return found


def _earlier(value: Any) -> tuple[Earlier, ...]:
    if not isinstance(value, list):
        raise ReportInvalid(f"earlier_champions is {_short(value)}, expected a list")
    found = []
    for number, item in enumerate(value):
        where = f"earlier_champions[{number}]"
        about = _mapping(item, where)
        if not isinstance(about.get("generation"), str):
            raise ReportInvalid(f"{where}.generation is missing")
        weeks = _count(about.get("weeks_ago"), f"{where}.weeks_ago")
        found.append(Earlier(about["generation"], weeks, _loss(about.get("dsm_loss"), where)))
    return tuple(found)


def _scratch(value: Any) -> Loss:
    return _loss(_mapping(value, "scratch").get("dsm_loss"), "scratch.dsm_loss")


def _anchor(value: Any) -> tuple[Loss, Loss]:
    about = _mapping(value, "anchor")
    return (
        _loss(about.get("dsm_loss"), "anchor.dsm_loss"),
        _loss(about.get("champion_dsm_loss"), "anchor.champion_dsm_loss"),
    )


def _cost(value: Any, where: str) -> Cost:
    about = _mapping(value, where)
    size, energy_j = about.get("num_parameters"), about.get("energy_j_per_fossil")
    return Cost(
        None if size is None else _count(size, f"{where}.num_parameters"),
        None if energy_j is None else _number(energy_j, f"{where}.energy_j_per_fossil"),
    )


def _near_duplicates(value: Any) -> NearDuplicates:
    about = _mapping(value, "near_duplicates")
    return NearDuplicates(
        found=_count(about.get("found"), "near_duplicates.found"),
        left_out=_boolean(about.get("left_out", False), "near_duplicates.left_out"),
        is_complete=_boolean(about.get("is_complete", True), "near_duplicates.is_complete"),
        skipped=str(about.get("skipped", "")),
    )


def _physics(value: Any, where: str) -> PhysicsCheck:
    check = _mapping(value, where)
    unit = check.get("unit")
    if not isinstance(unit, str):
        raise ReportInvalid(f"{where}.unit is {unit!r}, expected text")
    real, sampled, tolerance = (
        None if check.get(key) is None else _number(check[key], f"{where}.{key}")
        for key in ("real", "sampled", "tolerance")
    )
    return PhysicsCheck(real, sampled, unit, tolerance, _boolean(check.get("ok"), f"{where}.ok"))


def _aurocs(value: Any, *, finite: bool) -> dict[str, float]:
    # Energies that are not finite have no order: null is then an honest answer.
    given = {n: v for n, v in _mapping(value, "auroc").items() if finite or v is not None}
    aurocs = {name: _number(v, f"auroc.{name}") for name, v in given.items()}
    for name, auroc in aurocs.items():
        if not 0 <= auroc <= 1:
            raise ReportInvalid(f"auroc.{name} is {auroc}, expected a chance between 0 and 1")
    return aurocs


def _file_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ReportInvalid(f"files is {value!r}, expected a list of names")
    for name in value:
        # The files are copied into the zoo and the release: a name must not lead elsewhere.
        if not isinstance(name, str) or name.startswith(".") or {"/", "\\", "\0"} & set(name):
            raise ReportInvalid(f"files names {name!r}, which is not a plain file name")
    return tuple(value)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ReportInvalid(f"{where} is {_short(value)}, expected a JSON object")
    return value


def _digest(value: Any, where: str) -> str:
    if not is_sha256_hex(value):
        raise ReportInvalid(f"{where} is {_short(value)}, expected a SHA-256 in hexadecimal")
    return str(value)


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ReportInvalid(f"{where} is {_short(value)}, expected true or false")
    return value


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ReportInvalid(f"{where} is {_short(value)}, expected a count")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ReportInvalid(f"{where} is {_short(value)}, expected a finite number")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
