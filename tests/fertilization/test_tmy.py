"""Typical meteorological years: real stations, right units, the sun at the middle of the hour."""

from pathlib import Path

import numpy as np
import pytest

from scf.daemon.setup import FoundryPlaces
from scf.fertilization.readers.base import Draft, Origin
from scf.fertilization.readers.registry import reader_for
from scf.vault.quarantine import Rejection
from scf.vault.shard import read_shard
from support.vaults import ingest, open_vault

pytest.importorskip("pvlib")
from scf.fertilization.readers.tmy import demo_files


def read(path: Path) -> list:
    reader = reader_for(path)
    assert reader is not None
    return list(reader.read(Origin(path, path.name, "0" * 64, 2**20)))


@pytest.fixture(scope="module")
def stations() -> dict[str, list[Draft]]:
    return {path.name: read(path) for path in demo_files()}


def test_three_stations_are_1095_days(stations) -> None:
    assert {name: len(days) for name, days in stations.items()} == {
        "12839.tm2": 365,
        "703165TY.csv": 365,
        "723170TYA.CSV": 365,
    }


def test_tenths_of_tmy2_become_whole_units(stations) -> None:
    """Miami, 1 January 1962, hour ending 13:00, as it stands in the file: 189, 183, 97, 1015, 41."""
    day = stations["12839.tm2"][0]
    noon = {name: array[12] for name, array in day.arrays.items()}

    assert noon["temp_air"] == np.float32(18.9)
    assert noon["temp_dew"] == np.float32(18.3)
    assert noon["relative_humidity"] == 97
    assert noon["pressure"] == 1015
    assert noon["wind_speed"] == np.float32(4.1)
    assert (noon["ghi"], noon["dni"], noon["dhi"]) == (145, 9, 137)
    assert day.observed_at == "1962-01-01T00:00:00-05:00"


def test_tmy3_is_read_in_its_own_units(stations) -> None:
    """Greensboro, 1 January 1988, hour ending 13:00."""
    day = stations["723170TYA.CSV"][0]
    noon = {name: array[12] for name, array in day.arrays.items()}

    assert noon["temp_air"] == np.float32(11.7)
    assert noon["pressure"] == 992
    assert noon["ghi"] == 155
    assert day.observed_at == "1988-01-01T00:00:00-05:00"
    assert day.params["station"] == "723170"
    assert day.params["elevation_m"] == 273.0
    assert (day.params["month"], day.params["day_of_year"]) == (1, 1)
    assert day.line == 3


def test_every_day_has_24_hours_and_a_week_for_its_family(stations) -> None:
    for days in stations.values():
        assert [day.params["day_of_year"] for day in days] == list(range(1, 366))
        assert {array.shape for day in days for array in day.arrays.values()} == {(24,)}
        assert {array.dtype for day in days for array in day.arrays.values()} == {
            np.dtype(np.float32)
        }
        families = [day.family for day in days]
        assert len(set(families)) == 53
        assert families[6] != families[7]


def test_the_sun_is_highest_at_noon_and_given_not_modelled(stations) -> None:
    day = stations["12839.tm2"][172]  # 22 June, Miami: the sun is 2 degrees from the zenith
    assert day.params["condition_fields"] == ["cos_zenith"]
    assert day.arrays["cos_zenith"].argmax() == 12
    assert day.arrays["cos_zenith"].max() == pytest.approx(0.999, abs=0.002)
    assert day.arrays["cos_zenith"][0] < -0.5


def test_flags_of_source_and_uncertainty_are_counted_by_channel(stations) -> None:
    flags = stations["12839.tm2"][0].flags

    assert set(flags) == set(stations["12839.tm2"][0].arrays) - {"cos_zenith"}
    for channel in flags.values():
        assert sum(channel["source"].values()) == 24
        assert sum(channel["uncertainty"].values()) == 24
    assert flags["temp_air"] == {"source": {"A": 24}, "uncertainty": {"7": 24}}


def test_every_genuine_day_passes_and_the_closure_is_as_measured(
    foundry: FoundryPlaces,
) -> None:
    """Mean residual by station, W/m2 over sunlit hours; the worst day stays below half its limit."""
    with open_vault(foundry) as vault:
        report = ingest(vault, demo_files()[0].parent)
        checks: dict[str, list[dict]] = {}
        for entry in vault.entries():
            for fossil in read_shard(vault.folder.path / entry.path, verify_cid=False):
                checks.setdefault(fossil.params["station"], []).append(fossil.verifier["checks"])

    assert (report.read, report.accepted, report.quarantined) == (1095, 1095, 0)
    assert report.reader == "tmy2,tmy3"
    assert "ASTMG173.csv" in report.skipped
    measured = {}
    for station, days in checks.items():
        hours = np.array([day["closure"]["sunlit_hours"] for day in days])
        residual = np.array([day["closure"]["mean_residual_w_m2"] for day in days])
        tolerance = np.array([day["closure"]["tolerance_w_m2"] for day in days])
        measured[station] = (residual * hours).sum() / hours.sum()
        assert (residual / tolerance).max() < 0.5
    assert measured == pytest.approx({"703165": 0.305, "723170": 0.818, "12839": 3.75}, rel=0.02)


def test_a_day_with_a_missing_hour_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = demo_files()[2].read_text().splitlines(keepends=True)[: 2 + 72]
    del lines[2 + 30]
    path = tmp_path / "cut.csv"
    path.write_text("".join(lines))

    records = read(path)

    assert [type(r) for r in records] == [Draft, Rejection, Draft]
    assert "23 hours" in records[1].reason
    assert records[2].params["day_of_year"] == 3


def test_a_missing_value_is_a_gap_not_a_number(tmp_path: Path) -> None:
    """TMY3 writes -9900 where it has no value."""
    lines = demo_files()[2].read_text().splitlines(keepends=True)[: 2 + 24]
    header = lines[1].split(",")
    cells = lines[2].split(",")
    cells[header.index("Pressure (mbar)")] = "-9900"
    lines[2] = ",".join(cells)
    path = tmp_path / "gap.csv"
    path.write_text("".join(lines))

    (record,) = read(path)

    assert isinstance(record, Rejection)
    assert "pressure" in record.reason
