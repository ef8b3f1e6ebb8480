"""A loop that stands still is told of while it does; one that turns is not."""

import asyncio
import threading

from services.common.loop_lag import LoopLag


async def test_a_blocked_loop_is_told_of_while_it_is_blocked_with_the_place() -> None:
    told = threading.Event()
    places: list[str] = []

    def alarm(place: str) -> None:
        places.append(place)
        told.set()

    lag = LoopLag(alarm, look_s=0.02)
    try:
        while not lag.worst_s():
            await asyncio.sleep(0.01)
        told.clear()
        places.clear()
        assert told.wait(30), "the loop stands still here, and goes on because it was told"
        assert "test_a_blocked_loop" in places[0]
        while not lag.worst_s():
            await asyncio.sleep(0.01)
    finally:
        lag.stop()
