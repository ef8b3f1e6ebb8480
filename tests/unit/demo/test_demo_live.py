"""Live features never know what came later."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from interlock_cli.demo.data import DELAYS, LIVE, SPRING_AND_SUMMER, WEATHER, WEATHER_MAX_AGE, Flights, load_weather
from interlock_cli.demo.replay import (
    LANDING_VIEWS,
    REPLAYED,
    Scenario,
    hours,
    known_before,
    landing_rows,
    shift_to,
    weather_rows,
)

TODAY = date(2026, 11, 21)


@pytest.fixture(scope="module")
def weather() -> pd.DataFrame:
    return load_weather()


def test_a_thousand_flights_computed_again_from_earlier_landings_only(
    all_flights: Flights, weather: pd.DataFrame
) -> None:
    table = all_flights.features[["carrier", "origin", "dest"]].join(all_flights.facts)
    picked = np.random.default_rng(2013).choice(np.flatnonzero(table["departure"].dt.month > 1), 1_000, replace=False)
    landings, observed = table["landing"].to_numpy(), dict(list(weather.groupby("origin")))
    differences = []
    for position in picked:
        flight = table.iloc[position]
        departure = flight["departure"].to_datetime64()
        recent = (landings > departure - np.timedelta64(7, "D")) & (landings <= departure)
        landed = table.iloc[np.flatnonzero(recent)]
        here = observed[flight["origin"]]
        seen = here[here["time"] <= departure]
        last = seen[departure - seen["time"] <= WEATHER_MAX_AGE].tail(1)
        want = {name: last[name].iloc[0] if len(last) else np.nan for name in WEATHER}
        for name, (columns, window) in DELAYS.items():
            same = landed[(landed[list(columns)] == flight[list(columns)]).all(axis=1)]
            known = all(flight[column] for column in columns)
            want[name] = same[same["landing"] > flight["departure"] - window]["delay"].mean() if known else np.nan
        got = all_flights.features.iloc[position]
        differences += [name for name in LIVE if not np.array_equal(np.float32(want[name]), got[name], equal_nan=True)]
    assert differences == []


def test_the_last_training_day_becomes_yesterday() -> None:
    assert SPRING_AND_SUMMER.last + shift_to(TODAY) == TODAY - timedelta(days=1)


def test_the_replay_pushes_everything_once_and_nothing_before_its_hour(
    all_flights: Flights, weather: pd.DataFrame
) -> None:
    shift = shift_to(TODAY)
    scenario = Scenario(all_flights.within(REPLAYED), all_flights, weather, shift)
    played = list(hours(scenario))
    asked = [position for hour in played for position in hour.positions]
    assert sorted(asked) == list(range(len(scenario.sample)))
    landed, observed = known_before(scenario, played[0].start)
    pushed = [event for part in (landed, *(hour.landings for hour in played)) for event in part.facts["id"]]
    assert len(set(pushed)) == len(pushed)
    for hour in played[:24]:
        start, end = hour.start + shift, hour.start + shift + timedelta(hours=1)
        rows = [row for view in LANDING_VIEWS for row in landing_rows(hour.landings, view, shift)]
        rows += weather_rows(hour.weather, shift)
        assert all(start <= row.event_time < end for row in rows)
    assert max(row.event_time for row in weather_rows(observed, shift)) < played[0].start + shift
    assert played[0].start >= datetime(2013, 9, 1, tzinfo=UTC)
