"""Services that stand in the contract and have no code yet: every method answers UNIMPLEMENTED, through the chain."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor

from services.common.call import Binding, Call
from services.common.errors import Unimplemented

NOT_IMPLEMENTED = "NOT_IMPLEMENTED"


def unimplemented_bindings(*files: FileDescriptor) -> tuple[Binding, ...]:
    """Return a binding for each service that `files` define; its methods refuse with NOT_IMPLEMENTED."""
    return tuple(
        Binding(service.full_name, _servicer(service)) for file in files for service in file.services_by_name.values()
    )


def _servicer(service: ServiceDescriptor) -> object:
    return SimpleNamespace(**{rpc.name: _refuse_stream if rpc.server_streaming else _refuse for rpc in _rpcs(service)})


def _rpcs(service: ServiceDescriptor) -> tuple[MethodDescriptor, ...]:
    return tuple(service.methods)


async def _refuse(_request: Any, call: Call) -> Any:
    raise _refusal(call)


async def _refuse_stream(_request: Any, call: Call) -> AsyncIterator[Any]:
    raise _refusal(call)
    yield  # makes it a generator, which is what a streaming method is


def _refusal(call: Call) -> Unimplemented:
    return Unimplemented(
        f"{call.method} is in the contract and not in this release",
        reason=NOT_IMPLEMENTED,
        metadata={"method": call.method},
    )
