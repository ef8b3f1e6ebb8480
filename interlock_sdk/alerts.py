"""Alert rules, alerts and silences."""

from collections.abc import AsyncIterator, Sequence

from google.protobuf.field_mask_pb2 import FieldMask
from interlock.monitor.v1 import alert_pb2, alert_service_pb2_grpc
from interlock.monitor.v1 import alert_service_pb2 as pb

from interlock_sdk.channel import Caller, new_request_id


class Alerts:
    """Rules say when somebody is to be told; alerts are occasions on which that was so; silences keep them quiet."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = alert_service_pb2_grpc.AlertServiceStub(caller.channel)

    async def get(self, alert: str) -> alert_pb2.Alert:
        """Gives an alert."""
        return (await self._caller.call(self._stub.GetAlert, pb.GetAlertRequest(name=f"alerts/{alert}"))).alert

    async def list(
        self, *, model: str = "", rule: str = "", states: Sequence["alert_pb2.AlertState.ValueType"] = ()
    ) -> AsyncIterator[alert_pb2.Alert]:
        """Walks alerts, the newest first; without states the pending and firing ones."""

        async def fetch(page_token: str) -> pb.ListAlertsResponse:
            name = f"alertRules/{rule}" if rule else ""
            request = pb.ListAlertsRequest(model=model, rule=name, states=states, page_token=page_token)
            return await self._caller.call(self._stub.ListAlerts, request)

        async for page in self._caller.pages(fetch):
            for alert in page.alerts:
                yield alert

    async def rules(self, model: str = "") -> AsyncIterator[alert_pb2.AlertRule]:
        """Walks rules, by name."""

        async def fetch(page_token: str) -> pb.ListAlertRulesResponse:
            request = pb.ListAlertRulesRequest(model=model, page_token=page_token)
            return await self._caller.call(self._stub.ListAlertRules, request)

        async for page in self._caller.pages(fetch):
            for rule in page.alert_rules:
                yield rule

    async def create_rule(self, rule: str, wanted: alert_pb2.AlertRule) -> alert_pb2.AlertRule:
        """Creates a rule under an id."""
        request = pb.CreateAlertRuleRequest(alert_rule_id=rule, alert_rule=wanted, request_id=new_request_id())
        return (await self._caller.call(self._stub.CreateAlertRule, request)).alert_rule

    async def replace_rule(self, wanted: alert_pb2.AlertRule) -> alert_pb2.AlertRule:
        """Changes a rule to be just what is given; its name, and its etag if that matters, are in it."""
        request = pb.UpdateAlertRuleRequest(
            alert_rule=wanted, update_mask=FieldMask(paths=["*"]), request_id=new_request_id()
        )
        return (await self._caller.call(self._stub.UpdateAlertRule, request)).alert_rule

    async def delete_rule(self, rule: str) -> None:
        """Deletes a rule and resolves its alerts."""
        request = pb.DeleteAlertRuleRequest(name=f"alertRules/{rule}", request_id=new_request_id())
        await self._caller.call(self._stub.DeleteAlertRule, request)

    async def silence(self, wanted: alert_pb2.Silence) -> alert_pb2.Silence:
        """Makes a silence."""
        request = pb.CreateSilenceRequest(silence=wanted, request_id=new_request_id())
        return (await self._caller.call(self._stub.CreateSilence, request)).silence

    async def silences(self, *, active_only: bool = True) -> AsyncIterator[alert_pb2.Silence]:
        """Walks silences, the newest first."""

        async def fetch(page_token: str) -> pb.ListSilencesResponse:
            request = pb.ListSilencesRequest(active_only=active_only, page_token=page_token)
            return await self._caller.call(self._stub.ListSilences, request)

        async for page in self._caller.pages(fetch):
            for silence in page.silences:
                yield silence

    async def end_silence(self, silence: str) -> alert_pb2.Silence:
        """Ends a silence now."""
        request = pb.EndSilenceRequest(name=f"silences/{silence}", request_id=new_request_id())
        return (await self._caller.call(self._stub.EndSilence, request)).silence
