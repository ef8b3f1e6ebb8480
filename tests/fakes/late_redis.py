"""A way to a Redis on which replies come as late as a test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

from services.common.tasks import spawn
from tests.fakes.redis_server import RedisServer


class LateReplies:
    """A Unix socket in front of a Redis; what Redis says passes `delay_s` seconds later, and meanwhile it says no more."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._carrying: set[asyncio.Task[None]] = set()
        self.socket = redis.folder / "late.sock"
        self.delay_s = 0.0
        self.unanswered = 0
        """Replies that are on their way."""
        self._released = asyncio.Event()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def release(self) -> None:
        """Let what is on its way arrive, and what follows at once."""
        self.delay_s = 0.0
        self._released.set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["LateReplies"]:
        """Carry while the block runs."""
        async with await asyncio.start_unix_server(self._accept, self.socket):
            try:
                yield self
            finally:
                for task in self._carrying:
                    task.cancel()
                await asyncio.gather(*self._carrying, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = spawn(self._carry(reader, writer), "late-redis")
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            replies, asks = await asyncio.open_unix_connection(self._redis.socket)
            with closing(asks):
                ways = [
                    spawn(self._pass(reader, asks, late=False), "asks"),
                    spawn(self._pass(replies, writer), "replies"),
                ]
                try:
                    # Who hangs up, does so for both.
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, late: bool = True) -> None:
        while content := await source.read(65_536):
            if late and self.delay_s:
                self.unanswered += 1
                try:
                    async with asyncio.timeout(self.delay_s):
                        await self._released.wait()
                except TimeoutError:
                    pass
                finally:
                    self.unanswered -= 1
            sink.write(content)
            await sink.drain()
