"""The validator: a verdict for each fossil, with what was measured."""

from dataclasses import replace

import numpy as np
import pytest

from scf.fertilization.fossil_validator import FossilValidator
from scf.vault.fields import field_of_array
from scf.vault.fossil import Fossil, make_fossil
from support.fossils import fossil, fossil_object

HOURS = np.arange(24)
# A clear day near the equator, radiation built from the closure itself.
SUN = np.cos((HOURS - 12) / 24 * 2 * np.pi)
DNI = np.where(SUN > 0, 800.0, 0.0)
DHI = np.where(SUN > 0, 60.0, 0.0)
DAY = {
    "cos_zenith": (SUN, "1"),
    "dni": (DNI, "W/m2"),
    "dhi": (DHI, "W/m2"),
    "ghi": (DNI * np.clip(SUN, 0, None) + DHI, "W/m2"),
    "temp_air": (np.full(24, 25.0), "degC"),
    "temp_dew": (np.full(24, 15.0), "degC"),
    "relative_humidity": (np.full(24, 54.0), "percent"),
    "pressure": (np.full(24, 1013.0), "hPa"),
    "wind_speed": (np.full(24, 3.0), "m/s"),
}


def day(**changes: tuple[np.ndarray, str]) -> Fossil:
    obj = fossil_object()
    fields = {
        name: field_of_array(np.asarray(array, np.float32), unit)
        for name, (array, unit) in (DAY | changes).items()
    }
    block = {k: v for k, v in obj.items() if k not in {"cid", "verifier", "fields"}}
    return make_fossil(block | {"fields": fields}, obj["verifier"])


def test_a_day_that_keeps_the_laws_passes_with_its_measurements() -> None:
    verdict = FossilValidator().validate(day())

    assert verdict.ok
    assert verdict.reason == ""
    assert set(verdict.checks) == {"plausible", "closure", "night", "dew_point"}
    assert verdict.checks["closure"]["mean_residual_w_m2"] == pytest.approx(0, abs=1e-3)
    assert verdict.verifier()["verdict"] == "PASS"


BROKEN = {
    "closure": {"ghi": (np.roll(DAY["ghi"][0], 4), "W/m2")},
    "night": {"ghi": (DAY["ghi"][0] + 30.0, "W/m2")},
    "dew_point": {"temp_dew": (np.full(24, 26.0), "degC")},
    "plausible": {"temp_air": (np.full(24, 250.0), "degC")},
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_law_is_named_and_measured(law: str) -> None:
    verdict = FossilValidator().validate(day(**BROKEN[law]))

    assert not verdict.ok
    assert verdict.kind == "physics"
    assert law in verdict.reason
    assert verdict.checks[law]["ok"] is False
    assert verdict.verifier()["verdict"] == "FAIL"


def test_negative_radiation_is_refused() -> None:
    verdict = FossilValidator().validate(day(dhi=(DHI - 5.0, "W/m2")))

    assert "dhi is -5 W/m2" in verdict.reason


def test_units_that_a_check_does_not_know_are_left_alone() -> None:
    """250 K is a fine temperature; a check for degC does not apply to it."""
    kelvin = day(temp_air=(np.full(24, 250.0), "K"))

    assert FossilValidator().validate(kelvin).ok


def test_a_fossil_of_another_field_is_judged_by_what_it_carries() -> None:
    assert FossilValidator().validate(fossil()).ok
    assert FossilValidator().validate(fossil()).checks == {}


def test_the_verdict_of_its_own_verifier_counts() -> None:
    failed = replace(fossil(), verifier={"name": "lab", "version": "2", "verdict": "FAIL"})

    verdict = FossilValidator().validate(failed)

    assert not verdict.ok
    assert verdict.kind == "verdict"
    assert "lab" in verdict.reason
