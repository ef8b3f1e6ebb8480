"""What was known when a flight was due to leave: weather at its origin, and delays of flights that had landed by then."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from interlock_cli.demo.data import CATEGORICAL, DELAYS, WEATHER, WEATHER_MAX_AGE, Flights


def with_live_features(flights: Flights, history: Flights, weather: pd.DataFrame) -> Flights:
    """Gives the flights with the features LIVE beside the timetable's."""
    live = live_features(flights, history, weather)
    return replace(flights, features=pd.concat([flights.features, live], axis=1))


def live_features(flights: Flights, history: Flights, weather: pd.DataFrame) -> pd.DataFrame:
    """Gives the features LIVE of each flight as of its scheduled departure; NaN where nothing was known.

    `history` are the flights that may have landed before, `weather` is what `load_weather` gives.
    """
    delays = {name: _mean_delay(flights, history, list(columns), window) for name, (columns, window) in DELAYS.items()}
    return pd.concat([_weather(flights, weather), pd.DataFrame(delays)], axis=1).astype("float32")


def _weather(flights: Flights, weather: pd.DataFrame) -> pd.DataFrame:
    asked = pd.DataFrame({"origin": flights.features["origin"], "time": flights.facts["departure"]})
    asked["position"] = np.arange(len(asked))
    latest = pd.merge_asof(
        asked.sort_values("time"), weather, on="time", by="origin", tolerance=pd.Timedelta(WEATHER_MAX_AGE)
    )
    return latest.sort_values("position", ignore_index=True)[list(WEATHER)]


def _mean_delay(
    flights: Flights, history: Flights, columns: list[str], window: np.timedelta64
) -> npt.NDArray[np.float64]:
    """Gives the mean delay of the flights with equal columns that landed in (departure - window, departure]."""
    asked, landed = _keyed(flights).groupby(columns).indices, _keyed(history).groupby(columns).indices
    departure = flights.facts["departure"].to_numpy()
    order = {key: at[np.argsort(history.facts["landing"].to_numpy()[at], kind="stable")] for key, at in landed.items()}
    means = np.full(len(flights), np.nan)
    for key, positions in asked.items():
        if key not in order:
            continue
        landings = history.facts["landing"].to_numpy()[order[key]]
        sums = np.concatenate([[0.0], np.cumsum(history.facts["delay"].to_numpy()[order[key]])])
        last = np.searchsorted(landings, departure[positions], "right")
        first = np.searchsorted(landings, departure[positions] - window, "right")
        counts = last - first
        means[positions] = np.where(counts > 0, (sums[last] - sums[first]) / np.maximum(counts, 1), np.nan)
    return means


def _keyed(flights: Flights) -> pd.DataFrame:
    keys = flights.features[list(CATEGORICAL)].assign(tailnum=flights.facts["tailnum"])
    # An unknown aircraft is not one aircraft.
    return keys.where(keys["tailnum"] != "", keys.assign(tailnum=None))
