"""interlock.router.v1.RouterHttpService: the same use cases over REST; the chain makes bodies of errors."""

from typing import Final

from google.api.httpbody_pb2 import HttpBody
from inference import grpc_service_pb2 as oip_pb
from inference import repository_pb2
from interlock.router.v1 import http_service_pb2 as pb

from services.common.call import Call, Pending, Reply, begun_by
from services.common.content_encoding import CONTENT_ENCODING_KEY, decoded
from services.common.errors import Violation
from services.common.health import HealthBoard
from services.common.json_body import Fields, decode_object
from services.common.rest_twin import HTTP_STATUS_KEY
from services.common.shared_tensors import SharedTensors
from services.router.convert.oip import metadata_to_dict
from services.router.convert.oip_json import (
    HEADER_LENGTH_KEY,
    InferAsk,
    header_length,
    infer_from_http,
    infer_from_raw,
    infer_to_http,
    json_body,
)
from services.router.convert.predict_json import predict_from_json, prediction_to_json, rows_from_json, rows_to_json
from services.router.convert.request import check_names
from services.router.domain.answer import Answer
from services.router.domain.begun import Begun
from services.router.domain.catalog import Catalog
from services.router.domain.failure import InvalidField
from services.router.domain.prediction import Predictor
from services.router.servicer.oip import OipServicer

_INDEX_FIELDS: Final = ("ready",)
_UNAVAILABLE: Final = "503"
_REGION_FIELDS: Final = ("key", "offset", "byte_size")
_PROBES: Final = frozenset({"", "ready", "startup"})


class RouterHttpServicer:
    """Speaks JSON, and the binary tensor extension, where the transcoder cannot."""

    def __init__(
        self, predictor: Predictor, catalog: Catalog, oip: OipServicer, board: HealthBoard, body_limit_bytes: int
    ) -> None:
        self._predictor = predictor
        self._catalog = catalog
        self._oip = oip
        self._board = board
        self._body_limit_bytes = body_limit_bytes

    def begin_predict(self, payload: bytes, call: Call, reply: Reply) -> Pending | None:
        """Predict one row that nobody answers but the route's first choice."""
        ask = predict_from_json(self._body(payload, call))

        def encode(answer: Answer) -> bytes:
            return prediction_to_json(answer, probabilities=ask.probabilities).data

        return self._predictor.begin_predict(ask.model, ask.version, ask.row, call, Begun(reply, encode))

    @begun_by(begin_predict)
    async def Predict(self, request: pb.PredictHttpRequest, call: Call) -> HttpBody:
        """POST /v1/predict."""
        ask = predict_from_json(self._body(request.body.data, call))
        answer = await self._predictor.predict(ask.model, ask.version, ask.row, call)
        return prediction_to_json(answer, probabilities=ask.probabilities)

    async def PredictRows(self, request: pb.PredictRowsHttpRequest, call: Call) -> HttpBody:
        """POST /v1/predict_rows."""
        ask = rows_from_json(self._body(request.body.data, call))
        results = await self._predictor.predict_rows(ask.model, ask.version, ask.rows, call)
        return rows_to_json(results, probabilities=ask.probabilities, request_id=call.request_id)

    async def ModelInfer(self, request: pb.ModelInferHttpRequest, call: Call) -> HttpBody:
        """POST /v2/models/{model_name}/infer."""
        with SharedTensors(self._oip.regions) as shared:
            ask = self._infer_ask(request, call, shared)
            answer = await self._predictor.infer(ask.request, call)
            body, json_bytes = infer_to_http(answer, ask.id, ask.form, shared.write(answer.outputs))
        if json_bytes is not None:
            call.initial_metadata[HEADER_LENGTH_KEY] = str(json_bytes)
        return body

    async def ModelMetadata(self, request: pb.ModelMetadataHttpRequest, call: Call) -> HttpBody:
        """GET /v2/models/{model_name}."""
        asked = oip_pb.ModelMetadataRequest(name=request.model_name, version=request.model_version)
        return json_body(metadata_to_dict(await self._oip.ModelMetadata(asked, call)))

    async def ModelReady(self, request: pb.ModelReadyHttpRequest, call: Call) -> HttpBody:
        """GET /v2/models/{model_name}/ready."""
        check_names(request.model_name, request.model_version, model_field="model_name")
        ready = self._catalog.is_ready(request.model_name, request.model_version)
        return _verdict(call, {"name": request.model_name, "ready": ready}, good=ready)

    async def RepositoryIndex(self, request: pb.RepositoryIndexHttpRequest, call: Call) -> HttpBody:
        """POST /v2/repository/index."""
        fields = Fields(decode_object(request.body.data or b"{}"), _INDEX_FIELDS)
        asked = repository_pb2.RepositoryIndexRequest(ready=fields.flag("ready"))
        fields.check()
        found = await self._oip.RepositoryIndex(asked, call)
        return json_body([
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in found.models
        ])  # fmt: skip

    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadHttpRequest, call: Call) -> HttpBody:
        """POST /v2/repository/models/{model_name}/load."""
        return await self._oip.RepositoryModelLoad(repository_pb2.RepositoryModelLoadRequest(), call)

    async def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadHttpRequest, call: Call) -> HttpBody:
        """POST /v2/repository/models/{model_name}/unload."""
        return await self._oip.RepositoryModelUnload(repository_pb2.RepositoryModelUnloadRequest(), call)

    async def ServerMetadata(self, request: pb.ServerMetadataHttpRequest, call: Call) -> HttpBody:
        """GET /v2."""
        return json_body(metadata_to_dict(await self._oip.ServerMetadata(oip_pb.ServerMetadataRequest(), call)))

    async def ServerLive(self, request: pb.ServerLiveHttpRequest, call: Call) -> HttpBody:
        """GET /v2/health/live."""
        return json_body({"live": True})

    async def ServerReady(self, request: pb.ServerReadyHttpRequest, call: Call) -> HttpBody:
        """GET /v2/health/ready."""
        ready = self._catalog.ready() and not self._board.draining
        return _verdict(call, {"ready": ready}, good=ready)

    async def SystemSharedMemoryStatus(self, request: pb.SystemSharedMemoryStatusHttpRequest, call: Call) -> HttpBody:
        """GET /v2/systemsharedmemory/status."""
        return json_body([
            {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.size_bytes}
            for region in self._oip.regions.listed(request.region_name)
        ])  # fmt: skip

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterHttpRequest, call: Call
    ) -> HttpBody:
        """POST /v2/systemsharedmemory/region/{region_name}/register."""
        fields = Fields(decode_object(request.body.data), _REGION_FIELDS)
        key, offset, size_bytes = fields.text("key"), fields.whole("offset"), fields.whole("byte_size")
        fields.check()
        self._oip.regions.register(request.region_name, key, offset, size_bytes)
        return json_body({})

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterHttpRequest, call: Call
    ) -> HttpBody:
        """POST /v2/systemsharedmemory/unregister."""
        self._oip.regions.unregister(request.region_name)
        return json_body({})

    async def Health(self, request: pb.HealthHttpRequest, call: Call) -> HttpBody:
        """GET /health, /health/ready, /health/startup."""
        if request.probe not in _PROBES:
            raise InvalidField([Violation("probe", "want /health, /health/ready or /health/startup, got another path")])
        good = {"": True, "ready": self._board.ready, "startup": self._catalog.configured()}[request.probe]
        return _verdict(call, {"status": "SERVING" if good else "NOT_SERVING"}, good=good)

    def _body(self, body: bytes, call: Call) -> bytes:
        encoding = call.metadata.get(CONTENT_ENCODING_KEY)
        return decoded(body, encoding, self._body_limit_bytes) if encoding else body

    def _infer_ask(self, request: pb.ModelInferHttpRequest, call: Call, shared: SharedTensors) -> InferAsk:
        model, version, body = request.model_name, request.model_version, self._body(request.body.data, call)
        check_names(model, version, model_field="model_name", version_field="model_version")
        given = call.metadata.get(HEADER_LENGTH_KEY, "")
        length = header_length(given, len(body))
        if given and length == 0:
            return infer_from_raw(model, version, body, self._catalog.describe(model, version)[1].version.signature)
        return infer_from_http(model, version, body, length, shared)


def _verdict(call: Call, value: object, *, good: bool) -> HttpBody:
    if not good:
        call.initial_metadata[HTTP_STATUS_KEY] = _UNAVAILABLE
    return json_body(value)
