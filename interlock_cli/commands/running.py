"""What every command shares: settings, a client, and failures as one line instead of a traceback."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer

from interlock_cli.errors import CommandFailed
from interlock_cli.settings import StackSettings
from interlock_cli.stack.plan import edge_address
from interlock_cli.stack.state_folder import StateFolder
from interlock_sdk.client import Client, connect
from interlock_sdk.errors import CallError, DeploymentFailed, DeploymentNotReady
from services.common.settings import InvalidSettings, read_settings

_T = TypeVar("_T")

Target = Annotated[
    str,
    typer.Option("--target", help="host:port of the edge. Default: the stack of this machine.", metavar="HOST:PORT"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings() -> StackSettings:
    """Return the settings of this machine's stack; raises CommandFailed."""
    try:
        return read_settings(StackSettings)
    except InvalidSettings as error:
        raise CommandFailed(str(error), ["change the variable, or unset it for its default"]) from None


def state_folder() -> StateFolder:
    """Return the state folder that the settings name."""
    return StateFolder.at(settings().state_dir)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run one command's work to its end."""
    return asyncio.run(work)


def call(target: str, work: Callable[[Client], Awaitable[_T]]) -> _T:
    """Do `work` with a client of the edge; raises CommandFailed with what the server said."""

    async def connected() -> _T:
        async with connect(target or edge_address(settings())) as client:
            return await work(client)

    try:
        return run(connected())
    except CallError as error:
        raise failure_of_call(error) from None
    except (DeploymentFailed, DeploymentNotReady) as error:
        raise CommandFailed(str(error)) from None


def failure_of_call(error: CallError) -> CommandFailed:
    """Return a refused call as a command's failure: the message, then each field that is wrong."""
    hints = [f"{violation.field}: {violation.description}" for violation in error.violations]
    if error.retry_after_s is not None:
        hints.append(f"try again in {error.retry_after_s:g} s")
    if not error.reason and error.code.name == "UNAVAILABLE":
        hints.append("is the stack up? `interlock up` starts it, `interlock status` shows it")
    return CommandFailed(f"{error.code.name}: {error.message}", hints)
