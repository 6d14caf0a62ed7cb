"""Physics that records obey, as residuals: what should be zero, within which tolerance.

A constraint is a name, a unit, a function of the fields, and a tolerance. Ten lines make a new one:

    def closure(fields):  # torch tensors [B, *shape] by name, original units
        return fields["ghi"] - fields["dni"] * fields["cos_zenith"].clamp(min=0) - fields["dhi"]

    CLOSURE = PhysicsConstraint(
        name="closure", unit="W/m2", needs=("ghi", "dni", "dhi", "cos_zenith"),
        residual=closure, tolerance=10.0, is_linear=True,
    )
    register(CLOSURE)

`models/laws.py` makes conservation laws, bounds and PDE residuals.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from scf.core.errors import UsageError

Fields = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A limit that every number of a modelled field keeps, in the field's unit.

    Known bounds are built into the energy (`models/bounds.py`).
    """

    field: str
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, kw_only=True)
class PhysicsConstraint:
    """Something that is zero in records that obey it.

    Attributes:
        name: Short, for reports.
        unit: Unit of the residual.
        needs: Names of the fields it reads; it applies to records that have them all.
        residual: Fields [B, *shape] in original units -> residual [B, *sites] in `unit`. An
            inequality returns how far it is broken, and 0 where it is kept.
        tolerance: Mean absolute residual that is still agreement, in `unit`.
        is_linear: The residual at a site is linear in the modelled fields at that same site (given
            fields may enter in any way). Then the encoder can feed it to the network at any noise.
        bound: The limit that the constraint is, where it is one.
    """

    name: str
    unit: str
    needs: tuple[str, ...]
    residual: Callable[[Fields], Tensor]
    tolerance: float
    is_linear: bool = False
    bound: Bound | None = None

    def applies_to(self, names: Collection[str]) -> bool:
        return set(self.needs) <= set(names)


def _closure(fields: Fields) -> Tensor:
    # Below the horizon the beam does not reach a horizontal plane; mid-hour zenith stands for the
    # hour.
    beam = fields["dni"] * fields["cos_zenith"].clamp(min=0)
    return fields["ghi"] - beam - fields["dhi"]


def _dew_excess(fields: Fields) -> Tensor:
    return (fields["temp_dew"] - fields["temp_air"]).clamp(min=0)


def _negative_part(name: str) -> Callable[[Fields], Tensor]:
    return lambda fields: (-fields[name]).clamp(min=0)


def _light_at_night(fields: Fields) -> Tensor:
    # 6 degrees below the horizon ends civil twilight: cos(96 degrees) = -0.105.
    return fields["ghi"].abs() * (fields["cos_zenith"] < -0.105)


def _above_saturation(fields: Fields) -> Tensor:
    return (fields["relative_humidity"] - 100.0).clamp(min=0)


# Tolerances: mean absolute residual over all hours beyond which samples are refused. Real TMY days
# show 0.7 W/m2 for closure (mid-hour zenith) and 0 for the others. Radiation is often exactly zero,
# where a smooth density meets a spike: a minute's training leaves a mean negative part of 0.9 W/m2
# in DNI (9.8 before bounds were an input of the network; docs/LOG.md), and 5 is the limit.
BUILT_IN: tuple[PhysicsConstraint, ...] = (
    PhysicsConstraint(
        name="closure",
        unit="W/m2",
        needs=("ghi", "dni", "dhi", "cos_zenith"),
        residual=_closure,
        tolerance=15.0,
        is_linear=True,
    ),
    PhysicsConstraint(
        name="dew_point_below_air",
        unit="degC",
        needs=("temp_air", "temp_dew"),
        residual=_dew_excess,
        tolerance=0.5,
    ),
    PhysicsConstraint(
        name="night_is_dark",
        unit="W/m2",
        needs=("ghi", "cos_zenith"),
        residual=_light_at_night,
        tolerance=5.0,
    ),
    *(
        PhysicsConstraint(
            name=f"{name}_not_negative",
            unit="W/m2",
            needs=(name,),
            residual=_negative_part(name),
            tolerance=5.0,
            bound=Bound(field=name, lower=0.0),
        )
        for name in ("ghi", "dni", "dhi")
    ),
    PhysicsConstraint(
        name="below_saturation",
        unit="percent",
        needs=("relative_humidity",),
        residual=_above_saturation,
        tolerance=2.0,
        bound=Bound(field="relative_humidity", upper=100.0),
    ),
)


_REGISTERED: dict[str, PhysicsConstraint] = {}


def register(constraint: PhysicsConstraint) -> PhysicsConstraint:
    """Make a constraint known to training, measuring and loading, in this process.

    A checkpoint keeps the names of its constraints alone: register the same before it is loaded.
    One that was registered under this name before is replaced.

    Raises:
        UsageError: The name is that of a built-in constraint.
    """
    if constraint.name in {known.name for known in BUILT_IN}:
        raise UsageError(f"constraint {constraint.name!r} is built in; choose another name")
    _REGISTERED[constraint.name] = constraint
    return constraint


def forget(name: str) -> None:
    """Undo `register`; a name that is not known is success."""
    _REGISTERED.pop(name, None)


def constraints_for(names: Collection[str]) -> tuple[PhysicsConstraint, ...]:
    """The built-in and registered constraints that records with these fields can be held to."""
    known = (*BUILT_IN, *_REGISTERED.values())
    return tuple(constraint for constraint in known if constraint.applies_to(names))


def constraints_named(names: Collection[str]) -> tuple[PhysicsConstraint, ...]:
    """Constraints by name, for a checkpoint that was made with them.

    Raises:
        KeyError: One of them does not exist here.
    """
    known = {constraint.name: constraint for constraint in BUILT_IN} | _REGISTERED
    return tuple(known[name] for name in names)
