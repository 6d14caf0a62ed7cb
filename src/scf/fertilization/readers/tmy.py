"""Typical meteorological years (TMY2, TMY3): one fossil a local day, 24 hourly values a channel.

A TMY strings together months of different years, each chosen for being typical. Its numbers are
partly measured and partly modelled; a source and an uncertainty flag say which, for each number.
We keep how often each flag occurs, by channel, in `provenance.flags`.

Units after reading: W/m2 for radiation (the files give Wh/m2 over an hour, which is the mean W/m2),
degC, percent, hPa (mbar), m/s. TMY2 stores temperatures and wind in tenths; radiation, humidity and
pressure are whole units there (NSRDB TMY2 manual, table 3-2).

Hours are labelled at their end, so the sun is taken at the middle of the hour: 30 minutes before
the label. With that, GHI = DNI cos(zenith) + DHI holds to 0.3, 0.8 and 3.8 W/m2 in the mean over
the sunlit hours of Sand Point, Greensboro and Miami; taken at the label, it misses by ten times
as much.
"""

import importlib.util
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.errors import InputError, MissingTool
from scf.fertilization.readers.base import Draft, Origin, Record
from scf.fertilization.readers.describe import Description, FieldSummary
from scf.vault.fields import Array
from scf.vault.quarantine import Rejection

HOURS = 24
LICENCE = "NREL TMY data; free use with credit (NREL data disclaimer)"
UNITS = {
    "ghi": "W/m2",
    "dni": "W/m2",
    "dhi": "W/m2",
    "temp_air": "degC",
    "temp_dew": "degC",
    "relative_humidity": "percent",
    "pressure": "hPa",
    "wind_speed": "m/s",
    "cos_zenith": "1",
}
_TMY3_HEADER = re.compile(rb'\d{6},"?[^,]*"?,[A-Z]{2},-?[\d.]+,-?[\d.]+,-?[\d.]+,-?[\d.]+\s*\r?\n')
_TMY2_HEADER = re.compile(rb" \d{5} .{22} [A-Z]{2} .{3} [NS] .{5} [EW] .{6} .{5}\s*\r?\n")


@dataclass(frozen=True)
class _Channel:
    """Where a channel stands in a file, and what makes it our unit.

    Attributes:
        column: Name of the numbers' column, as pvlib gives it.
        source: Name of the column that tells how the number was come by.
        uncertainty: Name of the column that tells how uncertain it is.
        divisor: 10 for tenths. Divided, not multiplied by 0.1, so that 189 becomes 18.9 exactly.
        missing_from: The file's marker for "no value"; it and what lies beyond are gaps.
    """

    column: str
    source: str
    uncertainty: str
    divisor: float = 1.0
    missing_from: float = np.inf


_TMY3_CHANNELS = {
    name: _Channel(f"{stem} ({unit})", f"{stem} source", f"{stem} uncert ({code})")
    for name, stem, unit, code in (
        ("ghi", "GHI", "W/m^2", "%"),
        ("dni", "DNI", "W/m^2", "%"),
        ("dhi", "DHI", "W/m^2", "%"),
        ("temp_air", "Dry-bulb", "C", "code"),
        ("temp_dew", "Dew-point", "C", "code"),
        ("relative_humidity", "RHum", "%", "code"),
        ("pressure", "Pressure", "mbar", "code"),
        ("wind_speed", "Wspd", "m/s", "code"),
    )
}
_TMY2_CHANNELS = {
    name: _Channel(stem, f"{stem}Source", f"{stem}Uncertainty", divisor, missing)
    for name, stem, divisor, missing in (
        ("ghi", "GHI", 1.0, 9999.0),
        ("dni", "DNI", 1.0, 9999.0),
        ("dhi", "DHI", 1.0, 9999.0),
        ("temp_air", "DryBulb", 10.0, 9999.0),
        ("temp_dew", "DewPoint", 10.0, 9999.0),
        ("relative_humidity", "RHum", 1.0, 999.0),
        ("pressure", "Pressure", 1.0, 9999.0),
        ("wind_speed", "Wspd", 10.0, 999.0),
    )
}


class Tmy3Reader:
    """TMY3 as published by NREL (CSV with two header lines)."""

    name = "tmy3"

    def recognises(self, path: Path, head: bytes) -> bool:
        del path
        return _TMY3_HEADER.match(head) is not None and b"Date (MM/DD/YYYY)" in head

    def read(self, origin: Origin) -> Iterator[Record]:
        iotools = _pvlib().iotools
        try:
            table, about = iotools.read_tmy3(str(origin.path), map_variables=False)
            station = _Station(
                code=f"{int(about['USAF']):06d}",
                name=str(about["Name"]).strip('" '),
                state=str(about["State"]),
                latitude_deg=float(about["latitude"]),
                longitude_deg=float(about["longitude"]),
                elevation_m=float(about["altitude"]),
                utc_offset_h=float(about["TZ"]),
            )
            begins = _tmy3_hour_begins(table)
            yield from _days(self.name, station, table, begins, _TMY3_CHANNELS, first_line=3)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{origin.path}: not a TMY3 file: {error!r}") from error

    def describe(self, path: Path) -> Description:
        """What `read` would yield, by the number of lines."""
        return _description("TMY3", path, header_lines=2)


class Tmy2Reader:
    """TMY2 as published by NREL (fixed columns, one header line)."""

    name = "tmy2"

    def recognises(self, path: Path, head: bytes) -> bool:
        del path
        return _TMY2_HEADER.match(head) is not None

    def read(self, origin: Origin) -> Iterator[Record]:
        iotools = _pvlib().iotools
        try:
            table, about = iotools.read_tmy2(str(origin.path))
            station = _Station(
                code=str(about["WBAN"]).strip(),
                name=str(about["City"]).strip(),
                state=str(about["State"]),
                latitude_deg=float(about["latitude"]),
                longitude_deg=float(about["longitude"]),
                elevation_m=float(about["altitude"]),
                utc_offset_h=float(about["TZ"]),
            )
            # pvlib labels TMY2 hours by their beginning.
            yield from _days(self.name, station, table, table.index, _TMY2_CHANNELS, first_line=2)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{origin.path}: not a TMY2 file: {error!r}") from error

    def describe(self, path: Path) -> Description:
        """What `read` would yield, by the number of lines."""
        return _description("TMY2", path, header_lines=1)


def demo_files() -> list[Path]:
    """The three stations that ship inside the pvlib wheel: 1,095 days.

    Raises:
        MissingTool: pvlib is not installed.
    """
    spec = importlib.util.find_spec("pvlib")
    if spec is None or spec.origin is None:
        raise _missing_pvlib()
    data = Path(spec.origin).parent / "data"
    return [data / name for name in ("12839.tm2", "703165TY.csv", "723170TYA.CSV")]


@dataclass(frozen=True)
class _Station:
    code: str
    name: str
    state: str
    latitude_deg: float
    longitude_deg: float
    elevation_m: float
    utc_offset_h: float


def _days(
    kind: str,
    station: _Station,
    table: Any,
    hour_begins: Any,
    channels: Mapping[str, _Channel],
    *,
    first_line: int,
) -> Iterator[Record]:
    """One draft for each run of 24 hours of one local day; a rejection for a day with gaps."""
    import pandas as pd

    cos_zenith = _cos_zenith(hour_begins + pd.Timedelta(minutes=30), station)
    columns = {name: _values(table, channel) for name, channel in channels.items()}
    flags = {
        name: (
            table[channel.source].astype(str).to_numpy(),
            table[channel.uncertainty].astype(int).astype(str).to_numpy(),
        )
        for name, channel in channels.items()
    }
    dates = np.array([begin.date() for begin in hour_begins])
    hours = hour_begins.hour.to_numpy()
    edges = np.flatnonzero(np.r_[True, dates[1:] != dates[:-1], True])
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        line = first_line + int(start)
        reason = _fault_of_day(hours[start:stop], columns, slice(start, stop))
        if reason is not None:
            yield Rejection("gap", f"day {dates[start]}: {reason}", line=line, index=index)
            continue
        begin = hour_begins[start]
        arrays: dict[str, Array] = {n: c[start:stop] for n, c in columns.items()}
        arrays["cos_zenith"] = cos_zenith[start:stop]
        day_of_year = _day_of_year(begin.month, begin.day)
        yield Draft(
            index=index,
            source=f"{kind.upper()} {station.code} {station.name}, {station.state}",
            arrays=arrays,
            units=UNITS,
            params={
                "station": station.code,
                "latitude_deg": station.latitude_deg,
                "longitude_deg": station.longitude_deg,
                "elevation_m": station.elevation_m,
                "utc_offset_h": station.utc_offset_h,
                "month": int(begin.month),
                "day_of_year": day_of_year,
                "condition_fields": ["cos_zenith"],
            },
            observed_at=begin.isoformat(),
            # Neighbouring days are alike, so a week is held out as a whole.
            family=f"{kind}-{station.code}/week-{(day_of_year - 1) // 7:02d}",
            flags={
                name: {
                    "source": _counts(source[start:stop]),
                    "uncertainty": _counts(code[start:stop]),
                }
                for name, (source, code) in flags.items()
            },
            licence=LICENCE,
            line=line,
        )


def _description(kind: str, path: Path, *, header_lines: int) -> Description:
    try:
        with path.open("rb") as file:
            num_hours = sum(1 for line in file if line.strip()) - header_lines
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    num_days = max(0, num_hours) // HOURS
    return Description(
        f"{kind}, a record a local day",
        num_days,
        tuple(
            FieldSummary(name, "float32", (HOURS,), unit, is_given=name == "cos_zenith")
            for name, unit in UNITS.items()
        ),
        num_families=-(-num_days // 7),
    )


def _tmy3_hour_begins(table: Any) -> Any:
    """When each hour begins, from the file's own columns.

    pvlib's index would do but for the last hour of 28 February of a leap year: it moves that one
    to 1 March (pvlib 0.16, `read_tmy3`), which tears the day apart.
    """
    import pandas as pd

    dates = pd.to_datetime(table["Date (MM/DD/YYYY)"], format="%m/%d/%Y").to_numpy()
    hour_ends = table["Time (HH:MM)"].str.split(":").str[0].astype(int).to_numpy()
    begins = pd.DatetimeIndex(dates) + pd.to_timedelta(hour_ends - 1, unit="h")
    return begins.tz_localize(table.index.tz)


def _fault_of_day(hours: Array, columns: Mapping[str, Array], rows: slice) -> str | None:
    if not np.array_equal(hours, np.arange(HOURS)):
        return f"it has {len(hours)} hours, expected 24 in order"
    gaps = [name for name, column in columns.items() if not np.isfinite(column[rows]).all()]
    return f"no value in {', '.join(gaps)}" if gaps else None


def _values(table: Any, channel: _Channel) -> Array:
    """A channel in our unit, NaN where the file has no value (TMY3 writes -9900)."""
    raw = table[channel.column].to_numpy(dtype=np.float64)
    is_missing = (raw <= -9900.0) | (raw >= channel.missing_from)
    return np.where(is_missing, np.nan, raw / channel.divisor).astype(np.float32)


def _cos_zenith(middles: Any, station: _Station) -> Array:
    """Cosine of the sun's geometric zenith angle; negative below the horizon.

    Rounded to 5 decimals (0.01 W/m2 in the closure), so that the last bits of another machine's
    cosine do not give the same day another CID.
    """
    position = _pvlib().solarposition.get_solarposition(
        middles, station.latitude_deg, station.longitude_deg, altitude=station.elevation_m
    )
    cosine = np.cos(np.radians(position["zenith"].to_numpy()))
    rounded: Array = np.round(cosine, 5).astype(np.float32)
    return rounded


def _day_of_year(month: int, day: int) -> int:
    """1 to 365: a TMY has no 29 February."""
    before = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
    return before[month - 1] + day


def _counts(flags: Sequence[str] | Array) -> dict[str, int]:
    values, counts = np.unique(flags, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _pvlib() -> Any:
    """pvlib, imported late: it takes a second and is needed by these readers alone."""
    try:
        import pvlib.iotools
        import pvlib.solarposition
    except ImportError as error:
        raise _missing_pvlib() from error
    return pvlib


def _missing_pvlib() -> MissingTool:
    return MissingTool(
        "reading TMY files needs pvlib, which is not installed",
        remedy="Install the extra: `pip install 'scf[demo]'`.",
    )
