"""One watcher's stream: a snapshot or the changes since a token, then every change, and heartbeats in between."""

import hashlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from services.common.errors import Violation, echo
from services.common.refusals import InvalidRequest
from services.registry.domain.failure import WatchTokenExpired
from services.registry.domain.ports import ChangeFeed, Delta, Scope, Snapshot

_SCOPE_DIGITS = 16
_TOKEN_PARTS = 3


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing changed within the scope up to the epoch."""

    epoch: int


Event = Snapshot | Delta | Heartbeat


async def watch(feed: ChangeFeed, scope: Scope, token: str, heartbeat_s: float) -> AsyncGenerator[Event, None]:
    """Yield what a watcher must know, for ever; a heartbeat comes after `heartbeat_s` without anything else.

    Raises WatchTokenExpired when the changes after the token are no longer kept, be it in the middle because the
    watcher is slow.
    """
    if token:
        epoch = parse_token(token, feed.registry_id, scope)
    else:
        snapshot = await feed.snapshot(scope)
        yield snapshot
        epoch = snapshot.epoch
    # With a token the first answer comes at once as well, so that the watcher knows that it is connected.
    next_heartbeat = time.monotonic() + (0 if token else heartbeat_s)
    while True:
        deltas, reached = await feed.deltas(scope, epoch)
        for delta in deltas:
            yield delta
        caught_up, epoch = reached == epoch, reached
        if deltas:
            next_heartbeat = time.monotonic() + heartbeat_s
        elif time.monotonic() >= next_heartbeat:
            yield Heartbeat(epoch)
            next_heartbeat = time.monotonic() + heartbeat_s
        if caught_up:
            await feed.wait(epoch, max(0.0, next_heartbeat - time.monotonic()))


def make_token(registry_id: str, scope: Scope, epoch: int) -> str:
    """Return the token to go on with after an epoch; it is good for this database and this scope only."""
    return f"{registry_id}-{_digest(scope)}-{epoch:x}"


def parse_token(token: str, registry_id: str, scope: Scope) -> int:
    """Return the epoch of a token; WatchTokenExpired for one of another database, InvalidRequest for none of ours."""
    parts = token.split("-")
    try:
        found_id, digest, epoch = parts[0], parts[1], int(parts[2], 16)
    except (IndexError, ValueError):
        found_id, digest, epoch = "", "", -1
    if len(parts) != _TOKEN_PARTS or epoch < 0:
        raise InvalidRequest([Violation("resume_token", f"want one of an earlier answer, got {echo(token)}")])
    if found_id != registry_id:
        raise WatchTokenExpired
    if digest != _digest(scope):
        raise InvalidRequest([Violation("resume_token", "want the selector that the token was given for")])
    return epoch


def _digest(scope: Scope) -> str:
    text = f"environment/{scope.environment}" if scope.environment else f"pool/{scope.pool}"
    return hashlib.sha256(text.encode()).hexdigest()[:_SCOPE_DIGITS]
