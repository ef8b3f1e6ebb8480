"""The command that asks a model."""

import json
from typing import Annotated, Any

import typer
from interlock.router.v1 import prediction_pb2

from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, say
from interlock_cli.wire_json import to_json
from interlock_sdk.values import Value, value_from_proto


def predict(
    model: Annotated[str, typer.Argument(help="Id of the model.")],
    *,
    features: Annotated[str, typer.Option(help='Features as JSON: \'{"carrier":"B6"}\'. "-" reads standard input.')],
    user_id: Annotated[str, typer.Option(help="The same user meets the same variant.")] = "",
    version: Annotated[str, typer.Option(help="Pins a deployed version.")] = "",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Show the probability of each label.")] = False,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Predict one row."""
    values = read_features(typer.get_text_stream("stdin").read() if features == "-" else features)
    answer = call(
        target,
        lambda client: client.predict(
            model, values, user_id=user_id, version=version, include_probabilities=probabilities
        ),
    )
    shown = prediction_to_json(answer)
    if as_json:
        print_json(shown)
        return
    width = max(map(len, shown))
    for field, value in shown.items():
        say(f"{field:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")


def read_features(text: str) -> dict[str, Value]:
    """Return the features of a JSON object; raises CommandFailed that shows where it is broken."""
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise CommandFailed(f"--features: want a JSON object, got something else: {error}") from None
    if not isinstance(values, dict):
        raise CommandFailed(f"--features: want a JSON object, got {type(values).__name__}")
    for name, value in values.items():
        if isinstance(value, dict):
            raise CommandFailed(f"--features: {name}: want a number, text, truth value, list or null, got an object")
    return values


def prediction_to_json(answer: prediction_pb2.Prediction) -> dict[str, Any]:
    """Return a prediction under its contract's field names, with a plain value for the prediction itself."""
    return to_json(answer) | {"prediction": value_from_proto(answer.prediction)}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
