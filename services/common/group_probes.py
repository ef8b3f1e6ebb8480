"""Metrics and health of several processes of one service, on the one port that is scraped and probed.

Each process answers on a Unix socket of its own. Samples keep their own series, told apart by the label `process`: a sum
would fall when a process is started anew, and `rate` would take that for a reset of all.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from services.common.probes import Page, PageServer, alive_page, metrics_page, missing_page, ready_page, startup_page
from services.common.unix_http import ask

_ASK_TIMEOUT_S: Final = 2.0


class GroupProbes(PageServer):
    """The pages of service `name`, from those of its processes, which listen on `sockets`.

    Ready: at least one process answers, and each that answers is ready. One that is dead or being started again takes no
    connections; the others do.
    """

    def __init__(self, name: str, sockets: Sequence[Path]) -> None:
        self._name = name
        self._sockets = sockets
        self._started = False

    async def page(self, path: str) -> Page:
        """Return what the processes say together."""
        match path:
            case "/metrics":
                return await self._metrics()
            case "/health":
                return alive_page()
            case "/health/ready":
                answers = [found[0] for found in await self._ask(path) if found is not None]
                return ready_page(ready=bool(answers) and all(status == HTTPStatus.OK for status in answers))
            case "/health/startup":
                answers = [found is not None and found[0] == HTTPStatus.OK for found in await self._ask(path)]
                self._started = self._started or all(answers)
                return startup_page(started=self._started)
            case _:
                return missing_page()

    async def _metrics(self) -> Page:
        pages = [None if found is None else found[1].decode() for found in await self._ask("/metrics")]
        registry = CollectorRegistry()
        registry.register(_Together(self._name, pages))
        return await asyncio.to_thread(metrics_page, registry)

    async def _ask(self, path: str) -> list[tuple[int, bytes] | None]:
        return await asyncio.gather(*(_answer_of(socket, path) for socket in self._sockets))


async def _answer_of(socket: Path, path: str) -> tuple[int, bytes] | None:
    try:
        return await ask(socket, "GET", path, _ASK_TIMEOUT_S)
    except (OSError, TimeoutError):
        return None


class _Together(Collector):
    """The metrics of several pages, in the order of the processes; None for one that did not answer."""

    def __init__(self, name: str, pages: Sequence[str | None]) -> None:
        self._name = name
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        """Yield each family once, with the samples of all processes."""
        up = GaugeMetricFamily(
            f"interlock_{self._name}_process_up", "1 for a process that answers its launcher.", labels=["process"]
        )
        families: dict[str, Metric] = {}
        for number, page in enumerate(self._pages):
            up.add_metric([str(number)], float(page is not None))
            for found in text_string_to_metric_families(page or ""):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                family.samples.extend(_labelled(found, str(number)))
        yield up
        yield from families.values()


def _labelled(family: Metric, number: str) -> Iterable[Sample]:
    return (sample._replace(labels={**sample.labels, "process": number}) for sample in family.samples)
