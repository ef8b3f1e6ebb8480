"""Flights, read once: the file has 336,776 rows."""

import pytest

from interlock_cli.demo.data import SPRING, Flights, load_flights


@pytest.fixture(scope="session")
def all_flights() -> Flights:
    return load_flights()


@pytest.fixture(scope="session")
def spring_flights(all_flights: Flights) -> Flights:
    return all_flights.within(SPRING)
