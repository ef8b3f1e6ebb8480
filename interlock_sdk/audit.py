"""The registry's log of changes."""

from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.registry.v1 import registry_service_pb2_grpc

from interlock_sdk.channel import Caller

# Recomputing the chain reads the whole log.
_VERIFY_TIMEOUT_S = 60.0


class Audit:
    """What was changed, by whom, in a chain of hashes."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = registry_service_pb2_grpc.RegistryServiceStub(caller.channel)

    async def verify(self) -> pb.VerifyAuditLogResponse:
        """Recomputes the chain; the answer says whether it is whole and carries the last hash, to be kept elsewhere."""
        return await self._caller.call(
            self._stub.VerifyAuditLog, pb.VerifyAuditLogRequest(), timeout_s=_VERIFY_TIMEOUT_S
        )
