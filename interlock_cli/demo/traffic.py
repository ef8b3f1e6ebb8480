"""Flights sent one by one through the REST door, and what came back."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pandas as pd

from interlock_cli.demo.data import CATEGORICAL, FEATURES, LABELS, Flights
from interlock_cli.demo.failure import DemoFailed

USER_COUNT = 1_000

_PREDICT_PATH = "/v1/predict"
_LATE = LABELS.index("late")
# Not an answer yet: the suite is starting, or says that it is busy.
_TRY_AGAIN = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_ATTEMPTS = 5
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the door said about one flight, and how long it took as seen from here."""

    version: str
    late_probability: float
    latency_s: float


class PredictionDoor:
    """The REST door for one model.

    `open_http` opens a client with the door's address. Each request in flight has a client, and so a connection, of its
    own: in a pool that they share, finding a free connection costs more than the rest of the request.
    """

    def __init__(self, open_http: Callable[[], httpx.AsyncClient], model: str) -> None:
        self._open_http = open_http
        self._model = model

    async def send(self, flights: Flights, *, concurrency: int, on_answer: Callable[[], None]) -> list[Answer]:
        """Sends each flight as a request of its own, `concurrency` at a time; gives the answers in the flights' order.

        Raises DemoFailed for an answer that is not a prediction, and when nothing answers.
        """
        requests = list(enumerate(request_bodies(flights.features, self._model)))
        answers: dict[int, Answer] = {}
        pending = iter(requests)

        async def work() -> None:
            async with self._open_http() as http:
                for index, body in pending:
                    answers[index] = await _ask(http, body)
                    on_answer()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
        except* DemoFailed as failures:
            raise _first(failures) from None
        return [answers[index] for index, _ in requests]

    async def wait_until_open(self, flights: Flights, *, route_epoch: int, timeout_s: float) -> None:
        """Waits until the door predicts the first flight by a route at least as new as `route_epoch`.

        Raises DemoFailed with the last answer when it does not in time.
        """
        body = next(request_bodies(flights.features, self._model))
        said = "nothing"
        try:
            async with self._open_http() as http, asyncio.timeout(timeout_s):
                while True:
                    response = await _post(http, body)
                    if response.is_success and int(response.json()["config_epoch"]) >= route_epoch:
                        return
                    said = _describe(response)
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            raise DemoFailed(f"{self._model} is not served within {timeout_s:g} s; the last answer: {said}") from None


def request_bodies(features: pd.DataFrame, model: str) -> Iterator[dict[str, Any]]:
    """Gives the JSON body of each row's request; the k-th row belongs to user k modulo USER_COUNT."""
    rows = features[list(FEATURES)].astype(dict.fromkeys(set(FEATURES) - set(CATEGORICAL), int))
    for index, row in enumerate(rows.to_dict("records")):
        user_id = f"u-{index % USER_COUNT}"
        yield {"model": model, "features": row, "user_id": user_id, "include_probabilities": True}


def probabilities_of(answers: list[Answer]) -> npt.NDArray[np.float64]:
    """Gives the probability of being late of each answer."""
    return np.array([answer.late_probability for answer in answers], dtype=np.float64)


async def _ask(http: httpx.AsyncClient, body: Mapping[str, Any]) -> Answer:
    for attempt in range(_ATTEMPTS):
        started = time.perf_counter()
        response = await _post(http, body)
        if response.is_success:
            return _answer(response, time.perf_counter() - started)
        if response.status_code not in _TRY_AGAIN:
            break
        await asyncio.sleep(_PAUSE_S * 2**attempt)
    raise DemoFailed(f"{_PREDICT_PATH} answered {_describe(response)}")


async def _post(http: httpx.AsyncClient, body: Mapping[str, Any]) -> httpx.Response:
    try:
        return await http.post(_PREDICT_PATH, json=body)
    except httpx.HTTPError as error:
        raise DemoFailed(f"{http.base_url} does not answer: {type(error).__name__}") from None


def _answer(response: httpx.Response, latency_s: float) -> Answer:
    said = response.json()
    return Answer(said["model_version"], float(said["probabilities"][_LATE]), latency_s)


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
