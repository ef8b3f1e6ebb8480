"""Flights sent one by one through the REST door, what came back, and what became of them."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import httpx
import numpy as np
import numpy.typing as npt

from interlock_cli.demo.data import CATEGORICAL, FEATURES, LABELS, Flights
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.replay import departure_times, entity_keys

USER_COUNT = 1_000

_PREDICT_PATH = "/v1/predict"
_FEEDBACK_PATH = "/v1/feedback"
_LABELS_IN_A_CALL = 1_000
_LATE = LABELS.index("late")
# Not an answer yet: the suite is starting, or says that it is busy.
_TRY_AGAIN = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_ATTEMPTS = 5
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the door said about one flight, and how long it took as seen from here."""

    prediction_id: str
    version: str
    late_probability: float
    latency_s: float
    degraded: bool = False
    """Whether a live feature did not come, so that null stood in."""


class PredictionDoor:
    """The REST door for one model; a context, in which its connections are open.

    `open_http` opens a client with the door's address. Each request in flight has a client, and so a connection, of its
    own: in a pool that they share, finding a free connection costs more than the rest of the request.
    """

    def __init__(self, open_http: Callable[[], httpx.AsyncClient], model: str, concurrency: int) -> None:
        self._model = model
        self._clients = [open_http() for _ in range(concurrency)]
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await self._opened.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def send(self, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Sends each body as a request of its own, on all connections at a time; gives the answers in the bodies' order.

        Raises DemoFailed for an answer that is not a prediction, and when nothing answers.
        """
        answers: dict[int, Answer] = {}
        pending = iter(enumerate(bodies))

        async def work(http: httpx.AsyncClient) -> None:
            for index, body in pending:
                answers[index] = await _ask(http, body)

        try:
            async with asyncio.TaskGroup() as group:
                for http in self._clients:
                    group.create_task(work(http))
        except* DemoFailed as failures:
            raise _first(failures) from None
        return [answers[index] for index in range(len(bodies))]

    async def label(self, labels: Sequence[tuple[str, str, datetime]]) -> None:
        """Tells what was true: prediction id, label, and when it became so. Raises DemoFailed when one is refused."""
        for first in range(0, len(labels), _LABELS_IN_A_CALL):
            feedback = [
                {"prediction_id": prediction_id, "label": label, "event_time": time.isoformat()}
                for prediction_id, label, time in labels[first : first + _LABELS_IN_A_CALL]
            ]
            response = await _post(self._clients[0], _FEEDBACK_PATH, {"feedback": feedback})
            if not response.is_success:
                raise DemoFailed(f"{_FEEDBACK_PATH} answered {_describe(response)}")
            refused = [one for one in response.json()["results"] if one["outcome"] == "FEEDBACK_OUTCOME_REFUSED"]
            if refused:
                raise DemoFailed(f"{_FEEDBACK_PATH} refused {len(refused)} labels: {refused[0]['error']['message']}")

    async def wait_until_open(self, body: Mapping[str, Any], *, route_epoch: int, timeout_s: float) -> None:
        """Waits until the door predicts by a route at least as new as `route_epoch`.

        Raises DemoFailed with the last answer when it does not in time.
        """
        said = "nothing"
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    response = await _post(self._clients[0], _PREDICT_PATH, body)
                    if response.is_success and int(response.json()["config_epoch"]) >= route_epoch:
                        return
                    said = _describe(response)
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            raise DemoFailed(f"{self._model} is not served within {timeout_s:g} s; the last answer: {said}") from None


def request_bodies(flights: Flights, model: str, shift: timedelta) -> Iterator[dict[str, Any]]:
    """Gives the JSON body of each flight's request; the k-th flight belongs to user k modulo USER_COUNT."""
    rows = flights.features[list(FEATURES)].astype(dict.fromkeys(set(FEATURES) - set(CATEGORICAL), int))
    asked = zip(rows.to_dict("records"), entity_keys(flights), departure_times(flights, shift), strict=True)
    for index, (row, entities, departure) in enumerate(asked):
        yield {
            "model": model,
            "features": row,
            "entities": entities,
            "user_id": f"u-{index % USER_COUNT}",
            "as_of_time": departure.isoformat(),
            "include_probabilities": True,
        }


def probabilities_of(answers: list[Answer]) -> npt.NDArray[np.float64]:
    """Gives the probability of being late of each answer."""
    return np.array([answer.late_probability for answer in answers], dtype=np.float64)


async def _ask(http: httpx.AsyncClient, body: Mapping[str, Any]) -> Answer:
    for attempt in range(_ATTEMPTS):
        started = time.perf_counter()
        response = await _post(http, _PREDICT_PATH, body)
        if response.is_success:
            return _answer(response, time.perf_counter() - started)
        if response.status_code not in _TRY_AGAIN:
            break
        await asyncio.sleep(_PAUSE_S * 2**attempt)
    raise DemoFailed(f"{_PREDICT_PATH} answered {_describe(response)}")


async def _post(http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> httpx.Response:
    try:
        return await http.post(path, json=body)
    except httpx.HTTPError as error:
        raise DemoFailed(f"{http.base_url} does not answer: {type(error).__name__}") from None


def _answer(response: httpx.Response, latency_s: float) -> Answer:
    said = response.json()
    return Answer(
        said["prediction_id"],
        said["model_version"],
        float(said["probabilities"][_LATE]),
        latency_s,
        bool(said.get("degraded")),
    )


def _describe(response: httpx.Response) -> str:
    try:
        message = response.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    return f"{response.status_code}: {message}"


def _first(failures: ExceptionGroup[DemoFailed]) -> DemoFailed:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return DemoFailed(str(failure))
