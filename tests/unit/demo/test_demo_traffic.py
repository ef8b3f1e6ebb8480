"""Flights through the REST door: order, retries and failures."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from interlock_cli.demo import traffic as demo_traffic
from interlock_cli.demo.data import Flights
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.traffic import PredictionDoor, request_bodies

MockHandler = (
    Callable[[httpx.Request], httpx.Response] | Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]
)


class Door:
    """Stands in for the edge: answers the n-th request as told, with the distance as the probability."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.script: list[httpx.Response] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        body = json.loads(request.content)
        self.bodies.append(body)
        if self.script:
            return self.script.pop(0)
        return prediction(body["features"]["distance"] / 10_000)


def prediction(late: float, epoch: int = 5) -> httpx.Response:
    said = {"prediction_id": "p", "model_version": "1", "probabilities": [1 - late, late], "config_epoch": str(epoch)}
    return httpx.Response(200, json=said)


@pytest.fixture
def edge() -> Door:
    return Door()


@pytest.fixture
async def door(edge: Door, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PredictionDoor]:
    monkeypatch.setattr(demo_traffic, "_PAUSE_S", 0.001)
    async with door_to(edge) as door:
        yield door


def door_to(handler: MockHandler, concurrency: int = 4) -> PredictionDoor:
    def open_http() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://edge")

    return PredictionDoor(open_http, "flight-delay", concurrency)


@pytest.fixture
def flights(spring_flights: Flights) -> Flights:
    return spring_flights.take(np.arange(50))


def bodies_of(flights: Flights) -> list[dict[str, Any]]:
    return list(request_bodies(flights, "flight-delay", timedelta()))


def test_a_request_holds_plain_values_of_the_declared_types(spring_flights: Flights) -> None:
    body = next(request_bodies(spring_flights, "flight-delay", timedelta(days=4_829)))
    assert body["model"] == "flight-delay"
    types = {name: type(value) for name, value in body["features"].items()}
    assert types == {
        "carrier": str,
        "origin": str,
        "dest": str,
        "sched_dep_hour": int,
        "month": int,
        "weekday": int,
        "distance": int,
    }
    assert body["user_id"] == "u-0"
    assert body["entities"] == {"origin": "JFK", "dest": "FLL", "carrier": "B6", "tailnum": "N706JB"}
    assert datetime.fromisoformat(body["as_of_time"]).tzinfo is UTC


async def test_answers_come_in_the_flights_order_with_few_in_flight(
    edge: Door, door: PredictionDoor, flights: Flights
) -> None:
    answers = await door.send(bodies_of(flights))
    expected = (flights.features["distance"] / 10_000).tolist()
    assert [answer.late_probability for answer in answers] == pytest.approx(expected)
    assert len(edge.bodies) == 50
    assert 1 < edge.most_in_flight <= 4


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_door_is_asked_again(edge: Door, door: PredictionDoor, flights: Flights, status: int) -> None:
    edge.script = [httpx.Response(status, json={"message": "busy"})] * 2
    answers = await door.send(bodies_of(flights)[:1])
    assert len(answers) == 1
    assert len(edge.bodies) == 3


async def test_a_door_that_stays_busy_is_a_failure_with_its_words(
    edge: Door, door: PredictionDoor, flights: Flights
) -> None:
    edge.script = [httpx.Response(503, json={"message": "no replica is ready"})] * 1_000
    with pytest.raises(DemoFailed, match=r"/v1/predict answered 503: no replica is ready"):
        await door.send(bodies_of(flights))


async def test_a_refusal_is_not_repeated(edge: Door, door: PredictionDoor, flights: Flights) -> None:
    edge.script = [httpx.Response(400, json={"code": 3, "message": "features.month: want 1 to 12"})]
    with pytest.raises(DemoFailed, match=r"answered 400: features.month: want 1 to 12"):
        await door.send(bodies_of(flights)[:1])
    assert len(edge.bodies) == 1


async def test_an_answer_that_is_not_json_is_named_by_its_status(
    edge: Door, door: PredictionDoor, flights: Flights
) -> None:
    edge.script = [httpx.Response(404, text="nothing here")]
    with pytest.raises(DemoFailed, match=r"answered 404: Not Found"):
        await door.send(bodies_of(flights)[:1])


async def test_a_door_that_is_not_there_is_named(flights: Flights) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with door_to(refuse) as door:
        with pytest.raises(DemoFailed, match="http://edge does not answer: ConnectError"):
            await door.send(bodies_of(flights))


async def test_waiting_ends_when_the_new_route_answers(edge: Door, door: PredictionDoor, flights: Flights) -> None:
    edge.script = [
        httpx.Response(404, json={"message": "no route"}),
        prediction(0.1, epoch=6),
        prediction(0.1, epoch=7),
    ]
    await door.wait_until_open(bodies_of(flights)[0], route_epoch=7, timeout_s=10)
    assert len(edge.bodies) == 3


async def test_waiting_too_long_gives_the_last_answer(edge: Door, door: PredictionDoor, flights: Flights) -> None:
    edge.script = [httpx.Response(503, json={"message": "no configuration yet"})] * 10_000
    with pytest.raises(DemoFailed, match=r"not served within 0.2 s; the last answer: 503: no configuration yet"):
        await door.wait_until_open(bodies_of(flights)[0], route_epoch=0, timeout_s=0.2)
