"""A run: a fleet, a load over all of its surfaces, faults one after another, and the verdict."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from tests.proof.fault import FAULTS
from tests.proof.fleet import Fleet
from tests.proof.history import OK, Event, Verdict
from tests.proof.load import OIP, OIP_JSON, PREDICT, PREDICT_JSON, PREDICT_ROWS, Form, Load, Mix, Surface
from tests.proof.wire import Wires

_SETTLE_S = 30.0


@asynccontextmanager
async def surfaces_of(fleet: Fleet, connections: int) -> AsyncIterator[list[Surface]]:
    """Give every form at every door: both routers, and both replicas directly."""
    forms: Sequence[Form] = (PREDICT, PREDICT_ROWS, OIP, PREDICT_JSON, OIP_JSON)
    async with AsyncExitStack() as opened:

        async def at(address: str) -> Wires:
            wires = Wires(address, connections)
            await wires.open()
            opened.push_async_callback(wires.close)
            return wires

        found = []
        for edge in fleet.edges:
            wires = await at(edge.address)
            found += [Surface(f"{edge.name} {form.name}", form, wires) for form in forms]
        for replica in fleet.replicas:
            found.append(Surface(f"{replica.name} oip", OIP, await at(replica.address), pinned=True))
        yield found


async def prove(
    fleet: Fleet,
    *,
    faults: Iterable[str],
    rate: float,
    mix: Mix | None = None,
    count: int = 0,
    seed: int = 1,
    connections: int = 2,
    record: Callable[[Event], None] | None = None,
    between: Callable[[Load], None] | None = None,
) -> tuple[Verdict, Load]:
    """Run the faults under load, each once, or round and round until `count` requests have been sent.

    Returns the verdict once every request has ended, or was given up as lost.
    """
    async with surfaces_of(fleet, connections) as surfaces:
        load = Load(surfaces, mix or Mix(), seed, record=record)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(rate, over.is_set))
            try:
                await _until_everything_answers(load)
                names = list(faults)
                for name in itertools.cycle(names) if count else names:
                    if count and load.sent >= count:
                        break
                    await FAULTS[name](fleet, load)
                    if between is not None:
                        between(load)
                while not names and load.sent < count:
                    await asyncio.sleep(0.1)
            finally:
                over.set()
        await load.settle(_SETTLE_S)
        return load.judge.finish(), load


async def _until_everything_answers(load: Load) -> None:
    async with asyncio.timeout(60):
        while not all(load.since[f"{surface.name} {OK}"] for surface in load.surfaces):
            await asyncio.sleep(0.02)
