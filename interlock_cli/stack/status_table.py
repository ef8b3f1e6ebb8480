"""The status of a stack as a table."""

from collections.abc import Sequence
from typing import Final

from interlock_cli.output import duration, print_table
from interlock_cli.stack.supervisor import ServiceStatus

_COLUMNS: Final = ("service", "state", "pid", "uptime", "restarts", "address")


def print_status(services: Sequence[ServiceStatus]) -> None:
    """Print one row per service."""
    print_table(_COLUMNS, [_row(service) for service in services])


def _row(service: ServiceStatus) -> tuple[str, ...]:
    return (
        service.name,
        service.state,
        str(service.pid or "-"),
        duration(service.uptime_s),
        str(service.restart_count),
        service.address,
    )
