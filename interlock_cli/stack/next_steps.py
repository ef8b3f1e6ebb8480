"""What to try once the stack serves."""

import json
import sys
from pathlib import Path
from typing import Any, Final

from interlock_cli.output import say
from interlock_cli.settings import StackSettings, find_on_path
from interlock_cli.stack.plan import edge_address
from interlock_cli.stack.state_folder import StateFolder

# JetBlue from New York to Los Angeles on a Friday in September, from 17 to 18 h.
DEMO_MODEL: Final = "flight-delay"
DEMO_FEATURES: Final[dict[str, Any]] = {
    "carrier": "B6",
    "origin": "JFK",
    "dest": "LAX",
    "sched_dep_hour": 17,
    "month": 9,
    "weekday": 5,
    "distance": 2475,
}


def print_next_steps(settings: StackSettings, folder: StateFolder, *, demo: bool) -> None:
    """Print the addresses, and commands that work as they stand."""
    address = edge_address(settings)
    say(f"\nREST, gRPC and gRPC-Web  http://{address}")
    say(f"logs                     {folder.logs}")
    say("\ntry:\n")
    for command in _demo_commands(settings, address) if demo else _plain_commands(address):
        say(f"  {command}")
    say("\nCtrl-C drains and stops")


def own_command() -> str:
    """Return how this command is called from the folder that one stands in: by its name when PATH has it."""
    program = Path(sys.argv[0]).absolute()
    if program.name != "interlock":
        return "python -m interlock_cli"
    if find_on_path(program.name) == program:
        return program.name
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)


def _demo_commands(settings: StackSettings, address: str) -> tuple[str, ...]:
    command, target = own_command(), f" --target {address}" if settings.port_offset else ""
    body = {"model": DEMO_MODEL, "features": DEMO_FEATURES, "user_id": "u-42"}
    return (
        f"curl {address}/v1/predict -H 'content-type: application/json' -d '{_compact(body)}'",
        f"{command} predict {DEMO_MODEL} --user-id u-42 --features '{_compact(DEMO_FEATURES)}'{target}",
        f"{command} drift {DEMO_MODEL} --since 24h{target}",
    )


def _plain_commands(address: str) -> tuple[str, ...]:
    return (f"curl -i {address}/health/ready", f"{own_command()} status", f"{own_command()} demo")


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
