"""Deployments: asked for, loaded by replicas, taken away."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from interlock.registry.v1 import control_service_pb2 as control_pb
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.registry.v1.deployment_pb2 import (
    DEPLOYMENT_STATE_FAILED,
    DEPLOYMENT_STATE_LOADING,
    DEPLOYMENT_STATE_PENDING,
    DEPLOYMENT_STATE_READY,
    DEVICE_CLASS_CPU,
    DEVICE_CLASS_GPU,
    MODEL_PLACEMENT_INLINE,
    NON_FINITE_POLICY_REFUSE,
    BatchingPolicy,
    Deployment,
)

from tests.fakes.registry_service import Registry, new_id, refused, seconds, weights

SERVICE = "interlock.registry.v1.RegistryService"
CONTROL = "interlock.registry.v1.ControlService"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def fraud(registry: Registry) -> Registry:
    await registry.create_model("fraud")
    await registry.create_version(semantic_version="1.0.0")
    await registry.create_version()
    return registry


@pytest.mark.rpc(f"{SERVICE}/DeployModel", "happy")
async def test_a_version_is_deployed_with_the_defaults(fraud: Registry) -> None:
    answer = await fraud.api.DeployModel(pb.DeployModelRequest(model="fraud", version="1.0.0"))
    assert (answer.deployment_id, answer.endpoint) == ("fraud-1-production", "/v1/predict")
    assert answer.status == answer.deployment.state == DEPLOYMENT_STATE_PENDING
    deployment = answer.deployment
    assert deployment.name == "deployments/fraud-1-production"
    assert deployment.model_version == "models/fraud/versions/1"
    assert (deployment.environment, deployment.pool, deployment.replicas) == ("production", "default", 1)
    assert deployment.device_class == DEVICE_CLASS_CPU
    assert deployment.pending_weight_basis_points == 10_000
    assert deployment.creator == "local"
    assert not deployment.HasField("batching")


async def test_a_version_is_deployed_as_wanted(fraud: Registry) -> None:
    await fraud.api.SetModelAlias(pb.SetModelAliasRequest(model="models/fraud", alias="best", version="2"))
    batching = BatchingPolicy(
        max_batch_size=128,
        batch_sizes=[1, 16, 128],
        latency_target=Duration(nanos=20_000_000),
        max_queue_rows=1_000,
        max_queue_bytes=1 << 20,
        ageing=Duration(seconds=1),
        max_batch_time=Duration(seconds=5),
        instances=2,
        memory_limit_bytes=1 << 30,
        length_buckets=[32, 64],
        placement=MODEL_PLACEMENT_INLINE,
        non_finite=NON_FINITE_POLICY_REFUSE,
    )
    deployment = await fraud.deploy(
        "best",
        environment="staging",
        pool="gpu",
        replicas=3,
        device_class=DEVICE_CLASS_GPU,
        traffic_percent=0,
        batching=batching,
    )
    assert deployment.name == "deployments/fraud-2-staging-gpu"
    assert deployment.batching == batching
    assert (deployment.replicas, deployment.device_class) == (3, DEVICE_CLASS_GPU)
    assert not deployment.HasField("pending_weight_basis_points")


@pytest.mark.rpc(f"{SERVICE}/DeployModel", "error")
async def test_a_wrong_order_is_refused_with_every_field(fraud: Registry) -> None:
    wrong = pb.DeployModelRequest(
        model="../fraud",
        version="",
        environment="a b",
        pool="x/y",
        replicas=1_001,
        device_class=77,  # type: ignore[arg-type]
        traffic_percent=100.5,
        batching=BatchingPolicy(
            max_batch_size=9_000,
            max_delay=Duration(seconds=2),
            batch_sizes=[8, 4],
            latency_target=Duration(),
            max_queue_rows=-1,
            ageing=Duration(seconds=61),
            instances=65,
            length_buckets=[0],
        ),
        deployment_id="..",
    )
    with refused(INVALID, "INVALID_FIELD") as seen:
        await fraud.api.DeployModel(wrong)
    assert set(seen[0].violations) == {
        "model",
        "version",
        "environment",
        "pool",
        "replicas",
        "device_class",
        "traffic_percent",
        "batching.max_batch_size",
        "batching.max_delay",
        "batching.batch_sizes",
        "batching.latency_target",
        "batching.max_queue_rows",
        "batching.ageing",
        "batching.instances",
        "batching.length_buckets",
        "deployment_id",
    }


async def test_a_share_has_two_decimals(fraud: Registry) -> None:
    for percent in (-0.01, 100.01, 12.345, float("nan"), float("inf")):
        with refused(INVALID, "INVALID_FIELD") as seen:
            await fraud.deploy(traffic_percent=percent)
        assert set(seen[0].violations) == {"traffic_percent"}


async def test_what_is_not_there_cannot_be_deployed(fraud: Registry) -> None:
    for fields in ({"model": "none"}, {"version": "9"}, {"version": "best"}, {"environment": "mars"}):
        with refused(MISSING, "RESOURCE_NOT_FOUND"):
            await fraud.deploy(**{"version": "1", **fields})


async def test_a_version_is_deployed_once_to_a_place(fraud: Registry) -> None:
    await fraud.deploy("1")
    with refused(WRONG_STATE, "ALREADY_DEPLOYED"):
        await fraud.deploy("1", deployment_id="another")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS"):
        await fraud.deploy("2", deployment_id="FRAUD-1-production")
    await fraud.deploy("1", environment="dev")
    await fraud.deploy("1", pool="other")


async def test_a_repeated_order_deploys_once(fraud: Registry) -> None:
    request = pb.DeployModelRequest(model="fraud", version="1", request_id=new_id())
    assert await fraud.api.DeployModel(request) == await fraud.api.DeployModel(request)


@pytest.mark.rpc(f"{SERVICE}/GetDeployment", "happy")
@pytest.mark.rpc(f"{CONTROL}/ReportReplica", "happy")
async def test_the_state_follows_from_what_replicas_say(fraud: Registry) -> None:
    name = (await fraud.deploy("1")).name
    assert (await fraud.deployment(name)).state == DEPLOYMENT_STATE_PENDING
    await fraud.report(name, state=DEPLOYMENT_STATE_LOADING)
    assert (await fraud.deployment(name)).state == DEPLOYMENT_STATE_LOADING
    await fraud.report(name, state=DEPLOYMENT_STATE_FAILED, replica="r-2")
    failed = await fraud.deployment(name)
    assert (failed.state, failed.state_message) == (DEPLOYMENT_STATE_FAILED, "replica r-2: said so")
    answer = await fraud.report(name, state=DEPLOYMENT_STATE_READY)
    ready = await fraud.deployment(name)
    assert (ready.state, ready.state_message) == (DEPLOYMENT_STATE_READY, "1 of 2 replicas are ready")
    assert {each.replica_id: each.state for each in ready.replica_statuses} == {
        "r-1": DEPLOYMENT_STATE_READY,
        "r-2": DEPLOYMENT_STATE_FAILED,
    }
    assert answer.epoch > 0
    await fraud.report(replica="r-1")
    await fraud.report(replica="r-2", draining=True)
    assert (await fraud.deployment(name)).state == DEPLOYMENT_STATE_PENDING


@pytest.mark.rpc(f"{SERVICE}/GetDeployment", "error")
async def test_an_unknown_deployment_is_not_found(fraud: Registry) -> None:
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await fraud.deployment("deployments/none")
    with refused(INVALID, "INVALID_NAME"):
        await fraud.deployment("deployments/../../etc/passwd")


async def test_a_lease_runs_out_without_anybody_writing(fraud: Registry) -> None:
    name = (await fraud.deploy("1")).name
    await fraud.report(name, lease_duration=seconds(1))
    assert (await fraud.deployment(name)).state == DEPLOYMENT_STATE_READY
    async with asyncio.timeout(5):
        while (await fraud.deployment(name)).state == DEPLOYMENT_STATE_READY:
            await asyncio.sleep(0.05)
    expired = await fraud.deployment(name)
    assert expired.state == DEPLOYMENT_STATE_PENDING
    assert not expired.replica_statuses


async def test_state_is_no_change_of_a_deployment(fraud: Registry) -> None:
    deployment = await fraud.deploy("1", traffic_percent=0)
    before = (await fraud.report(deployment.name, state=DEPLOYMENT_STATE_LOADING)).epoch
    assert (await fraud.report(deployment.name)).epoch == before
    after = await fraud.deployment(deployment.name)
    assert (after.etag, after.update_time) == (deployment.etag, deployment.update_time)


@pytest.mark.rpc(f"{CONTROL}/ReportReplica", "error")
async def test_a_wrong_report_is_refused_with_every_field(fraud: Registry) -> None:
    name = (await fraud.deploy("1")).name
    request = control_pb.ReportReplicaRequest(replica_id="a/b", pool="", lease_duration=seconds(301))
    request.reports.add(deployment=name, state=DEPLOYMENT_STATE_PENDING, message="m" * 2_001)
    request.reports.add(deployment=name, state=DEPLOYMENT_STATE_READY)
    with refused(INVALID, "INVALID_FIELD") as seen:
        await fraud.control.ReportReplica(request)
    assert set(seen[0].violations) == {
        "replica_id",
        "pool",
        "lease_duration",
        "reports[0].state",
        "reports[0].message",
        "reports[1].deployment",
    }
    with refused(INVALID, "INVALID_FIELD"):
        await fraud.report(name, pool="other")
    assert (await fraud.deployment(name)).state == DEPLOYMENT_STATE_PENDING


async def test_a_report_on_a_deployment_that_is_gone_counts_for_the_others(fraud: Registry) -> None:
    name = (await fraud.deploy("1")).name
    await fraud.report("deployments/gone", name)
    assert (await fraud.deployment(name)).state == DEPLOYMENT_STATE_READY


async def test_a_message_may_hold_anything(fraud: Registry) -> None:
    name = (await fraud.deploy("1")).name
    request = control_pb.ReportReplicaRequest(replica_id="r", pool="default")
    request.reports.add(deployment=name, state=DEPLOYMENT_STATE_FAILED, message="no\x00such\nop ä")
    await fraud.control.ReportReplica(request)
    assert (await fraud.deployment(name)).state_message == "replica r: nosuch\nop ä"


@pytest.mark.rpc(f"{SERVICE}/ListDeployments", "happy")
async def test_deployments_are_listed_by_name_and_filter(fraud: Registry) -> None:
    await fraud.create_model("other")
    await fraud.create_version("other")
    for fields in (
        {"version": "1"},
        {"version": "2"},
        {"version": "1", "environment": "dev"},
        {"version": "1", "pool": "gpu"},
        {"version": "1", "model": "other"},
    ):
        await fraud.deploy(**fields)
    await fraud.report("deployments/fraud-1-production")

    async def listed(**filters: str) -> dict[str, int]:
        answer = await fraud.api.ListDeployments(pb.ListDeploymentsRequest(**filters))  # type: ignore[arg-type]
        return {each.name.removeprefix("deployments/"): each.state for each in answer.deployments}

    everything = await listed()
    assert list(everything) == sorted(everything)
    assert len(everything) == 5
    assert everything["fraud-1-production"] == DEPLOYMENT_STATE_READY
    assert set(await listed(model="fraud", environment="production", pool="default")) == {
        "fraud-1-production",
        "fraud-2-production",
    }
    assert set(await listed(pool="gpu")) == {"fraud-1-production-gpu"}
    assert await listed(model="none") == {}


@pytest.mark.rpc(f"{SERVICE}/ListDeployments", "error")
async def test_a_filter_that_can_match_nothing_is_refused(fraud: Registry) -> None:
    with refused(INVALID, "INVALID_FIELD") as seen:
        await fraud.api.ListDeployments(pb.ListDeploymentsRequest(model="models/fraud", pool="a b"))
    assert set(seen[0].violations) == {"model", "pool"}


def update(name: str, *paths: str, etag: str = "", fixed: dict[str, Any] | None = None, **policy: Any) -> Any:
    deployment = Deployment(name=name, batching=BatchingPolicy(**policy), etag=etag, **(fixed or {}))
    return pb.UpdateDeploymentRequest(deployment=deployment, update_mask=FieldMask(paths=paths))


@pytest.mark.rpc(f"{SERVICE}/UpdateDeployment", "happy")
async def test_a_policy_changes_field_by_field_or_whole_and_watchers_hear_of_it(fraud: Registry) -> None:
    made = await fraud.deploy("1", batching=BatchingPolicy(max_batch_size=16, max_delay=Duration(nanos=9)))
    await fraud.report(made.name)
    stream = fraud.control.Watch(control_pb.WatchRequest(pool="default"))
    await stream.read()

    async def changed(request: Any) -> BatchingPolicy:
        answer = await fraud.api.UpdateDeployment(request)
        assert answer.deployment == await fraud.deployment(made.name)
        message: Any = await stream.read()
        while message.epoch < answer.epoch:
            assert not message.delta.upserted
            message = await stream.read()
        assert [each.deployment.batching for each in message.delta.upserted] == [answer.deployment.batching]
        policy: BatchingPolicy = answer.deployment.batching
        return policy

    async with asyncio.timeout(20):
        named = await changed(update(made.name, "batching.max_delay", "batching.max_queue_rows", max_queue_rows=7))
        assert named == BatchingPolicy(max_batch_size=16, max_queue_rows=7), "what is named and not set has its default"
        unmasked = await changed(update(made.name, max_batch_size=8, latency_target=Duration(seconds=1)))
        assert unmasked == BatchingPolicy(max_batch_size=8, max_queue_rows=7, latency_target=Duration(seconds=1))
        whole = await changed(update(made.name, "batching", instances=2))
        assert whole == BatchingPolicy(instances=2)
    before = await fraud.deployment(made.name)
    assert before.state == DEPLOYMENT_STATE_READY
    assert before.update_time != made.update_time
    again = update(made.name, "*", etag=before.etag, fixed={"pool": "default", "replicas": 1}, instances=2)
    again.request_id = new_id()
    for _ in range(2):
        assert (await fraud.api.UpdateDeployment(again)).deployment == before, "nothing changed, so the etag stays"
    audit = await fraud.api.ListAuditEntries(pb.ListAuditEntriesRequest(resource=made.name))
    assert [entry.action for entry in audit.audit_entries].count("UpdateDeployment") == 3


@pytest.mark.rpc(f"{SERVICE}/UpdateDeployment", "error")
async def test_a_change_that_cannot_be_is_refused_with_every_field(fraud: Registry) -> None:
    made = await fraud.deploy("1", batching=BatchingPolicy(max_batch_size=8, batch_sizes=[4, 8], max_delay=seconds(1)))
    fixed = {"pool": "other", "replicas": 2, "device_class": DEVICE_CLASS_GPU, "environment": "dev"}
    wrong: list[tuple[Any, set[str]]] = [
        (update(made.name, "batching.max_batch_size", max_batch_size=16), {"batching.max_batch_size"}),
        (update(made.name, latency_target=seconds(61)), {"batching.latency_target", "batching.max_delay"}),
        (update(made.name, instances=-1, fixed=fixed), {"batching.instances", *fixed}),
        (update(made.name, fixed={"device_class": 77}), {"device_class"}),
    ]
    for request, fields in wrong:
        with refused(INVALID, "INVALID_FIELD") as seen:
            await fraud.api.UpdateDeployment(request)
        assert set(seen[0].violations) == {f"deployment.{field}" for field in fields}
    with refused(INVALID, "INVALID_FIELD") as seen:
        await fraud.api.UpdateDeployment(update(made.name, "batching.colour", "pools"))
    assert set(seen[0].violations) == {"update_mask"}
    with refused(INVALID, "INVALID_NAME"):
        await fraud.api.UpdateDeployment(update("fraud-1-production"))
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await fraud.api.UpdateDeployment(update("deployments/none", max_batch_size=8))
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await fraud.api.UpdateDeployment(update(made.name, etag="0", instances=2))
    assert await fraud.deployment(made.name) == made


@pytest.mark.rpc(f"{SERVICE}/DeleteDeployment", "happy")
@pytest.mark.rpc(f"{SERVICE}/DeleteDeployment", "error")
async def test_a_deployment_goes_when_it_has_no_traffic(fraud: Registry) -> None:
    first, second = (await fraud.deploy("1")).name, (await fraud.deploy("2", traffic_percent=10)).name
    await fraud.report(first, second)
    with refused(WRONG_STATE, "DEPLOYMENT_IN_USE"):
        await fraud.api.DeleteDeployment(pb.DeleteDeploymentRequest(name=second))
    route = await fraud.route()
    for variant in route.variants:
        variant.weight_basis_points = 10_000 if variant.deployment == first else 0
    await fraud.set_route(*route.variants)
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await fraud.api.DeleteDeployment(pb.DeleteDeploymentRequest(name=second, etag="0"))
    current = await fraud.deployment(second)
    request = pb.DeleteDeploymentRequest(name=second, etag=current.etag, request_id=new_id())
    await fraud.api.DeleteDeployment(request)
    await fraud.api.DeleteDeployment(request)
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await fraud.deployment(second)
    with refused(MISSING, "RESOURCE_NOT_FOUND"):
        await fraud.api.DeleteDeployment(pb.DeleteDeploymentRequest(name=second))
    assert weights(await fraud.route()) == {"1": 10_000}
    again = await fraud.deploy("2")
    assert (await fraud.deployment(again.name)).state == DEPLOYMENT_STATE_PENDING, "old reports do not count"
