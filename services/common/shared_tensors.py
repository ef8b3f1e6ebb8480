"""The Open Inference Protocol's shared memory extension: tensors of one request that lie in registered regions, and its RPCs.

What a request reads is a copy, made once and before anything of it is checked: what the client writes meanwhile changes no
request. What is answered is made from that copy, never looked up by the request's bytes: they are the same while the
region's content differs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NoReturn, Protocol, Self

from inference import grpc_service_pb2 as oip
from inference import shared_memory_pb2 as pb

from services.common.call import Call
from services.common.errors import (
    INVALID_FIELD,
    MESSAGE_TOO_LARGE,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
    Violation,
    echo,
)
from services.common.shared_regions import Region, SharedRegions
from services.common.tensor_limits import TENSOR_LIMIT

EXTENSION: Final = "system_shared_memory"
"""What the metadata of a server that has it switched on lists."""
REGION: Final = "shared_memory_region"
_OFFSET: Final = "shared_memory_offset"
_SIZE: Final = "shared_memory_byte_size"
Written = Mapping[str, Mapping[str, str | int]]
"""The parameters of every output that went into a region, by its name; its bytes are not in the answer."""


class NamedData(Protocol):
    """A tensor of a service's own."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def data(self) -> bytes:
        """Its elements, as `raw_output_contents` has them."""


@dataclass(slots=True)
class _Slot:
    """A part of a region; `field` is where the request says so."""

    region: Region
    offset: int
    size_bytes: int
    field: str


class SharedTensors:
    """What one request has in regions, while the block runs: its inputs are read once, its outputs written at the end."""

    __slots__ = ("_held_bytes", "_regions", "_slots")

    def __init__(self, regions: SharedRegions) -> None:
        self._regions = regions
        self._held_bytes = 0
        self._slots: dict[str, _Slot] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._regions.budget.used_bytes -= self._held_bytes

    def read(self, field: str, parameters: Mapping[str, object]) -> bytes | None:
        """Return a copy of an input that lies in a region; None for one that does not.

        `field` names the input in errors. Raises ServiceError for a region or a part of it that is not there, for more
        bytes than one message may have, and when the process holds as many as it may.
        """
        if REGION not in parameters:
            return None
        slot = self._slot(field, parameters)
        size_bytes, limit_bytes = self._held_bytes + slot.size_bytes, self._regions.message_limit_bytes
        if size_bytes > limit_bytes:
            raise ResourceExhausted(
                f"the request's tensors in shared memory have {size_bytes} bytes, the limit is {limit_bytes}",
                reason=MESSAGE_TOO_LARGE,
                metadata={"size_bytes": str(size_bytes), "limit_bytes": str(limit_bytes)},
            )
        self._regions.budget.take(slot.size_bytes)
        self._held_bytes = size_bytes
        return slot.region.read(slot.offset, slot.size_bytes)

    def expect(self, output: str, field: str, parameters: Mapping[str, object]) -> bool:
        """Note where an output should go and return True; False for one that goes into the answer. Raises as `read`."""
        if REGION not in parameters:
            return False
        if output in self._slots:
            _refuse(field, "want it once, got it again")
        slot = self._slots[output] = self._slot(field, parameters)
        slot.region.check(slot.offset, slot.size_bytes)
        return True

    def write(self, outputs: Iterable[NamedData]) -> Written:
        """Write the outputs that should go into regions; all or, when one has no room, none."""
        ready = [(self._slots[tensor.name], tensor) for tensor in outputs if tensor.name in self._slots]
        for slot, tensor in ready:
            if len(tensor.data) > slot.size_bytes:
                _refuse(f"{slot.field}.parameters.{_SIZE}", f"want {len(tensor.data)} or more, got {slot.size_bytes}")
        return {tensor.name: _fill(slot, tensor.data) for slot, tensor in ready}

    def _slot(self, field: str, parameters: Mapping[str, object]) -> _Slot:
        place = f"{field}.parameters"
        name = parameters[REGION]
        if not isinstance(name, str):
            _refuse(f"{place}.{REGION}", "want the name of a region, got another kind of value")
        region = self._regions.find(name)
        offset = _whole(place, _OFFSET, parameters.get(_OFFSET, 0), 0)
        size_bytes = _whole(place, _SIZE, parameters.get(_SIZE), 1)
        if offset + size_bytes > region.size_bytes:
            want = f"want a part of the {region.size_bytes} bytes of region {echo(name)}"
            _refuse(f"{place}.{_SIZE}", f"{want}, got {size_bytes} bytes from {offset} on")
        return _Slot(region, offset, size_bytes, field)


def in_regions(request: oip.ModelInferRequest) -> bool:
    """Whether any tensor of a request lies, or should lie, in a region."""
    for tensor in request.inputs[:TENSOR_LIMIT]:
        if tensor.parameters and REGION in tensor.parameters:
            return True
    return any(REGION in output.parameters for output in request.outputs[:TENSOR_LIMIT])


def raw_contents(request: oip.ModelInferRequest, shared: SharedTensors) -> Sequence[bytes]:
    """Return the bytes of every input, in order, and note where outputs should go; raises as `SharedTensors.read`.

    `raw_input_contents` then belongs to the inputs that are in no region, in their order.
    """
    count = max(len(request.inputs), len(request.outputs))
    if count > TENSOR_LIMIT:
        _refuse("inputs", f"want at most {TENSOR_LIMIT} tensors, got {count}")
    for output in request.outputs:
        shared.expect(output.name, f"outputs.{output.name}", _plain(output.parameters))
    elsewhere = sum(REGION not in tensor.parameters for tensor in request.inputs)
    if len(request.raw_input_contents) != elsewhere:
        want = f"want {elsewhere} entries, one for each input that is in no region"
        _refuse("raw_input_contents", f"{want}, got {len(request.raw_input_contents)}")
    given = iter(request.raw_input_contents)
    found = [shared.read(f"inputs.{tensor.name}", _plain(tensor.parameters)) for tensor in request.inputs]
    return [next(given) if data is None else data for data in found]


def parameters_to_proto(written: Mapping[str, str | int]) -> dict[str, oip.InferParameter]:
    """Return an output's parameters for an answer."""
    return {
        name: oip.InferParameter(string_param=value)
        if isinstance(value, str)
        else oip.InferParameter(int64_param=value)
        for name, value in written.items()
    }


class SharedMemoryMethods:
    """The RPCs of the extension, the same in every service that speaks the protocol."""

    def __init__(self, regions: SharedRegions) -> None:
        self.regions = regions

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        """List regions."""
        return pb.SystemSharedMemoryStatusResponse(
            regions={
                region.name: pb.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name, key=region.key, offset=region.offset, byte_size=region.size_bytes
                )
                for region in self.regions.listed(request.name)
            }
        )

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, call: Call
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Open a region for this and all later requests."""
        self.regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Let go of one region or all."""
        self.regions.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, call: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        """Refuse: not offered."""
        _refuse_cuda(call)

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, call: Call
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Refuse: not offered."""
        _refuse_cuda(call)

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, call: Call
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Refuse: not offered."""
        _refuse_cuda(call)


def _fill(slot: _Slot, data: bytes) -> dict[str, str | int]:
    slot.region.write(slot.offset, data)
    return {REGION: slot.region.name, _OFFSET: slot.offset, _SIZE: len(data)}


def _plain(parameters: Mapping[str, oip.InferParameter]) -> Mapping[str, object]:
    """Return the parameters of the extension as plain values; None for one without a value."""
    found: dict[str, object] = {}
    for name in (REGION, _OFFSET, _SIZE):
        if name in parameters:
            kind = parameters[name].WhichOneof("parameter_choice")
            found[name] = getattr(parameters[name], kind) if kind else None
    return found


def _whole(place: str, name: str, value: object, least: int) -> int:
    if type(value) is not int or value < least:
        got = value if type(value) is int else "nothing" if value is None else "another kind of value"
        _refuse(f"{place}.{name}", f"want a whole number of bytes from {least} on, got {got}")
    return value


def _refuse(field: str, description: str) -> NoReturn:
    raise InvalidArgument(f"{field}: {description}", reason=INVALID_FIELD, violations=[Violation(field, description)])


def _refuse_cuda(call: Call) -> NoReturn:
    method = call.method.rpartition("/")[2]
    raise Unimplemented(
        f"{method}: CUDA shared memory is not offered; system shared memory is, where ServerMetadata lists {EXTENSION}",
        reason="NOT_IMPLEMENTED",
        metadata={"method": method},
    )
