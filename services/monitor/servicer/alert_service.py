"""Alert rules, alerts and silences."""

import time
from collections.abc import Callable, Collection
from typing import Final

from interlock.monitor.v1 import alert_service_pb2 as pb

from services.common.call import Call
from services.common.errors import Violation, echo
from services.common.names import id_violation
from services.common.pagination import parse_page
from services.common.refusals import ResourceNotFound, refuse
from services.monitor.convert import alert as convert
from services.monitor.domain.alert_ports import AlertRules, Alerts, Silences

_MICROSECONDS: Final = 1_000_000


class AlertServicer:
    """Keeps alert rules and silences, and shows alerts. `sinks` are the names of the configured ones."""

    def __init__(
        self,
        rules: AlertRules,
        alerts: Alerts,
        silences: Silences,
        sinks: Collection[str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._alerts = alerts
        self._silences = silences
        self._sinks = sinks
        self._clock = clock

    async def CreateAlertRule(self, request: pb.CreateAlertRuleRequest, call: Call) -> pb.CreateAlertRuleResponse:
        """Create a rule."""
        made = await self._rules.create(convert.new_rule(request, self._sinks), convert.request_key(request))
        return pb.CreateAlertRuleResponse(alert_rule=convert.rule_to_proto(made))

    async def GetAlertRule(self, request: pb.GetAlertRuleRequest, call: Call) -> pb.GetAlertRuleResponse:
        """Give a rule."""
        (name,) = convert.ALERT_RULE.parse(request.name)
        return pb.GetAlertRuleResponse(alert_rule=convert.rule_to_proto(await self._rules.get(name)))

    async def ListAlertRules(self, request: pb.ListAlertRulesRequest, call: Call) -> pb.ListAlertRulesResponse:
        """List rules by name."""
        wrong = id_violation(request.model, "model") if request.model else None
        refuse([wrong] if wrong else [])
        page = parse_page(request.page_size, request.page_token, {"list": "alertRules", "model": request.model})
        found = await self._rules.page(request.model, page.after, page.size + 1)
        shown = found[: page.size]
        return pb.ListAlertRulesResponse(
            alert_rules=map(convert.rule_to_proto, shown),
            next_page_token=page.next_token(shown[-1].name) if len(found) > page.size else "",
        )

    async def UpdateAlertRule(self, request: pb.UpdateAlertRuleRequest, call: Call) -> pb.UpdateAlertRuleResponse:
        """Change a rule; its alerts are evaluated anew."""
        wanted, key = convert.rule_update(request), convert.request_key(request)
        changed = await self._rules.change(
            wanted.name, wanted.etag, key, lambda rule: wanted.applied_to(rule, self._sinks)
        )
        return pb.UpdateAlertRuleResponse(alert_rule=convert.rule_to_proto(changed))

    async def DeleteAlertRule(self, request: pb.DeleteAlertRuleRequest, call: Call) -> pb.DeleteAlertRuleResponse:
        """Delete a rule and resolve its alerts."""
        (name,) = convert.ALERT_RULE.parse(request.name)
        await self._rules.delete(name, request.etag, convert.request_key(request))
        return pb.DeleteAlertRuleResponse()

    async def GetAlert(self, request: pb.GetAlertRequest, call: Call) -> pb.GetAlertResponse:
        """Give an alert."""
        (name,) = convert.ALERT.parse(request.name)
        found = await self._alerts.get(name)
        silences = await self._silences.active()
        return pb.GetAlertResponse(alert=convert.alert_to_proto(found, silences, self._now_us()))

    async def ListAlerts(self, request: pb.ListAlertsRequest, call: Call) -> pb.ListAlertsResponse:
        """List alerts, the newest first."""
        query = convert.alert_query(request)
        states = ",".join(sorted(state.name for state in query.states))
        filters = {"list": "alerts", "model": query.model, "rule": query.rule, "states": states}
        page = parse_page(request.page_size, request.page_token, filters)
        found = await self._alerts.page(query, page.after, page.size + 1)
        shown, silences = found[: page.size], await self._silences.active()
        return pb.ListAlertsResponse(
            alerts=[convert.alert_to_proto(alert, silences, self._now_us()) for alert in shown],
            next_page_token=page.next_token(shown[-1].name) if len(found) > page.size else "",
        )

    async def CreateSilence(self, request: pb.CreateSilenceRequest, call: Call) -> pb.CreateSilenceResponse:
        """Make a silence."""
        silence = convert.new_silence(request, call.principal, self._now_us())
        if silence.rule:
            await self._check_rule(silence.rule)
        made = await self._silences.create(silence, convert.request_key(request))
        return pb.CreateSilenceResponse(silence=convert.silence_to_proto(made))

    async def GetSilence(self, request: pb.GetSilenceRequest, call: Call) -> pb.GetSilenceResponse:
        """Give a silence."""
        (name,) = convert.SILENCE.parse(request.name)
        return pb.GetSilenceResponse(silence=convert.silence_to_proto(await self._silences.get(name)))

    async def ListSilences(self, request: pb.ListSilencesRequest, call: Call) -> pb.ListSilencesResponse:
        """List silences, the newest first."""
        filters = {"list": "silences", "active_only": str(request.active_only)}
        page = parse_page(request.page_size, request.page_token, filters)
        found = await self._silences.page(page.after, page.size + 1, self._now_us() if request.active_only else None)
        shown = found[: page.size]
        return pb.ListSilencesResponse(
            silences=map(convert.silence_to_proto, shown),
            next_page_token=page.next_token(shown[-1].name) if len(found) > page.size else "",
        )

    async def EndSilence(self, request: pb.EndSilenceRequest, call: Call) -> pb.EndSilenceResponse:
        """End a silence now."""
        (name,) = convert.SILENCE.parse(request.name)
        ended = await self._silences.end(name, convert.request_key(request))
        return pb.EndSilenceResponse(silence=convert.silence_to_proto(ended))

    async def _check_rule(self, name: str) -> None:
        try:
            await self._rules.get(name)
        except ResourceNotFound:
            refuse([Violation("silence.rule", f"want a rule that there is, got {echo(f'alertRules/{name}')}")])

    def _now_us(self) -> int:
        return int(self._clock() * _MICROSECONDS)
