"""How models are watched."""

from collections.abc import Awaitable, Callable
from typing import Final

from interlock.monitor.v1 import monitoring_policy_service_pb2 as pb

from services.common.call import Call
from services.common.pagination import parse_page
from services.common.refusals import refuse
from services.monitor.convert.policy import PATH, policy_model, policy_to_proto, policy_update
from services.monitor.domain.policy import ModelVersions, MonitoringPolicy, Policies, PolicyBook
from services.monitor.domain.policy_check import check_policy

_LIST: Final = {"list": "monitoringPolicies"}


class MonitoringPolicyServicer:
    """Gives, changes and lists policies."""

    def __init__(
        self,
        policies: Policies,
        book: PolicyBook,
        versions: ModelVersions,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        self._settle = settle
        self._policies = policies
        self._book = book
        self._versions = versions

    async def GetMonitoringPolicy(
        self, request: pb.GetMonitoringPolicyRequest, call: Call
    ) -> pb.GetMonitoringPolicyResponse:
        """Return the policy of a model, the default one when nobody has changed it."""
        policy = self._book.current(policy_model(request.name))
        if not policy.update_us:
            # Any name has a default policy; only a model has one to give.
            await self._versions.recent(policy.model)
        return pb.GetMonitoringPolicyResponse(monitoring_policy=policy_to_proto(policy))

    async def UpdateMonitoringPolicy(
        self, request: pb.UpdateMonitoringPolicyRequest, call: Call
    ) -> pb.UpdateMonitoringPolicyResponse:
        """Change a policy."""
        update = policy_update(request)
        versions = await self._versions.recent(update.model)

        def apply(current: MonitoringPolicy) -> MonitoringPolicy:
            wanted = update.applied_to(current)
            refuse(check_policy(wanted, versions, PATH))
            return wanted

        # The windows that there are decide from when on a change holds.
        await self._settle()
        changed = await self._policies.change(update.model, update.etag, update.request_id, apply)
        return pb.UpdateMonitoringPolicyResponse(monitoring_policy=policy_to_proto(changed))

    async def ListMonitoringPolicies(
        self, request: pb.ListMonitoringPoliciesRequest, call: Call
    ) -> pb.ListMonitoringPoliciesResponse:
        """List policies that were ever changed."""
        page = parse_page(request.page_size, request.page_token, _LIST)
        found = await self._policies.page(page.after, page.size + 1)
        shown = found[: page.size]
        return pb.ListMonitoringPoliciesResponse(
            monitoring_policies=[policy_to_proto(policy) for policy in shown],
            next_page_token=page.next_token(shown[-1].model) if len(found) > page.size else "",
        )
