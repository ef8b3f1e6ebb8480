"""Commands about deployments and the traffic between them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict, ParseError
from interlock.registry.v1 import deployment_pb2, route_pb2

from interlock_cli.commands.models import last_of
from interlock_cli.commands.running import AsJson, Target, call
from interlock_cli.errors import CommandFailed
from interlock_cli.output import print_json, print_table, say
from interlock_cli.wire_json import to_json
from interlock_sdk.client import Client
from interlock_sdk.deployments import DEFAULT_ENVIRONMENT, state_word
from services.common.duration_text import DURATION_FORM, format_duration, parse_duration

_WHOLE_BASIS_POINTS: Final = 10_000

Model = Annotated[str, typer.Argument(help="Id of the model.")]
Environment = Annotated[str, typer.Option("--env", help="Environment.")]
PolicyChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A field of BatchingPolicy and its value, such as max_delay=5ms, batch_sizes=1,8,64, placement=shared or "
        "non_finite=refuse; without a value, its default. May be given several times.",
        metavar="FIELD=VALUE",
    ),
]


def deploy(
    model: Model,
    version: Annotated[str, typer.Argument(help="Id, semantic label or alias of the version.")],
    *,
    env: Environment = DEFAULT_ENVIRONMENT,
    traffic: Annotated[
        float | None, typer.Option(min=0, max=100, help="Percent of the traffic once it is ready.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas.")] = 1,
    changes: PolicyChanges = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait until it is ready; 0 does not wait.")] = 60.0,
    target: Target = "",
) -> None:
    """Load a version and, once it is ready, give it traffic."""
    policy = read_batching(changes)[0] if changes else None

    async def work(client: Client) -> deployment_pb2.Deployment:
        made = await client.deployments.create(
            model, version, environment=env, replicas=replicas, traffic_percent=traffic, batching=policy
        )
        say(f"{made.name} is {state_word(made)}")
        if timeout == 0:
            return made
        return await client.deployments.wait_until_ready(made.name, timeout_s=timeout)

    made = call(target, work)
    if timeout:
        say(f"{made.name} is {state_word(made)}")


def deployments(
    model: Annotated[str, typer.Argument(help="Id of a model; without it, all.")] = "",
    env: Annotated[str, typer.Option("--env", help="Environment; without it, all.")] = "",
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """List deployments and what has become of them."""

    async def work(client: Client) -> list[deployment_pb2.Deployment]:
        return [found async for found in client.deployments.list(model, env)]

    found = call(target, work)
    if as_json:
        print_json([to_json(deployment) for deployment in found])
        return
    rows = [
        (last_of(d.name), d.model_version, d.environment, d.pool, str(d.replicas), state_word(d), d.state_message)
        for d in found
    ]
    columns = ("deployment", "version", "environment", "pool", "replicas", "state", "message")
    print_table(columns, rows, empty="nothing is deployed")


def batching(
    deployment: Annotated[str, typer.Argument(help="Id of the deployment.")],
    changes: PolicyChanges = None,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Show how a deployment's requests are judged and joined into batches, or change it while it serves."""
    name = f"deployments/{last_of(deployment)}"
    policy, fields = read_batching(changes or [])

    async def work(client: Client) -> deployment_pb2.Deployment:
        if not fields:
            return await client.deployments.get(name)
        return (await client.deployments.set_batching(name, policy, fields)).deployment

    found = call(target, work)
    if as_json:
        print_json(to_json(found.batching))
        return
    shown = [(field.name, _shown(field, value)) for field, value in found.batching.ListFields()]
    print_table(("field", "value"), shown, empty=f"{name} has the defaults")


def read_batching(changes: Sequence[str]) -> tuple[deployment_pb2.BatchingPolicy, list[str]]:
    """Return a policy with the changed fields, and their names; raises CommandFailed."""
    known = deployment_pb2.BatchingPolicy.DESCRIPTOR.fields_by_name
    values: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise CommandFailed(f"--set: no field of BatchingPolicy is {name!r}", [f"there are: {', '.join(known)}"])
        values[name] = _batching_value(known[name], text)
    try:
        policy = ParseDict({name: value for name, value in values.items() if value}, deployment_pb2.BatchingPolicy())
    except ParseError as error:
        raise CommandFailed(f"--set: want fields of BatchingPolicy: {error}") from None
    return policy, list(values)


def _batching_value(field: FieldDescriptor, text: str) -> Any:
    """Return a value as the contract's JSON has it; an empty one is the default."""
    if field.message_type is not None and text:
        found = parse_duration(text)
        if found is None:
            raise CommandFailed(f"--set: {field.name}: want {DURATION_FORM}, got {text!r}")
        return f"{found.total_seconds():f}s"
    if field.is_repeated:
        return [part.strip() for part in text.split(",") if part.strip()]
    if field.enum_type is not None and text:
        return f"{_prefix(field.enum_type)}{text.upper()}"
    return text


def _shown(field: FieldDescriptor, value: Any) -> str:
    if isinstance(value, Duration):
        return format_duration(value.ToTimedelta())
    if field.enum_type is not None:
        word = field.enum_type.values_by_number.get(value)
        return word.name.removeprefix(_prefix(field.enum_type)).lower() if word else str(value)
    return str(value) if isinstance(value, int) else ", ".join(map(str, value))


def _prefix(enum: EnumDescriptor) -> str:
    """Return what all values of an enum begin with."""
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def route(
    model: Model,
    weights: Annotated[
        str, typer.Option("--set", help="New weights in percent by version or variant: v1=90,v2=10.", metavar="WEIGHTS")
    ] = "",
    env: Environment = DEFAULT_ENVIRONMENT,
    target: Target = "",
    as_json: AsJson = False,
) -> None:
    """Show how a model's traffic is split, or split it anew."""
    wanted = parse_weights(weights) if weights else {}

    async def work(client: Client) -> tuple[route_pb2.Route, list[deployment_pb2.Deployment]]:
        found = await client.routes.get(model, env)
        if found is None:
            raise CommandFailed(
                f"{model} has no traffic in {env}", [f"`interlock deploy {model} VERSION` gives it some"]
            )
        deployed = [deployment async for deployment in client.deployments.list(model, env)]
        if wanted:
            found = (await client.routes.set_variants(found, new_variants(found, deployed, wanted))).route
        return found, deployed

    found, deployed = call(target, work)
    if as_json:
        print_json(to_json(found))
        return
    versions = {deployment.name: deployment.model_version for deployment in deployed}
    rows = [
        (
            variant.name,
            f"{variant.weight_basis_points / 100:g} %",
            versions.get(variant.deployment, "-"),
            variant.deployment,
        )
        for variant in found.variants
    ]
    print_table(("variant", "weight", "version", "deployment"), rows, empty=f"{found.name} has no variants")


def parse_weights(text: str) -> dict[str, int]:
    """Return basis points by variant or version, from `v1=90,v2=10`; raises CommandFailed."""
    weights: dict[str, int] = {}
    for part in text.split(","):
        name, _, percent = part.partition("=")
        if name.strip() in weights:
            raise CommandFailed(f"--set: {name.strip()!r} is named twice")
        weights[name.strip()] = _basis_points(part, percent)
    total = sum(weights.values())
    if total != _WHOLE_BASIS_POINTS:
        raise CommandFailed(f"--set: want weights that add up to 100, got {total / 100:g}")
    return weights


def new_variants(
    route: route_pb2.Route, deployed: Sequence[deployment_pb2.Deployment], weights: Mapping[str, int]
) -> list[route_pb2.Variant]:
    """Return the variants with these weights; a variant keeps its name. Raises CommandFailed for a name that is none."""
    named = {variant.deployment: variant.name for variant in route.variants}
    variants = []
    for wanted, weight in weights.items():
        deployment = _find(wanted, named, deployed)
        name = named.get(deployment.name) or last_of(deployment.model_version)
        variants.append(route_pb2.Variant(name=name, deployment=deployment.name, weight_basis_points=weight))
    return variants


def _find(
    wanted: str, named: Mapping[str, str], deployed: Sequence[deployment_pb2.Deployment]
) -> deployment_pb2.Deployment:
    for deployment in deployed:
        version = last_of(deployment.model_version)
        if wanted in (named.get(deployment.name), last_of(deployment.name), version, f"v{version}"):
            return deployment
    known = [named.get(d.name) or last_of(d.model_version) for d in deployed]
    raise CommandFailed(f"--set: no variant, version or deployment is {wanted!r}", [f"there are: {', '.join(known)}"])


def _basis_points(part: str, percent: str) -> int:
    try:
        value = float(percent)
    except ValueError:
        raise CommandFailed(f"--set: want NAME=PERCENT, got {part!r}") from None
    if not 0 <= value <= 100:
        raise CommandFailed(f"--set: want 0 to 100 percent, got {part!r}")
    return round(value * 100)
