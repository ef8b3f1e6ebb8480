"""Commands about the log of changes."""

import typer

from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, say
from interlock_cli.wire_json import to_json

app = typer.Typer(help="The registry's log of changes.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """The registry's log of changes."""


@app.command()
def verify(target: Target = "", as_json: AsJson = False) -> None:
    """Recompute the chain of the log; exit code 1 when it is broken."""
    answer = call(target, lambda client: client.audit.verify())
    if as_json:
        print_json(to_json(answer))
    elif answer.intact:
        say(f"intact: {answer.entry_count} entries, head {answer.head_hash or 'none'}")
    if not answer.intact:
        raise CommandFailed(f"the log is broken at entry {answer.first_broken_sequence} of {answer.entry_count}")
