"""Watch streams: a snapshot, every change, resume, and what concerns whom."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from interlock.registry.v1 import control_service_pb2 as pb
from interlock.registry.v1 import control_service_pb2_grpc as rpc
from interlock.registry.v1 import registry_service_pb2 as registry_pb
from interlock.registry.v1.baseline_pb2 import Baseline
from interlock.registry.v1.deployment_pb2 import DEPLOYMENT_STATE_LOADING, DEPLOYMENT_STATE_UNSPECIFIED
from interlock.registry.v1.model_pb2 import Model
from interlock.registry.v1.model_version_pb2 import Lineage

from tests.fakes.registry_service import Registry, a_signature, refused, running_registry, variants, weights

WATCH = "interlock.registry.v1.ControlService/Watch"


class Watcher:
    """One stream, and what follows from everything it has said."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.token = ""
        self.epochs: list[int] = []
        self.known: dict[str, Any] = {}

    async def next(self) -> pb.WatchResponse:
        """The next message that is no heartbeat."""
        while True:
            message = await self.any()
            if not message.HasField("heartbeat"):
                return message

    async def any(self) -> pb.WatchResponse:
        async with asyncio.timeout(10):
            message = await self._stream.read()
        assert isinstance(message, pb.WatchResponse), "the stream ended"
        self.token = message.resume_token
        self.epochs.append(message.epoch)
        assert self.epochs == sorted(self.epochs)
        self._apply(message)
        return message

    async def until(self, epoch: int) -> None:
        while not self.epochs or self.epochs[-1] < epoch:
            await self.any()

    def _apply(self, message: pb.WatchResponse) -> None:
        if message.HasField("snapshot"):
            self.known = {}
        for name in message.delta.deleted:
            del self.known[name]
        for each in (*message.snapshot.resources, *message.delta.upserted):
            resource = getattr(each, each.WhichOneof("resource") or "")
            self.known[resource.name] = resource


@asynccontextmanager
async def watching(registry: Registry, token: str = "", **selector: str) -> AsyncIterator[Watcher]:
    selector = selector or {"environment": "production"}
    stream = registry.control.Watch(pb.WatchRequest(resume_token=token, watcher_id="test", **selector))
    try:
        yield Watcher(stream)
    finally:
        stream.cancel()


PRODUCTION = {
    "models/fraud",
    "models/fraud/versions/1",
    "deployments/fraud-1-production",
    "models/fraud/routes/production",
}


@pytest.mark.rpc(WATCH, "happy")
async def test_a_snapshot_and_then_every_change(registry: Registry) -> None:
    async with watching(registry) as router, watching(registry, pool="default") as worker:
        assert (await router.next()).snapshot == pb.WatchSnapshot()
        await worker.next()
        await registry.create_model("fraud")
        await registry.create_version(baseline=Baseline(row_count=1), lineage=Lineage(code_revision="x"))
        deployment = await registry.deploy()
        change = await router.next()
        assert set(router.known) == {"models/fraud", "models/fraud/versions/1", deployment.name}
        assert len(change.delta.upserted) == 3, "version and model come with the first deployment, in one change"
        version = router.known["models/fraud/versions/1"]
        assert version.signature == a_signature()
        assert not version.HasField("baseline")
        assert not version.HasField("lineage")
        await registry.report(deployment.name, state=DEPLOYMENT_STATE_LOADING)
        ready_epoch = (await registry.report(deployment.name)).epoch
        assert (await router.next()).epoch == ready_epoch
        assert set(router.known) == PRODUCTION
        watched = router.known[deployment.name]
        assert (watched.state, list(watched.replica_statuses)) == (DEPLOYMENT_STATE_UNSPECIFIED, [])
        assert not watched.HasField("pending_weight_basis_points")
        assert router.known["models/fraud/routes/production"] == await registry.route()
        await worker.until(ready_epoch)
        assert set(worker.known) == {"models/fraud/versions/1", deployment.name}
    async with watching(registry) as late:
        await late.next()
        assert late.known == router.known


async def test_nobody_hears_of_other_environments_and_pools(registry: Registry) -> None:
    await registry.create_model("fraud")
    await registry.create_version()
    async with watching(registry) as router, watching(registry, pool="default") as worker:
        await router.next()
        await worker.next()
        await registry.deploy(environment="dev", pool="other")
        await registry.deploy(environment="dev")
        await registry.deploy(environment="production", pool="third")
        await router.next()
        await worker.next()
        assert set(router.known) == {"models/fraud", "models/fraud/versions/1", "deployments/fraud-1-production-third"}
        assert set(worker.known) == {"models/fraud/versions/1", "deployments/fraud-1-dev"}


async def test_a_version_goes_with_its_last_deployment(registry: Registry) -> None:
    await registry.create_model("fraud")
    await registry.create_version()
    await registry.deploy(pool="one", traffic_percent=0)
    await registry.deploy(pool="two", traffic_percent=0)
    async with watching(registry) as router:
        await router.next()
        await registry.api.DeleteDeployment(
            registry_pb.DeleteDeploymentRequest(name="deployments/fraud-1-production-one")
        )
        gone = await router.next()
        assert list(gone.delta.deleted) == ["deployments/fraud-1-production-one"]
        assert "models/fraud/versions/1" in router.known
        await registry.api.DeleteDeployment(
            registry_pb.DeleteDeploymentRequest(name="deployments/fraud-1-production-two")
        )
        await router.next()
        assert router.known == {}


async def test_routers_hear_of_aliases(registry: Registry) -> None:
    await registry.serve_versions(None)
    async with watching(registry) as router:
        await router.next()
        assert router.known["models/fraud"] == Model(name="models/fraud")
        alias = {"model": "models/fraud", "alias": "champion"}
        await registry.api.SetModelAlias(registry_pb.SetModelAliasRequest(**alias, version="1"))
        await router.next()
        assert router.known["models/fraud"].aliases == {"champion": "1"}
        await registry.api.DeleteModelAlias(registry_pb.DeleteModelAliasRequest(**alias))
        await router.next()
        assert router.known["models/fraud"].aliases == {}
    async with watching(registry, pool="default") as worker:
        await worker.next()
        assert "models/fraud" not in worker.known


async def test_a_watcher_goes_on_where_it_stopped(registry: Registry) -> None:
    await registry.serve_versions(None, 0)
    async with watching(registry) as first:
        await first.next()
        known = dict(first.known)
    for weight in (100, 200, 300):
        await registry.set_route(*variants(fraud_1_production=10_000 - weight, fraud_2_production=weight))
    async with watching(registry, first.token) as second:
        second.known = known
        seen = [await second.next() for _ in range(3)]
        assert all(message.HasField("delta") for message in seen)
        assert weights(second.known["models/fraud/routes/production"]) == {"1": 9_700, "2": 300}
        assert len({message.epoch for message in seen}) == 3
    async with watching(registry, second.token) as third:
        assert (await third.any()).HasField("heartbeat"), "a resumed stream answers at once"


async def test_heartbeats_come_when_nothing_changes(database_url: str, tmp_path: Path) -> None:
    async with (
        running_registry(tmp_path, database_url, watch_heartbeat_s=0.1) as registry,
        watching(registry) as router,
    ):
        await router.next()
        await registry.create_model("of-no-concern")
        heartbeats = [await router.any() for _ in range(3)]
        assert all(message.HasField("heartbeat") for message in heartbeats)
        assert heartbeats[-1].epoch > router.epochs[0], "a token keeps up with what concerns others"


@pytest.mark.rpc(WATCH, "error")
async def test_a_watch_is_refused(registry: Registry) -> None:
    async def fails(**fields: str) -> None:
        await registry.control.Watch(pb.WatchRequest(**fields)).read()

    invalid = grpc.StatusCode.INVALID_ARGUMENT
    with refused(invalid, "INVALID_FIELD"):
        await fails()
    with refused(invalid, "INVALID_NAME"):
        await fails(environment="a/b")
    with refused(invalid, "INVALID_FIELD"):
        await fails(pool="default", watcher_id="w" * 129)
    with refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"):
        await fails(environment="mars")
    with refused(invalid, "INVALID_FIELD"):
        await fails(pool="default", resume_token="not a token")
    async with watching(registry) as router:
        await router.next()
    with refused(invalid, "INVALID_FIELD"):
        await fails(pool="default", resume_token=router.token)


async def test_a_token_that_is_too_old_or_foreign_asks_for_a_snapshot(database_url: str, tmp_path: Path) -> None:
    expired = grpc.StatusCode.OUT_OF_RANGE
    async with running_registry(tmp_path, database_url) as registry, watching(registry) as router:
        await registry.serve_versions(None)
        await router.next()
        old = router.token
        await router.until((await registry.set_route(*variants(fraud_1_production=10_000))).epoch)
    impatient = {"change_retention_s": 0.05, "housekeeping_interval_s": 0.05}
    async with running_registry(tmp_path, database_url, **impatient) as registry:
        async with asyncio.timeout(10):
            while True:
                async with watching(registry, old) as again:
                    try:
                        await again.any()
                    except grpc.aio.AioRpcError:
                        break
                await asyncio.sleep(0.05)
        for token in (old, f"{'0' * 32}-{old.split('-')[1]}-1", f"{old.rsplit('-', 1)[0]}-ffffff"):
            with refused(expired, "WATCH_TOKEN_EXPIRED"):
                async with watching(registry, token) as again:
                    await again.any()
        async with watching(registry) as fresh:
            assert (await fresh.any()).HasField("snapshot")
            assert fresh.known == router.known, "what is trimmed is the history, not the state"
        then = registry_pb.GetRouteRequest(name="models/fraud/routes/production")
        then.as_of_time.CopyFrom((await registry.route()).update_time)
        assert (await registry.api.GetRoute(then)).route == await registry.route(), "routes keep their history"


async def test_two_processes_on_one_database_push_each_others_changes(database_url: str, tmp_path: Path) -> None:
    # Without heartbeats nothing but the poll can tell a watcher what the other process did.
    async with (
        running_registry(tmp_path, database_url, watch_heartbeat_s=3_600) as one,
        running_registry(tmp_path, database_url, watch_heartbeat_s=3_600) as two,
        watching(one) as left,
        watching(two) as right,
    ):
        await left.next()
        await right.next()
        await one.create_model("fraud")
        await two.create_version()
        deployment = await one.deploy()
        last = await two.report(deployment.name)
        for watcher in (left, right):
            await watcher.until(last.epoch)
        assert left.known == right.known
        assert set(left.known) == PRODUCTION


async def test_a_draining_registry_sends_its_watchers_away(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as client:
        async with running_registry(tmp_path, database_url) as registry:
            channel = await client.enter_async_context(grpc.aio.insecure_channel(registry.address))
            stream = rpc.ControlServiceStub(channel).Watch(pb.WatchRequest(environment="production"))
            await stream.read()
        with refused(grpc.StatusCode.UNAVAILABLE, "DRAINING"):
            await stream.read()
