"""The registry, asked who depends on a definition before it changes."""

from collections.abc import Collection, Sequence
from typing import Final

import grpc
import structlog
from interlock.registry.v1 import control_service_pb2 as registry_pb
from interlock.registry.v1.control_service_pb2_grpc import ControlServiceStub

from services.common.channels import open_channel
from services.features.convert.signature import binding_from_proto
from services.features.domain.failure import RegistryUnavailable
from services.features.domain.signature_fit import Binding

_LOG: Final = structlog.get_logger(part="registry")
_LIST: Final = "interlock.registry.v1.ControlService/ListFeatureBindings"
_TIMEOUT_S: Final = 2.0
_ATTEMPT_TIMEOUT_S: Final = 1.0
_PAGE_SIZE: Final = 1_000
_VIEWS_A_CALL: Final = 1_000


class GrpcVersionRegistry:
    """See `definition_store.VersionRegistry`."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(
            address, idempotent=[_LIST], attempt_timeout_s=_ATTEMPT_TIMEOUT_S, hop_timeout_s=_TIMEOUT_S
        )
        self._stub = ControlServiceStub(self._channel)

    async def bindings(self, views: Collection[str]) -> Sequence[Binding]:
        """Return what registered versions fetch from these views, by id."""
        ids = sorted(views)
        chunks = [ids[start : start + _VIEWS_A_CALL] for start in range(0, len(ids), _VIEWS_A_CALL)]
        return [binding for chunk in chunks for binding in await self._all_pages(chunk)]

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _all_pages(self, views: Sequence[str]) -> list[Binding]:
        found: list[Binding] = []
        request = registry_pb.ListFeatureBindingsRequest(feature_views=views, page_size=_PAGE_SIZE)
        while True:
            try:
                page = await self._stub.ListFeatureBindings(request)
            except grpc.aio.AioRpcError as error:
                _LOG.warning("bindings_unknown", code=error.code().name, details=error.details())
                raise RegistryUnavailable from error
            found += [binding_from_proto(each.feature_spec, each.model_version) for each in page.feature_bindings]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token
