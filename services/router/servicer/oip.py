"""inference.GRPCInferenceService at the router: model_name is a model id, the route chooses the version."""

from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any, Final, NoReturn

from inference import grpc_service_pb2 as oip_pb
from inference import repository_pb2

from services.common.call import Call, Pending, Reply, answers_many, begun_by, raw
from services.common.chain import parse_message
from services.common.errors import FailedPrecondition, Unimplemented
from services.common.infer_sketch import InferSketch, parse_closely
from services.common.oip_stream import infer_stream
from services.common.shared_regions import SharedRegions
from services.common.shared_tensors import EXTENSION, SharedMemoryMethods, SharedTensors, in_regions, raw_contents
from services.common.stream_answers import Streams
from services.router.convert.oip import InferAnswers, InferForms, infer_from_proto, infer_to_proto, tensor_metadata
from services.router.convert.request import check_names
from services.router.domain.begun import Begun
from services.router.domain.catalog import Catalog
from services.router.domain.prediction import Predictor

SERVER_NAME: Final = "interlock-router"
EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "parameters", "streaming")


class OipServicer(SharedMemoryMethods):
    """Infers by tensors, and tells what there is to infer with."""

    def __init__(
        self, predictor: Predictor, catalog: Catalog, streams: Streams, release: str, regions: SharedRegions
    ) -> None:
        super().__init__(regions)
        self._predictor = predictor
        self._catalog = catalog
        self._streams = streams
        self._release = release
        self._answers = InferAnswers()
        self._forms = InferForms()

    def begin_infer(self, payload: bytes, call: Call, reply: Reply) -> Pending | None:
        """Run rows of tensors that are described as in an earlier request."""
        sketch = parse_message(InferSketch, payload)
        asked = self._forms.request(sketch)
        if asked is None:
            return None
        begun = Begun(reply, partial(self._answers.encode, request_id=sketch.id))
        return self._predictor.begin_infer(asked, call, begun)

    @raw
    @begun_by(begin_infer)
    async def ModelInfer(self, payload: bytes, call: Call) -> bytes:
        """Run rows of tensors; both messages are in wire form."""
        sketch = parse_message(InferSketch, payload)
        asked = self._forms.request(sketch)
        if asked is not None:
            return self._answers.encode(await self._predictor.infer(asked, call), sketch.id)
        request = parse_closely(sketch, payload)
        answer = await self._infer(request, call)
        self._forms.learn(sketch, request)
        return answer

    async def ServerLive(self, request: oip_pb.ServerLiveRequest, call: Call) -> oip_pb.ServerLiveResponse:
        """Say that the process answers."""
        return oip_pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip_pb.ServerReadyRequest, call: Call) -> oip_pb.ServerReadyResponse:
        """Say whether every routed version can run."""
        return oip_pb.ServerReadyResponse(ready=self._catalog.ready())

    async def ModelReady(self, request: oip_pb.ModelReadyRequest, call: Call) -> oip_pb.ModelReadyResponse:
        """Say whether a model can run."""
        check_names(request.name, request.version, model_field="name")
        return oip_pb.ModelReadyResponse(ready=self._catalog.is_ready(request.name, request.version))

    async def ServerMetadata(self, request: oip_pb.ServerMetadataRequest, call: Call) -> oip_pb.ServerMetadataResponse:
        """Name the server and its extensions."""
        extensions = (*EXTENSIONS, EXTENSION) if self.regions.on else EXTENSIONS
        return oip_pb.ServerMetadataResponse(name=SERVER_NAME, version=self._release, extensions=extensions)

    async def ModelMetadata(self, request: oip_pb.ModelMetadataRequest, call: Call) -> oip_pb.ModelMetadataResponse:
        """Describe a model's tensors."""
        check_names(request.name, request.version, model_field="name")
        model, target = self._catalog.describe(request.name, request.version)
        return oip_pb.ModelMetadataResponse(
            name=model.id,
            versions=[found.version.id for found in model.deployed()],
            platform=target.version.runtime,
            inputs=tensor_metadata(target.version.signature.inputs),
            outputs=tensor_metadata(target.version.signature.outputs),
        )

    async def RepositoryIndex(
        self, request: repository_pb2.RepositoryIndexRequest, call: Call
    ) -> repository_pb2.RepositoryIndexResponse:
        """List deployed versions and their states; there is one repository, so its name does not matter."""
        models = [
            repository_pb2.RepositoryIndexResponse.ModelIndex(
                name=state.target.version.model,
                version=state.target.version.id,
                state="READY" if state.ready else "UNAVAILABLE",
                reason="" if state.ready else "no replica is ready",
            )
            for state in self._catalog.states(ready_only=request.ready)
        ]
        return repository_pb2.RepositoryIndexResponse(models=models)

    async def RepositoryModelLoad(self, request: repository_pb2.RepositoryModelLoadRequest, call: Call) -> NoReturn:
        """Refuse: the registry decides."""
        raise _registry_decides()

    async def RepositoryModelUnload(self, request: repository_pb2.RepositoryModelUnloadRequest, call: Call) -> NoReturn:
        """Refuse: the registry decides."""
        raise _registry_decides()

    @answers_many
    def ModelStreamInfer(
        self, requests: AsyncIterator[oip_pb.ModelInferRequest], call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Run each request of a stream, and answer it as soon as it is ready."""
        return infer_stream(self._streams, requests, call, self._infer)

    async def ModelConfig(self, request: Any, call: Call) -> NoReturn:
        """Refuse: not offered in this release."""
        raise _not_offered(call)

    async def ModelStatistics(self, request: Any, call: Call) -> NoReturn:
        """Refuse: not offered in this release."""
        raise _not_offered(call)

    async def TraceSetting(self, request: Any, call: Call) -> NoReturn:
        """Refuse: not offered in this release."""
        raise _not_offered(call)

    async def LogSettings(self, request: Any, call: Call) -> NoReturn:
        """Refuse: not offered in this release."""
        raise _not_offered(call)

    async def _infer(self, request: oip_pb.ModelInferRequest, call: Call) -> bytes:
        if self.regions.on and in_regions(request):
            return await self._infer_shared(request, call)
        answer = await self._predictor.infer(infer_from_proto(request), call)
        return self._answers.encode(answer, request.id)

    async def _infer_shared(self, request: oip_pb.ModelInferRequest, call: Call) -> bytes:
        with SharedTensors(self.regions) as shared:
            answer = await self._predictor.infer(infer_from_proto(request, raw_contents(request, shared)), call)
            return infer_to_proto(answer, request.id, shared.write(answer.outputs)).SerializeToString()


def _registry_decides() -> FailedPrecondition:
    return FailedPrecondition(
        "the registry alone decides what is loaded: deploy the version there (DeployModel, "
        "POST /v1/models/{model}/deploy) or delete its deployment",
        reason="REGISTRY_DECIDES",
    )


def _not_offered(call: Call) -> Unimplemented:
    method = call.method.rpartition("/")[2]
    return Unimplemented(
        f"{method} is an extension that this server does not offer; ServerMetadata lists those it does",
        reason="NOT_IMPLEMENTED",
        metadata={"method": method},
    )
