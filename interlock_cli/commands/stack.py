"""Commands about the stack of this machine."""

import asyncio
from typing import Annotated, Any, Final

import typer

from interlock_cli.commands.running import AsJson, run, settings, state_folder
from interlock_cli.doctor.report import print_findings
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, say
from interlock_cli.stack.control import ask
from interlock_cli.stack.log_file import Follower, tail
from interlock_cli.stack.state_folder import StateFolder, lock_holder
from interlock_cli.stack.status_table import print_status
from interlock_cli.stack.supervisor import ServiceStatus

_ASK_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.2

Names = Annotated[list[str], typer.Argument(metavar="SERVICE...", help="Services, as `interlock status` shows them.")]


def up(demo: Annotated[bool, typer.Option("--demo", help="Then run the demo.")] = False) -> None:
    """Start Redis, the services and the edge, and serve until Ctrl-C."""
    from interlock_cli.stack.run import run_stack  # noqa: PLC0415 - other commands need not wait for it

    raise typer.Exit(run_stack(settings(), demo=demo))


def status(as_json: AsJson = False) -> None:
    """Show the services of the running stack."""
    folder = state_folder()
    answer = run(ask(folder.control_socket, {"do": "status"}, timeout_s=_ASK_TIMEOUT_S))
    if as_json:
        print_json(answer)
    else:
        print_status([ServiceStatus(**row) for row in answer["services"]])
        say(f"\nedge {answer['edge']}, state {answer['state_dir']}, supervisor pid {answer['pid']}")
    if any(row["state"] == "failed" for row in answer["services"]):
        raise typer.Exit(1)


def restart(services: Names) -> None:
    """Replace services one after the other, without losing a call: the new process is ready before the old one drains."""
    folder, patience = state_folder(), settings()
    for name in services:
        request = {"do": "restart", "service": name}
        timeout_s = patience.start_timeout_s + patience.stop_timeout_s
        ended = run(ask(folder.control_socket, request, timeout_s=timeout_s))
        say(f"{name} restarted; the old process: {ended}")


def stop(services: Names) -> None:
    """Drain services and leave them stopped; `interlock restart` starts them again."""
    folder, patience = state_folder(), settings()
    for name in services:
        request = {"do": "stop", "service": name}
        ended = run(ask(folder.control_socket, request, timeout_s=patience.stop_timeout_s + _ASK_TIMEOUT_S))
        say(f"{name} stopped ({ended})")


def down() -> None:
    """Drain and stop the running stack, and return when it is gone."""
    folder = state_folder()
    pid = run(_down(folder, settings().stop_timeout_s))
    say(f"the stack (pid {pid}) is down")


def logs(
    service: Annotated[str, typer.Argument(help="A service, or `stack` for the supervisor's own journal.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is added, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Lines to begin with.")] = 50,
) -> None:
    """Show the log of a service."""
    folder = state_folder()
    path = folder.log_of(service)
    known = sorted(found.stem for found in folder.logs.glob("*.log"))
    if service not in known:
        raise CommandFailed(f"there is no log of {service!r}", [f"logs: {', '.join(known) or 'none yet'}"])
    for line in tail(path, lines):
        say(line)
    if follow:
        run(_follow(Follower(path)))


def doctor(as_json: AsJson = False) -> None:
    """Tell what is wrong on this machine, and what to do about it; exit code 1 when something is."""
    from interlock_cli.doctor.examination import examine  # noqa: PLC0415 - as above

    findings = examine(settings())
    if as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        print_findings(findings)
    if any(not finding.good for finding in findings):
        raise typer.Exit(1)


async def _down(folder: StateFolder, timeout_s: float) -> Any:
    answer = await ask(folder.control_socket, {"do": "down"}, timeout_s=_ASK_TIMEOUT_S)
    try:
        async with asyncio.timeout(timeout_s):
            while lock_holder(folder) is not None:  # noqa: ASYNC110 - another process's lock tells nobody when it goes
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise CommandFailed(f"the stack (pid {answer['pid']}) still drains after {timeout_s:g} s") from None
    return answer["pid"]


async def _follow(follower: Follower) -> None:
    while True:
        for line in follower.lines():
            say(line)
        await asyncio.sleep(_POLL_S)
