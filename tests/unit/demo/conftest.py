"""Flights, read once: the file has 336,776 rows."""

import pytest

from interlock_cli.demo.data import SPRING, Flights, load_flights, load_weather
from interlock_cli.demo.live import with_live_features


@pytest.fixture(scope="session")
def all_flights() -> Flights:
    flights = load_flights()
    return with_live_features(flights, flights, load_weather())


@pytest.fixture(scope="session")
def spring_flights(all_flights: Flights) -> Flights:
    return all_flights.within(SPRING)
