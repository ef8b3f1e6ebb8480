"""Health by name, and the `grpc.health.v1` service over it.

Names are "" for the whole server, full proto service names, and `model/<model>/<version>`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

from grpc_health.v1 import health_pb2

from services.common.call import Binding, Call
from services.common.errors import NotFound, echo

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
WHOLE_SERVER: Final = ""

_Status = health_pb2.HealthCheckResponse


class HealthBoard:
    """What this process says about itself; not ready is NOT_SERVING, never a lie."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._draining = False

    @property
    def serving(self) -> Mapping[str, bool]:
        """Every name on the board and whether it serves."""
        return self._serving

    @property
    def ready(self) -> bool:
        """Whether the whole server serves."""
        return self._serving.get(WHOLE_SERVER, False)

    @property
    def draining(self) -> bool:
        """Whether the process is on its way out."""
        return self._draining

    def set(self, name: str, serving: bool) -> None:
        """Say whether `name` serves; once draining nothing serves again."""
        self._serving[name] = serving and not self._draining
        self._notify()

    def open(self, names: Iterable[str]) -> None:
        """Let the whole server and `names` serve, except those on which a service has already spoken itself."""
        for name in (WHOLE_SERVER, *names):
            self._serving.setdefault(name, not self._draining)
        self._notify()

    def remove(self, name: str) -> None:
        """Take a name off the board, for a model version that is unloaded; its watchers see SERVICE_UNKNOWN."""
        self._serving.pop(name, None)
        self._notify()

    def drain(self) -> None:
        """Set every name to NOT_SERVING, for good."""
        self._draining = True
        self._serving = dict.fromkeys(self._serving, False)
        self._notify()

    def changed(self) -> asyncio.Event:
        """Return the event that the next change sets; take it before reading the board."""
        return self._changed

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HealthServicer:
    """Answers `grpc.health.v1.Health` from a board."""

    def __init__(self, board: HealthBoard) -> None:
        self._board = board

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """Return the status of one name."""
        serving = self._board.serving.get(request.service)
        if serving is None:
            raise NotFound(
                f"no health is kept under the name {echo(request.service)}",
                reason="HEALTH_NAME_NOT_FOUND",
                metadata={"name": request.service},
            )
        return _Status(status=_wire(serving))

    async def List(self, request: health_pb2.HealthListRequest, call: Call) -> health_pb2.HealthListResponse:
        """Return the status of every name."""
        statuses = {name: _Status(status=_wire(serving)) for name, serving in self._board.serving.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status of one name now and on every change, until the process drains."""
        last = None
        while True:
            # All three before the first await: what changes while a status is being sent must be seen next time round.
            changed, draining = self._board.changed(), self._board.draining
            status = _wire(self._board.serving.get(request.service))
            if status != last:
                yield _Status(status=status)
                last = status
            if draining:
                # An open watch would hold the server's stop for its whole grace. Ended well, not with an error: that
                # could overtake the last status on its way.
                return
            await changed.wait()


def health_binding(board: HealthBoard) -> Binding:
    """Return the binding of the standard health service to `board`."""
    return Binding(HEALTH_SERVICE, HealthServicer(board))


def _wire(serving: bool | None) -> health_pb2.HealthCheckResponse.ServingStatus:
    if serving is None:
        return _Status.SERVICE_UNKNOWN
    return _Status.SERVING if serving else _Status.NOT_SERVING
