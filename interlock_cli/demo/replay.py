"""The days after training as if they were today: what becomes known is pushed hour by hour while flights ask for predictions.

All times of 2013 are moved by one constant of whole days, in UTC, so that the last training day is yesterday. Hour, weekday
and month stay what they were: they are features, and the figures must not change from day to day.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd

from interlock_cli.demo.data import DELAYS, LONGEST_WINDOW, RECIPES, WEATHER, WEATHER_MAX_AGE, Flights, Window
from interlock_sdk.features import FeatureRow

REPLAYED = Window("four days after training", date(2013, 9, 1), date(2013, 9, 4))
# Each view takes a landing by keys of its own.
LANDING_VIEWS = {
    "carrier_delays": DELAYS["carrier_delay_6h"][0],
    "route_delays": DELAYS["route_delay_7d"][0],
    "aircraft_delays": DELAYS["aircraft_delay_24h"][0],
}
WEATHER_VIEW = "weather"
ENTITIES = ("origin", "dest", "carrier", "tailnum")

_HOUR = timedelta(hours=1)
_LAST_TRAINING_DAY = max(recipe.window.last for recipe in RECIPES)


def shift_to(today: date) -> timedelta:
    """Gives the constant that moves the last training day to the day before `today`."""
    return (today - timedelta(days=1)) - _LAST_TRAINING_DAY


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is replayed: the flights that ask, all flights that land, the weather, and by how much time is moved."""

    sample: Flights
    flights: Flights
    weather: pd.DataFrame
    shift: timedelta


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of the replay, in 2013: what becomes known in it, and positions of the flights due to leave in it."""

    start: datetime
    landings: Flights
    weather: pd.DataFrame
    positions: list[int]


def known_before(scenario: Scenario, start: datetime) -> tuple[Flights, pd.DataFrame]:
    """Gives the landings and the weather of the past that the first hour's features still need."""
    flights, weather = scenario.flights, scenario.weather
    first = np.datetime64(start.replace(tzinfo=None))
    landing, observed = flights.facts["landing"].to_numpy(), weather["time"].to_numpy()
    landed = flights.take(np.flatnonzero((landing > first - LONGEST_WINDOW) & (landing < first)))
    return landed, weather[(observed >= first - WEATHER_MAX_AGE) & (observed < first)]


def hours(scenario: Scenario) -> Iterator[Hour]:
    """Goes through the hours in which flights of the sample leave or land."""
    sample, flights, weather = scenario.sample, scenario.flights, scenario.weather
    departures = sample.facts["departure"].dt.floor("h")
    hour, last = departures.min(), sample.facts["landing"].max()
    landing, observed = flights.facts["landing"].dt.floor("h"), weather["time"].dt.floor("h")
    while hour <= last:
        yield Hour(
            hour.to_pydatetime().replace(tzinfo=UTC),
            flights.take(np.flatnonzero(landing == hour)),
            weather[observed == hour],
            np.flatnonzero(departures == hour).tolist(),
        )
        hour += _HOUR


def landing_rows(landings: Flights, view: str, shift: timedelta) -> list[FeatureRow]:
    """Gives the events that a view takes; an unknown aircraft is no event of the aircraft's view."""
    keys = LANDING_VIEWS[view]
    table = landings.features[["carrier", "origin", "dest"]].assign(tailnum=landings.facts["tailnum"])[list(keys)]
    times = landings.facts["landing"].dt.to_pydatetime()
    facts = zip(table.to_dict("records"), landings.facts["id"], landings.facts["delay"], times, strict=True)
    return [
        FeatureRow(
            entities={str(name): str(key) for name, key in entities.items()},
            values={"delay": float(delay)},
            event_time=_shifted(time, shift),
            event_id=str(event),
            known_at=_shifted(time, shift),
        )
        for entities, event, delay, time in facts
        if all(entities.values())
    ]


def weather_rows(weather: pd.DataFrame, shift: timedelta) -> list[FeatureRow]:
    """Gives the observations as rows; what was not measured is null."""
    rows = []
    for record in weather.to_dict("records"):
        time = _shifted(record["time"].to_pydatetime(), shift)
        values = {name: None if np.isnan(record[name]) else float(record[name]) for name in WEATHER}
        rows.append(FeatureRow(entities={"origin": record["origin"]}, values=values, event_time=time, known_at=time))
    return rows


def entity_keys(flights: Flights) -> list[dict[str, str]]:
    """Gives what each flight's features are fetched for; an unknown aircraft is left out."""
    table = flights.features[["origin", "dest", "carrier"]].assign(tailnum=flights.facts["tailnum"])
    return [{name: record[name] for name in ENTITIES if record[name]} for record in table.to_dict("records")]


def departure_times(flights: Flights, shift: timedelta) -> list[datetime]:
    """Gives the scheduled departures, moved: the time that each prediction is made at."""
    return [_shifted(time, shift) for time in flights.facts["departure"].dt.to_pydatetime()]


def landing_times(flights: Flights, shift: timedelta) -> list[datetime]:
    """Gives the landings, moved: the time at which each label becomes true."""
    return [_shifted(time, shift) for time in flights.facts["landing"].dt.to_pydatetime()]


def _shifted(time: datetime, shift: timedelta) -> datetime:
    return time.replace(tzinfo=UTC) + shift
