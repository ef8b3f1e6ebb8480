"""The command that fills a stack with something to see."""

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from interlock_cli.commands.running import Target, settings, state_folder
from interlock_cli.errors import CommandFailed
from interlock_cli.stack.plan import edge_address


def demo(
    target: Target = "",
    flights: Annotated[int, typer.Option(min=1, max=50_000, help="Later flights to send through the edge.")] = 4_000,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests in flight.")] = 4,
) -> None:
    """Train two versions of a flight-delay model, deploy them, split traffic, and measure them on later flights."""
    try:
        # The demo's packages (pandas, scikit-learn) are an extra, and importing them takes a second.
        from interlock_cli.demo.failure import DemoFailed  # noqa: PLC0415
        from interlock_cli.demo.run import DemoOptions, run_demo  # noqa: PLC0415
    except ImportError as error:
        hint = ["pip install -c constraints.txt -e '.[local]' installs it"]
        raise CommandFailed(f"the demo needs the package {error.name}", hint) from None
    options = DemoOptions(state_folder().path, target or edge_address(settings()), flights, concurrency)
    try:
        asyncio.run(run_demo(options, Console()))
    except DemoFailed as error:
        raise CommandFailed(str(error)) from None
