"""The features service, asked before a version is deployed."""

from collections.abc import Mapping, Sequence
from typing import Final

import grpc
import structlog
from interlock.features.v1 import feature_view_service_pb2 as features_pb
from interlock.features.v1.feature_view_service_pb2_grpc import FeatureViewServiceStub
from interlock.registry.v1.model_version_pb2 import ModelVersion as ModelVersionMessage

from services.common.channels import open_channel
from services.common.errors import Violation
from services.registry.domain.failure import FeaturesUnavailable
from services.registry.domain.resource import ModelVersion

_LOG: Final = structlog.get_logger(part="features")
_CHECK: Final = "interlock.features.v1.FeatureViewService/CheckSignature"
_TIMEOUT_S: Final = 2.0
_ATTEMPT_TIMEOUT_S: Final = 1.0


class GrpcFeatureGate:
    """See `ports.FeatureGate`."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(
            address, idempotent=[_CHECK], attempt_timeout_s=_ATTEMPT_TIMEOUT_S, hop_timeout_s=_TIMEOUT_S
        )
        self._stub = FeatureViewServiceStub(self._channel)

    async def check(self, version: ModelVersion) -> tuple[Sequence[Violation], Mapping[str, str]]:
        """Return why a version cannot get its features, and the digests of their views by view id."""
        signature = ModelVersionMessage.FromString(version.document).signature
        try:
            answer = await self._stub.CheckSignature(features_pb.CheckSignatureRequest(signature=signature))
        except grpc.aio.AioRpcError as error:
            _LOG.warning("check_failed", code=error.code().name, details=error.details())
            raise FeaturesUnavailable from error
        violations = [
            Violation(f"signature.features.{each.feature}", f"{each.source}: {each.error.message}")
            for each in answer.violations
        ]
        return violations, dict(answer.view_digests)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()
