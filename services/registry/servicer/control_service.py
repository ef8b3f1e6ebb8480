"""ControlService: what should be, pushed to the other services; and what is, reported by replicas."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from interlock.registry.v1 import control_service_pb2 as pb

from services.common.call import Call
from services.registry.convert.control import binding_to_proto, event_to_proto, report_from_proto, scope_of, views_of
from services.registry.domain.deploying import take_report
from services.registry.domain.ports import ChangeFeed, Store
from services.registry.domain.watch import make_token, watch
from services.registry.servicer.once import author_of
from services.registry.servicer.page import is_binding_key, page_of


class ControlServicer:
    """One method for each RPC of ControlService."""

    def __init__(self, store: Store, feed: ChangeFeed, *, heartbeat_s: float) -> None:
        self._store = store
        self._feed = feed
        self._heartbeat_s = heartbeat_s

    async def Watch(self, request: pb.WatchRequest, call: Call) -> AsyncIterator[pb.WatchResponse]:
        """Push the configuration: a snapshot or what came after a token, then every change."""
        scope = scope_of(request)
        async with aclosing(watch(self._feed, scope, request.resume_token, self._heartbeat_s)) as events:
            async for event in events:
                yield event_to_proto(event, make_token(self._feed.registry_id, scope, event.epoch))

    async def ReportReplica(self, request: pb.ReportReplicaRequest, call: Call) -> pb.ReportReplicaResponse:
        """Take what a replica says of its deployments."""
        report = report_from_proto(request)
        async with self._store.change(author_of(call)) as change:
            await take_report(change, report)
        return pb.ReportReplicaResponse(epoch=change.new_epoch)

    async def ListFeatureBindings(
        self, request: pb.ListFeatureBindingsRequest, call: Call
    ) -> pb.ListFeatureBindingsResponse:
        """List what registered versions fetch from feature views."""
        views = views_of(request)
        page = page_of(request, "featureBindings", is_binding_key, views=",".join(views))
        version, _, feature = page.after.partition(" ")
        async with self._store.view() as view:
            found = await view.feature_bindings(views, (version, feature), page.size + 1)
        shown = found[: page.size]
        token = page.next_token(f"{shown[-1].model_version} {shown[-1].feature}") if len(found) > page.size else ""
        return pb.ListFeatureBindingsResponse(feature_bindings=map(binding_to_proto, shown), next_page_token=token)
