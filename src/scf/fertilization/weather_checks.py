"""What weather cannot do: physics checks for hourly channels, calibrated on genuine records.

Calibration (the three TMY stations in pvlib 0.16, 1,095 days): every day passes each check.
A strict closure for each hour fails at low sun, because the zenith of the mid-hour stands for a
whole hour there: single hours miss by up to 8 (Sand Point), 20 (Greensboro) and 59 W/m2 (Miami).
The mean over a day's sunlit hours does not: its largest value is 1.4, 4.5 and 17.6 W/m2. So that
mean is judged, and the largest hour reported. Figures by station: docs/formats/fossil.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scf.vault.fields import Array, FieldSpec

# Closure: mean |GHI - DNI cos(zenith) - DHI| over sunlit hours may be this much, in W/m2 plus a
# share of their mean GHI. No genuine day uses half of it; of days with one channel shuffled in time
# the checks refuse 100 % (GHI), 99.9 % (DHI) and 78 % (DNI: overcast days have none to shuffle).
CLOSURE_TOLERANCE_W_M2 = 12.0
CLOSURE_TOLERANCE_SHARE = 0.05
# The sun is 6 degrees below the horizon (end of civil twilight) where cos(zenith) is -0.1045.
NIGHT_COS_ZENITH = -0.1045
NIGHT_TOLERANCE_W_M2 = 10.0
DEW_POINT_TOLERANCE_DEGC = 0.5

# Field and unit -> least and largest plausible value anywhere on Earth's surface.
# Extremes: WMO World Weather and Climate Extremes Archive; radiation with cloud enhancement.
PLAUSIBLE: Mapping[tuple[str, str], tuple[float, float]] = {
    ("ghi", "W/m2"): (0.0, 1800.0),
    ("dni", "W/m2"): (0.0, 1415.0),
    ("dhi", "W/m2"): (0.0, 1200.0),
    ("temp_air", "degC"): (-90.0, 60.0),
    ("temp_dew", "degC"): (-110.0, 40.0),
    ("relative_humidity", "percent"): (0.0, 100.0),
    ("pressure", "hPa"): (450.0, 1090.0),
    ("wind_speed", "m/s"): (0.0, 115.0),
    ("cos_zenith", "1"): (-1.0, 1.0),
}


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        ok: Whether the record keeps the rule.
        details: The measured values, in JSON, for the fossil's `verifier.checks`.
        reason: Why not, as a sentence; empty where it does.
    """

    ok: bool
    details: Mapping[str, Any]
    reason: str = ""


Check = Callable[[Mapping[str, Array], Mapping[str, FieldSpec]], CheckResult | None]


def plausible(arrays: Mapping[str, Array], specs: Mapping[str, FieldSpec]) -> CheckResult | None:
    """Every known channel, in a known unit, lies between the extremes ever seen."""
    known = {
        name: PLAUSIBLE[name, spec.unit]
        for name, spec in specs.items()
        if (name, spec.unit) in PLAUSIBLE
    }
    if not known:
        return None
    for name, (low, high) in known.items():
        least, largest = float(arrays[name].min()), float(arrays[name].max())
        if least < low or largest > high:
            worst = least if least < low else largest
            unit = specs[name].unit
            reason = f"{name} is {worst:.6g} {unit}, plausible are {low:g} to {high:g}"
            return CheckResult(ok=False, details={"field": name, "value": worst}, reason=reason)
    return CheckResult(ok=True, details={"fields": len(known)})


def closure(arrays: Mapping[str, Array], specs: Mapping[str, FieldSpec]) -> CheckResult | None:
    """GHI = DNI cos(zenith) + DHI, in the mean over the sunlit hours."""
    if not _have(specs, ghi="W/m2", dni="W/m2", dhi="W/m2", cos_zenith="1"):
        return None
    ghi, dni, dhi = (arrays[name].astype(np.float64) for name in ("ghi", "dni", "dhi"))
    sun = np.clip(arrays["cos_zenith"].astype(np.float64), 0.0, None)
    residual = np.abs(ghi - dni * sun - dhi)
    is_sunlit = (ghi > 0) | (dni > 0) | (dhi > 0)
    if not is_sunlit.any():
        return CheckResult(ok=True, details={"sunlit_hours": 0})
    mean_residual, mean_ghi = float(residual[is_sunlit].mean()), float(ghi[is_sunlit].mean())
    tolerance = CLOSURE_TOLERANCE_W_M2 + CLOSURE_TOLERANCE_SHARE * mean_ghi
    details = {
        "mean_residual_w_m2": round(mean_residual, 3),
        "max_residual_w_m2": round(float(residual.max()), 3),
        "mean_ghi_w_m2": round(mean_ghi, 3),
        "tolerance_w_m2": round(tolerance, 3),
        "sunlit_hours": int(is_sunlit.sum()),
    }
    if mean_residual <= tolerance:
        return CheckResult(ok=True, details=details)
    reason = (
        f"GHI misses DNI cos(zenith) + DHI by {mean_residual:.1f} W/m2 in the mean over "
        f"{details['sunlit_hours']} sunlit hours, allowed are {tolerance:.1f}"
    )
    return CheckResult(ok=False, details=details, reason=reason)


def night(arrays: Mapping[str, Array], specs: Mapping[str, FieldSpec]) -> CheckResult | None:
    """No radiation once the sun is 6 degrees below the horizon."""
    if not _have(specs, ghi="W/m2", cos_zenith="1"):
        return None
    is_night = arrays["cos_zenith"] < NIGHT_COS_ZENITH
    largest = float(arrays["ghi"][is_night].max(initial=0.0))
    details = {"max_ghi_w_m2": round(largest, 3), "hours": int(is_night.sum())}
    if largest <= NIGHT_TOLERANCE_W_M2:
        return CheckResult(ok=True, details=details)
    return CheckResult(ok=False, details=details, reason=f"GHI is {largest:.1f} W/m2 at night")


def dew_point(arrays: Mapping[str, Array], specs: Mapping[str, FieldSpec]) -> CheckResult | None:
    """Air cannot be drier than its dew point says: dew point <= dry bulb."""
    if not _have(specs, temp_air="degC", temp_dew="degC"):
        return None
    excess = float((arrays["temp_dew"] - arrays["temp_air"]).max())
    details = {"max_excess_degc": round(excess, 3)}
    if excess <= DEW_POINT_TOLERANCE_DEGC:
        return CheckResult(ok=True, details=details)
    reason = f"the dew point lies {excess:.1f} degC above the air temperature"
    return CheckResult(ok=False, details=details, reason=reason)


WEATHER_CHECKS: Mapping[str, Check] = {
    "plausible": plausible,
    "closure": closure,
    "night": night,
    "dew_point": dew_point,
}


def _have(specs: Mapping[str, FieldSpec], **units: str) -> bool:
    """Whether these fields are there, in these units and in one shape."""
    if not all(name in specs and specs[name].unit == unit for name, unit in units.items()):
        return False
    return len({specs[name].shape for name in units}) == 1
