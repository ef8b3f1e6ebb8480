"""The `interlock` command."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

import typer

from interlock_cli.commands import (
    alerts,
    audit,
    demo,
    features,
    models,
    monitoring,
    policy,
    predict,
    prediction_log,
    routes,
    settings,
    stack,
)
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_failure

app = typer.Typer(
    name="interlock",
    help="Serve models on this machine, and talk to any Interlock through its edge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_COMMANDS: Final[Mapping[str, Sequence[Callable[..., None]]]] = {
    "This machine": (
        stack.up,
        demo.demo,
        stack.status,
        stack.restart,
        stack.stop,
        stack.down,
        stack.logs,
        stack.doctor,
        settings.settings,
    ),
    "Models": (predict.predict, models.models, models.versions, models.register),
    "Traffic": (routes.deploy, routes.deployments, routes.batching, routes.route),
    "Monitoring": (
        monitoring.drift,
        monitoring.data_quality,
        monitoring.quality,
        monitoring.fairness,
        monitoring.report,
    ),
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(features.app, name="features", rich_help_panel="Models")
app.add_typer(prediction_log.app, name="log", rich_help_panel="Monitoring")
app.add_typer(alerts.app, name="alerts", rich_help_panel="Monitoring")
app.add_typer(policy.app, name="policy", rich_help_panel="Monitoring")
app.add_typer(audit.app, name="audit", rich_help_panel="Traffic")


def main() -> NoReturn:
    """Run the command that the arguments name; a failure is one readable line and an exit code."""
    try:
        app()
    except CommandFailed as error:
        print_failure(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader, such as `head`, has had enough.
        sys.stderr.close()
    sys.exit(0)
