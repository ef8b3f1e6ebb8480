"""One pipelined round trip to Redis: a single server, whichever Sentinel says is the master, or a cluster.

redis-py connects, authenticates, speaks TLS, asks Sentinels and follows a cluster's slots; its retries are off, because
whoever waits has a deadline. Connections are our own few, not a pool's: a round trip takes one and gives it back.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.features.domain.ports import Command, Reply, Request, ScriptCall

# Its stub says tuples of a mixed type, which tuples of bytes are not.
_pack: Final[Callable[[Command], bytes]] = hiredis.pack_command  # type: ignore[assignment]
_SENTINEL_PORT: Final = 26379
_CLUSTER_PORT: Final = 6379
_SCAN_COUNT: Final = b"1000"
_FORMS: Final = (
    "redis://, rediss://, unix:///path, redis+sentinel://host:port,host:port/service, rediss+sentinel://, "
    "redis+cluster://host:port,host:port or rediss+cluster://"
)


class InvalidRedisUrl(ValueError):
    """A URL that names no Redis; the text never holds its password."""


class Link(Protocol):
    """A way to Redis. Whatever goes wrong with it is a RedisError, an OSError or a TimeoutError."""

    async def exchange(self, requests: Sequence[Request], deadline_s: float) -> list[Reply]:
        """Send all requests at once and return what came back, an exception for a request that Redis refuses.

        The deadline is for the round trip; to connect beforehand has a time of its own.
        """

    def scan(self, pattern: bytes, deadline_s: float) -> AsyncIterator[list[bytes]]:
        """Yield the keys that match, some at a time; deadline for each round trip."""

    async def close(self) -> None:
        """Close all connections."""


def open_link(url: str, *, connect_timeout_s: float, on_reconnect: Callable[[], None]) -> Link:
    """Return the way to the Redis of a URL; nothing is connected yet. Raises InvalidRedisUrl.

    `on_reconnect` is called when a connection that worked was lost and made anew: Redis may have been restarted.
    """
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout_s,
    }
    try:
        if scheme in ("redis+cluster", "rediss+cluster"):
            return _ClusterLink(_cluster(url, options), connect_timeout_s)
        if scheme.endswith("+sentinel"):
            sentinel, service = _sentinel(url, options)
            pool: ConnectionPool = sentinel.master_for(service).connection_pool
            return _ServerLink(pool, connect_timeout_s, on_reconnect, sentinel.sentinels)
        pool = ConnectionPool.from_url(url, **options)
    except (ValueError, TypeError) as error:
        raise InvalidRedisUrl(f"want {_FORMS}; the scheme is {scheme!r}: {_harmless(error)}") from None
    return _ServerLink(pool, connect_timeout_s, on_reconnect)


class _Pipelined(AbstractConnection):
    """A connection whose replies are read in one go.

    redis-py's own `read_response` costs 8 us a reply around the parser's one; a read has dozens of replies.
    """

    async def exchange(self, payload: bytes, count: int) -> list[Reply]:
        """Send packed commands and return as many replies; the connection is closed if that does not end well."""
        await self.send_packed_command(payload, check_health=False)
        parser: Any = self._parser
        read = parser.read_response
        try:
            return [await read(disable_decoding=True) for _ in range(count)]
        except BaseException:
            # Replies that nobody reads must never be the next caller's.
            await self.disconnect(nowait=True)
            raise


class _Scripted(ABC):
    """What every link does when Redis does not know a script yet."""

    async def exchange(self, requests: Sequence[Request], deadline_s: float) -> list[Reply]:
        """See `Link`."""
        replies = await self._exchange([_command_of(request) for request in requests], deadline_s)
        unknown = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            # EVAL loads the script on the way, on whichever server is the right one.
            again = await self._exchange([_with_text(requests[place]) for place in unknown], deadline_s)
            for place, reply in zip(unknown, again, strict=True):
                replies[place] = reply
        return replies

    @abstractmethod
    async def _exchange(self, commands: Sequence[Command], deadline_s: float) -> list[Reply]: ...


class _ServerLink(_Scripted):
    """See `Link`: one server at a time."""

    def __init__(
        self,
        pool: ConnectionPool,
        connect_timeout_s: float,
        on_reconnect: Callable[[], None],
        sentinels: Sequence[Redis] = (),
    ) -> None:
        self._sentinels = sentinels
        pool.connection_class = type("PipelinedConnection", (_Pipelined, pool.connection_class), {})
        # The pool only knows how to make connections; with a Sentinel they ask it through the pool.
        self._pool: Any = pool
        self._connect_timeout_s = connect_timeout_s
        self._on_reconnect = on_reconnect
        self._idle: list[_Pipelined] = []
        self._all: list[_Pipelined] = []

    async def scan(self, pattern: bytes, deadline_s: float) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            command = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_COUNT)
            (reply,) = await self.exchange([command], deadline_s)
            if isinstance(reply, Exception):
                raise reply
            cursor, keys = reply
            yield keys
            if cursor == b"0":
                return

    async def close(self) -> None:
        for connection in self._all:
            await connection.disconnect()
        await self._pool.aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _exchange(self, commands: Sequence[Command], deadline_s: float) -> list[Reply]:
        connection = self._take()
        try:
            payload = b"".join([_pack(command) for command in commands])
            worked = connection.is_connected
            await self._connect(connection)
            async with asyncio.timeout(deadline_s):
                try:
                    replies = await connection.exchange(payload, len(commands))
                except RedisConnectionError:
                    if not worked:
                        raise
                    # It was closed while idle. All that is sent here may be sent twice.
                    await self._connect(connection)
                    replies = await connection.exchange(payload, len(commands))
                    self._on_reconnect()
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                # No master any more: the next connection asks who is.
                await connection.disconnect(nowait=True)
            return replies
        finally:
            self._idle.append(connection)

    def _take(self) -> _Pipelined:
        if self._idle:
            return self._idle.pop()
        connection: _Pipelined = self._pool.make_connection()
        self._all.append(connection)
        return connection

    async def _connect(self, connection: _Pipelined) -> None:
        if not connection.is_connected:
            async with asyncio.timeout(self._connect_timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]


class _ClusterLink(_Scripted):
    """See `Link`: redis-py finds the node of each key and asks all nodes at once."""

    def __init__(self, client: RedisCluster, connect_timeout_s: float) -> None:
        self._client = client
        self._connect_timeout_s = connect_timeout_s
        self._plain: set[str] = set()

    async def scan(self, pattern: bytes, deadline_s: float) -> AsyncIterator[list[bytes]]:
        found: list[bytes] = []
        async for key in self._client.scan_iter(match=pattern, count=int(_SCAN_COUNT)):
            found.append(key)
            if len(found) == int(_SCAN_COUNT):
                yield found
                found = []
        yield found

    async def close(self) -> None:
        await self._client.aclose()

    async def _exchange(self, commands: Sequence[Command], deadline_s: float) -> list[Reply]:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._client.initialize()
            async with asyncio.timeout(deadline_s):
                return await self._ask(commands)
        except (RedisError, OSError, TimeoutError):
            # The next round trip asks anew which nodes there are: with its retries off, redis-py would not.
            await self._client.aclose()
            raise

    async def _ask(self, commands: Sequence[Command]) -> list[Reply]:
        pipeline = self._client.pipeline()
        for name, *arguments in commands:
            pipeline.execute_command(self._known(name.decode()), *arguments)
        replies = list(await pipeline.execute(raise_on_error=False))
        for reply in replies:
            if isinstance(reply, RedisConnectionError | RedisTimeoutError):
                raise reply
        return replies

    def _known(self, name: str) -> str:
        if name not in self._plain:
            # Replies as Redis gives them, like on a single server.
            self._client.set_response_callback(name, _as_it_is)  # type: ignore[arg-type]
            self._plain.add(name)
        return name


def _as_it_is(reply: Any, *_: Any, **__: Any) -> Any:
    return reply


def _command_of(request: Request) -> Command:
    if isinstance(request, ScriptCall):
        return (b"EVALSHA", request.script.sha1, b"%d" % len(request.keys), *request.keys, *request.arguments)
    return request


def _with_text(request: Request) -> Command:
    assert isinstance(request, ScriptCall), "only a script can be unknown"
    return (b"EVAL", request.script.text.encode(), b"%d" % len(request.keys), *request.keys, *request.arguments)


def _sentinel(url: str, options: dict[str, Any]) -> tuple[Sentinel, str]:
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("the path names no service")
    query = dict(parse_qsl(parts.query))
    tls = parts.scheme.startswith("rediss")
    asking = {
        **options,
        "ssl": tls,
        "password": query.pop("sentinel_password", None),
        "username": query.pop("sentinel_username", None),
    }
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _addresses(parts.netloc, _SENTINEL_PORT),
        sentinel_kwargs=asking,
        db=int(database or 0),
        ssl=tls,
        **_credentials(parts.username, parts.password),
        **query,
        **options,
    )
    return sentinel, service


def _cluster(url: str, options: dict[str, Any]) -> RedisCluster:
    parts = urlsplit(url)
    nodes = [ClusterNode(host, port) for host, port in _addresses(parts.netloc, _CLUSTER_PORT)]
    given: dict[str, Any] = {**_credentials(parts.username, parts.password), **dict(parse_qsl(parts.query)), **options}
    return RedisCluster(startup_nodes=nodes, ssl=parts.scheme.startswith("rediss"), **given)


def _credentials(username: str | None, password: str | None) -> dict[str, str]:
    found = {"username": username, "password": password}
    return {name: unquote(value) for name, value in found.items() if value}


def _addresses(netloc: str, default_port: int) -> list[tuple[str, int]]:
    found = []
    for part in netloc.rpartition("@")[2].split(","):
        address = urlsplit(f"//{part}")
        if not address.hostname:
            raise ValueError("a host is empty")
        found.append((address.hostname, address.port or default_port))
    return found


def _harmless(error: Exception) -> str:
    """Return an error's text, which redis-py and urllib fill with parts of the URL only where those are no secret."""
    return str(error) if "@" not in str(error) else type(error).__name__
