"""The command that asks a model."""

import json
from datetime import datetime
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
    entities: Annotated[str, typer.Option(help="Keys by entity as JSON, for features that are fetched.")] = "{}",
    user_id: Annotated[str, typer.Option(help="The same user meets the same variant.")] = "",
    version: Annotated[str, typer.Option(help="Pins a deployed version.")] = "",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Show the probability of each label.")] = False,
    as_of: Annotated[
        str, typer.Option(help="Time that the row is taken to be asked at, RFC 3339 with its zone. Without it: now.")
    ] = "",
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Predict one row."""
    keys, as_of_time = read_entities(entities), read_time(as_of)
    values = read_features(typer.get_text_stream("stdin").read() if features == "-" else features)
    answer = call(
        target,
        lambda client: client.predict(
            model,
            values,
            entities=keys,
            user_id=user_id,
            version=version,
            include_probabilities=probabilities,
            as_of_time=as_of_time,
        ),
    )
    shown = prediction_to_json(answer)
    if as_json:
        print_json(shown)
        return
    width = max(map(len, shown))
    for field, value in shown.items():
        say(f"{field:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")


def read_entities(text: str) -> dict[str, str]:
    """Return the keys of a JSON object; raises CommandFailed that shows where it is broken."""
    keys = _read_object(text, "--entities")
    for name, key in keys.items():
        if not isinstance(key, str):
            raise CommandFailed(f"--entities: {name}: want a text, got {json.dumps(key)}")
    return keys


def read_time(text: str) -> datetime | None:
    """Return a time with its zone, or None for no text; raises CommandFailed."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise CommandFailed(f"--as-of: want a time such as 2026-03-01T08:30:00Z, got {text!r}") from None
    if time.tzinfo is None:
        raise CommandFailed(f"--as-of: want a time with its zone, such as 2026-03-01T08:30:00Z, got {text!r}")
    return time


def read_features(text: str) -> dict[str, Value]:
    """Return the features of a JSON object; raises CommandFailed that shows where it is broken."""
    values = _read_object(text, "--features")
    for name, value in values.items():
        if isinstance(value, dict):
            raise CommandFailed(f"--features: {name}: want a number, text, truth value, list or null, got an object")
    return values


def _read_object(text: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise CommandFailed(f"{option}: want a JSON object, got something else: {error}") from None
    if not isinstance(found, dict):
        raise CommandFailed(f"{option}: want a JSON object, got {type(found).__name__}")
    return found


def prediction_to_json(answer: prediction_pb2.Prediction) -> dict[str, Any]:
    """Return a prediction under its contract's field names, with a plain value for the prediction itself."""
    return to_json(answer) | {"prediction": value_from_proto(answer.prediction)}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
