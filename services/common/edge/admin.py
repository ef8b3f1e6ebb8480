"""Envoy's admin interface over its Unix socket: three questions and two orders."""

import re
from pathlib import Path
from typing import Final

from services.common.unix_http import ask

_TIMEOUT_S: Final = 2.0
_STAT: Final = re.compile(r"^(?P<name>\S+): (?P<value>\d+)$", re.MULTILINE)


class Admin:
    """One running Envoy's admin interface. Every method raises OSError or TimeoutError when Envoy does not answer."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path

    async def is_live(self) -> bool:
        """Return whether Envoy has started and accepts; the Python inside may still be stuck."""
        status, _ = await self._request("GET", "/ready")
        return status == 200

    async def fail_health(self) -> None:
        """Tell load balancers in front to look elsewhere."""
        await self._order("/healthcheck/fail")

    async def drain_listeners(self) -> None:
        """Send GOAWAY on every connection; the listener closes when the drain time is over."""
        await self._order("/drain_listeners?graceful")

    async def active(self) -> tuple[int, int]:
        """Return open connections and calls in flight at the public port."""
        prefix = "http.in.downstream_"
        _, body = await self._request("GET", f"/stats?filter=^{prefix}(cx|rq)_active$")
        stats = {match["name"]: int(match["value"]) for match in _STAT.finditer(body)}
        return stats.get(f"{prefix}cx_active", 0), stats.get(f"{prefix}rq_active", 0)

    async def _order(self, path: str) -> None:
        status, body = await self._request("POST", path)
        if status != 200:
            raise OSError(f"envoy refused {path} with {status}: {body.strip()}")

    async def _request(self, verb: str, path: str) -> tuple[int, str]:
        status, body = await ask(self._socket_path, verb, path, _TIMEOUT_S)
        return status, body.decode("utf-8", "replace")
