"""`inference.GRPCInferenceService`: one method per RPC. What Triton has and this release has not says NOT_IMPLEMENTED."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final, NoReturn, Protocol

from inference import grpc_service_pb2 as oip
from inference import model_config_pb2 as config_pb
from inference import repository_pb2 as repository_pb
from inference import server_setting_pb2 as setting_pb
from inference import statistics_pb2 as statistics_pb

from services.common.call import Call, Reply, answers_many, begun_by, raw
from services.common.chain import parse_message
from services.common.errors import INVALID_FIELD, InvalidArgument, ServiceError, Unimplemented, Violation
from services.common.infer_sketch import InferSketch, parse_closely
from services.common.names import is_id, parse_id
from services.common.oip_stream import infer_stream
from services.common.shared_regions import SharedRegions
from services.common.shared_tensors import EXTENSION, SharedMemoryMethods, SharedTensors, in_regions, raw_contents
from services.common.stream_answers import Streams
from services.inference.convert.oip import InferAnswers, InferForms, InferRequest, infer_from_proto, shared_to_proto
from services.inference.convert.states import config_to_proto, index_to_proto, metadata_to_proto, statistics_to_proto
from services.inference.domain.failure import RegistryDecides, VersionNotLoaded
from services.inference.domain.item import BatchAnswer, Item, ItemTrace, Place, Sink
from services.inference.domain.model_host import ModelHost
from services.inference.domain.replica import Replica, sorted_hosts
from services.inference.domain.version import VersionKey

EXTENSIONS: Final = ("model_configuration", "model_repository", "statistics", "streaming")
_Outcome = tuple[BatchAnswer, Place]


class Tracer(Protocol):
    """Who begins the trace of a request."""

    def begin(self, key: VersionKey, traceparent: str) -> ItemTrace | None:
        """Return its trace, or None where nothing is traced."""


class _Answer:
    """Waits for one request."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()

    def deliver(self, answer: BatchAnswer, places: Sequence[Place]) -> None:
        if not self.future.done():
            self.future.set_result((answer, places[0]))

    def fail(self, items: Sequence[Item], error: ServiceError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _PromptAnswer:
    """Answers one request that has no task."""

    __slots__ = ("_answers", "_host", "_ident", "_reply", "item")

    def __init__(self, answers: InferAnswers, host: ModelHost, ident: str, reply: Reply) -> None:
        self._answers = answers
        self._host = host
        self._ident = ident
        self._reply = reply
        self.item: Item | None = None
        """Set while it waits: it knows this object too."""

    def deliver(self, answer: BatchAnswer, places: Sequence[Place]) -> None:
        self.item = None
        try:
            body = self._answers.encode(self._host.key, self._ident, answer, places[0])
        except Exception as error:  # noqa: BLE001 - its batch-mates are not to suffer
            self._reply.fail(error)
        else:
            self._reply.answer(body)

    def fail(self, items: Sequence[Item], error: ServiceError) -> None:
        self.item = None
        self._reply.fail(error)

    def take_back(self) -> None:
        item, self.item = self.item, None
        if item is not None:
            self._host.cancel(item)


class OipServicer(SharedMemoryMethods):
    """Answers the Open Inference Protocol for the versions of this replica."""

    def __init__(
        self, replica: Replica, tracer: Tracer, streams: Streams, release: str, regions: SharedRegions
    ) -> None:
        super().__init__(regions)
        self._replica = replica
        self._tracer = tracer
        self._streams = streams
        self._release = release
        self._answers = InferAnswers()
        self._forms = InferForms()

    async def ServerLive(self, request: oip.ServerLiveRequest, call: Call) -> oip.ServerLiveResponse:
        """Say that the process answers."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, call: Call) -> oip.ServerReadyResponse:
        """Say whether every version that should be here answers."""
        return oip.ServerReadyResponse(ready=self._replica.settled and not self._replica.draining)

    async def ModelReady(self, request: oip.ModelReadyRequest, call: Call) -> oip.ModelReadyResponse:
        """Say whether one version answers."""
        host = self._find(request.name, request.version, "name")
        return oip.ModelReadyResponse(ready=host.ready and not self._replica.draining)

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, call: Call) -> oip.ServerMetadataResponse:
        """Return name, release and extensions."""
        extensions = (*EXTENSIONS, EXTENSION) if self.regions.on else EXTENSIONS
        return oip.ServerMetadataResponse(name="interlock-inference", version=self._release, extensions=extensions)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, call: Call) -> oip.ModelMetadataResponse:
        """Return the tensors of a version."""
        host = self._find(request.name, request.version, "name")
        hosts = sorted_hosts(each for each in self._replica.hosts.values() if each.key.model == host.key.model)
        return metadata_to_proto(host, [each.key.version for each in hosts])

    def begin_infer(self, payload: bytes, call: Call, reply: Reply) -> _PromptAnswer | None:
        """Run a version on tensors that are described as in an earlier request."""
        sketch = parse_message(InferSketch, payload)
        host = self._find_ready(sketch.model_name, sketch.model_version)
        wanted = self._forms.request(sketch, host.spec)
        if wanted is None:
            return None
        waiting = _PromptAnswer(self._answers, host, sketch.id, reply)
        host.dispatcher.arrived(1)
        waiting.item = self._submit(host, wanted, waiting, call)
        return waiting

    @raw
    @begun_by(begin_infer)
    async def ModelInfer(self, payload: bytes, call: Call) -> bytes:
        """Run a version on the given tensors; both messages are in wire form."""
        sketch = parse_message(InferSketch, payload)
        host = self._find_ready(sketch.model_name, sketch.model_version)
        wanted = self._forms.request(sketch, host.spec)
        if wanted is not None:
            host.dispatcher.arrived(1)
            answer, place = await self._run(host, wanted, call)
            return self._answers.encode(host.key, sketch.id, answer, place)
        request = parse_closely(sketch, payload)
        encoded = await self._infer_closely(host, request, call)
        self._forms.learn(sketch, host.spec, request)
        return encoded

    async def ModelConfig(self, request: config_pb.ModelConfigRequest, call: Call) -> config_pb.ModelConfigResponse:
        """Return how a version is served."""
        return config_pb.ModelConfigResponse(config=config_to_proto(self._find(request.name, request.version, "name")))

    async def ModelStatistics(
        self, request: statistics_pb.ModelStatisticsRequest, call: Call
    ) -> statistics_pb.ModelStatisticsResponse:
        """Return the counts of one or all versions."""
        hosts = self._selected(request.name, request.version)
        return statistics_pb.ModelStatisticsResponse(model_stats=map(statistics_to_proto, hosts))

    async def RepositoryIndex(
        self, request: repository_pb.RepositoryIndexRequest, call: Call
    ) -> repository_pb.RepositoryIndexResponse:
        """Return all versions and their states."""
        hosts = [host for host in sorted_hosts(self._replica.hosts.values()) if host.ready or not request.ready]
        return repository_pb.RepositoryIndexResponse(models=map(index_to_proto, hosts))

    async def RepositoryModelLoad(
        self, request: repository_pb.RepositoryModelLoadRequest, call: Call
    ) -> repository_pb.RepositoryModelLoadResponse:
        """Refuse: the registry decides."""
        raise RegistryDecides

    async def RepositoryModelUnload(
        self, request: repository_pb.RepositoryModelUnloadRequest, call: Call
    ) -> repository_pb.RepositoryModelUnloadResponse:
        """Refuse: the registry decides."""
        raise RegistryDecides

    @answers_many
    def ModelStreamInfer(
        self, requests: AsyncIterator[oip.ModelInferRequest], call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Run each request of a stream, and answer it as soon as it is ready."""
        return infer_stream(self._streams, requests, call, self._infer_streamed)

    async def TraceSetting(
        self, request: setting_pb.TraceSettingRequest, call: Call
    ) -> setting_pb.TraceSettingResponse:
        """Not in this release."""
        _refuse(call)

    async def LogSettings(self, request: setting_pb.LogSettingsRequest, call: Call) -> setting_pb.LogSettingsResponse:
        """Not in this release."""
        _refuse(call)

    async def _infer_streamed(self, request: oip.ModelInferRequest, call: Call) -> bytes:
        return await self._infer_closely(self._find_ready(request.model_name, request.model_version), request, call)

    async def _infer_closely(self, host: ModelHost, request: oip.ModelInferRequest, call: Call) -> bytes:
        if self.regions.on and in_regions(request):
            return await self._infer_shared(host, request, call)
        answer, place = await self._infer(host, request, call)
        return self._answers.encode(host.key, request.id, answer, place)

    async def _infer_shared(self, host: ModelHost, request: oip.ModelInferRequest, call: Call) -> bytes:
        with SharedTensors(self.regions) as shared:
            answer, place = await self._infer(host, request, call, raw_contents(request, shared))
            tensors = answer.tensors(((place.first_row, place.item.rows),))
            return shared_to_proto(host.key, request.id, tensors, shared.write(tensors)).SerializeToString()

    async def _infer(
        self, host: ModelHost, request: oip.ModelInferRequest, call: Call, shared: Sequence[bytes] | None = None
    ) -> _Outcome:
        host.dispatcher.arrived(1)
        try:
            wanted = infer_from_proto(request, host.spec, shared)
        except BaseException:
            host.dispatcher.gone(1)
            raise
        return await self._run(host, wanted, call)

    async def _run(self, host: ModelHost, wanted: InferRequest, call: Call) -> _Outcome:
        """Run a request that the dispatcher has counted as arrived."""
        waiting = _Answer()
        item = self._submit(host, wanted, waiting, call)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            host.cancel(item)
            raise

    def _submit(self, host: ModelHost, wanted: InferRequest, waiting: Sink, call: Call) -> Item:
        """Queue a request that the dispatcher has counted as arrived. Raises a `ServiceError` when it is refused."""
        deadline = call.deadline
        if wanted.timeout_s is not None:
            deadline = min(deadline, time.monotonic() + wanted.timeout_s)
        item = Item(
            rows=wanted.rows,
            inputs=wanted.inputs,
            key=wanted.key,
            deadline=deadline,
            sink=waiting,
            criticality=call.criticality,
            request_id=call.request_id,
            trace=self._tracer.begin(host.key, call.traceparent),
        )
        host.submit(item)
        host.dispatcher.pump_soon()
        return item

    def _find_ready(self, model: str, version: str) -> ModelHost:
        _check_ids(model, version, "model_name")
        return self._replica.find_ready(model, version)

    def _find(self, model: str, version: str, field: str) -> ModelHost:
        _check_ids(model, version, field)
        return self._replica.find(model, version)

    def _selected(self, model: str, version: str) -> list[ModelHost]:
        """Return the versions that a statistics request names, in order."""
        hosts = sorted_hosts(self._replica.hosts.values())
        if not model:
            return hosts
        _check_ids(model, version, "name")
        chosen = [host for host in hosts if host.key.model == model and version in {"", host.key.version}]
        if not chosen:
            raise VersionNotLoaded(model, version)
        return chosen


def _check_ids(model: str, version: str, field: str) -> None:
    if not model:
        wrong = Violation(field, "want a model id, got none")
        raise InvalidArgument(f"{wrong.field}: {wrong.description}", reason=INVALID_FIELD, violations=[wrong])
    if not is_id(model):
        parse_id(model, field)
    if version and not is_id(version):
        parse_id(version, "version" if field == "name" else "model_version")


def _refuse(call: Call) -> NoReturn:
    raise Unimplemented(
        f"{call.method.rpartition('/')[2]} is not offered in this release; see ServerMetadata.extensions",
        reason="NOT_IMPLEMENTED",
    )
