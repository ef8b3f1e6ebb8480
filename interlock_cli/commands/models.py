"""Commands about models and their versions."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from interlock.registry.v1 import model_pb2, model_version_pb2
from interlock.types.v1 import tensor_pb2

from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, print_table, say
from interlock_cli.wire_json import to_json
from interlock_sdk.client import Client


def models(target: Target = "", as_json: AsJson = False) -> None:
    """List the models of the registry."""

    async def work(client: Client) -> list[model_pb2.Model]:
        return [model async for model in client.models.list()]

    found = call(target, work)
    if as_json:
        print_json([to_json(model) for model in found])
        return
    rows = [(last_of(m.name), m.owner, when(m.create_time), m.description) for m in found]
    print_table(("model", "owner", "created", "description"), rows, empty="no model is registered")


def versions(
    model: Annotated[str, typer.Argument(help="Id of the model.")], target: Target = "", as_json: AsJson = False
) -> None:
    """List the versions of a model, newest first."""

    async def work(client: Client) -> tuple[model_pb2.Model, list[model_version_pb2.ModelVersion]]:
        return await client.models.get(model), [version async for version in client.models.versions(model)]

    owner, found = call(target, work)
    if as_json:
        print_json([to_json(version) for version in found])
        return
    aliases = _aliases_by_version(owner)
    rows = [
        (
            last_of(version.name),
            version.semantic_version,
            ", ".join(aliases.get(last_of(version.name), ())),
            model_version_pb2.Runtime.Name(version.runtime).removeprefix("RUNTIME_").lower(),
            when(version.create_time),
            version.description,
        )
        for version in found
    ]
    columns = ("version", "semantic", "aliases", "runtime", "created", "description")
    print_table(columns, rows, empty=f"{model} has no version")


def register(
    model: Annotated[str, typer.Argument(help="Id of the model; it is created when it is new.")],
    file: Annotated[Path, typer.Option(help="The ONNX file.", exists=True, dir_okay=False)],
    version: Annotated[
        Path | None,
        typer.Option(
            help="JSON of an interlock.registry.v1.ModelVersion: signature, golden_rows, baseline, description. "
            "Without it the signature is read from the file, and the model is served by the Open Inference Protocol.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    target: Target = "",
) -> None:
    """Upload a model file and register it as a new version."""
    if file.stat().st_size == 0:
        raise CommandFailed(f"{file.name}: want at least 1 byte, got an empty file")
    described = read_version(version.read_text("utf-8") if version else "{}", file)

    async def work(client: Client) -> model_version_pb2.ModelVersion:
        artifact = await client.artifacts.upload(file)
        del described.files[:]
        described.files.add(path="model.onnx", digest=last_of(artifact.name))
        await client.models.ensure(model)
        return await client.models.register(model, described)

    registered = call(target, work)
    say(f"registered {registered.name}")


def read_version(text: str, file: Path) -> model_version_pb2.ModelVersion:
    """Return the version that JSON describes; tensors that it does not name are read from the file."""
    try:
        version = ParseDict(_json_object(text), model_version_pb2.ModelVersion())
    except (ParseError, ValueError) as error:
        raise CommandFailed(f"--version: want JSON of a ModelVersion: {error}") from None
    version.runtime = version.runtime or model_version_pb2.RUNTIME_ONNX
    if not version.signature.inputs:
        inputs, outputs = _tensors(file)
        version.signature.inputs.extend(inputs)
        version.signature.outputs.extend(outputs)
    return version


def last_of(name: str) -> str:
    """Return the last id of a resource name."""
    return name.rpartition("/")[2]


def when(time: Timestamp) -> str:
    """Return a time as people read it, in UTC."""
    return datetime.fromtimestamp(time.seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _aliases_by_version(model: model_pb2.Model) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for alias, version in sorted(model.aliases.items()):
        found.setdefault(last_of(version), []).append(alias)
    return found


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}")  # noqa: TRY004 - what the user wrote is wrong, not our call
    return value


def _tensors(file: Path) -> tuple[list[tensor_pb2.TensorSpec], list[tensor_pb2.TensorSpec]]:
    try:
        # onnx takes a second to import, and only a file without a description needs it.
        from interlock_sdk.onnx_signature import onnx_tensor_specs  # noqa: PLC0415
    except ImportError:
        raise CommandFailed("reading a signature from the file needs the package onnx; or give --version") from None
    try:
        return onnx_tensor_specs(file.read_bytes())
    except ValueError as error:
        raise CommandFailed(f"{file.name} cannot be described: {error}") from None
    except DecodeError:
        raise CommandFailed(f"{file.name}: want an ONNX model, got something else") from None
