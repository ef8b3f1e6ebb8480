"""The Open Inference Protocol's messages as the domain's tensors, and back."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from inference import grpc_service_pb2 as oip_pb

from services.common.errors import Violation, echo
from services.common.infer_sketch import Forms, answer_tail
from services.common.shared_regions import SharedMemoryOff
from services.common.shared_tensors import REGION, Written, parameters_to_proto
from services.common.tensor_limits import TENSOR_LIMIT
from services.router.convert.request import check_names
from services.router.convert.typed_values import raw_from_numbers, typed_data_type
from services.router.domain.failure import InvalidField, InvalidTensors
from services.router.domain.prediction import TensorAnswer, TensorRequest
from services.router.domain.rejection import Reject
from services.router.domain.signature import TensorSpec
from services.router.domain.tensor import DATA_TYPES, DataType, Kind, Tensor, element_count, pack_bytes

USER_ID: Final = "user_id"
_PREDICTION_ID: Final = "prediction_id"
_HEADS_LIMIT: Final = 1024
# Parameters that change what an answer means; ignoring them would answer something else than was asked.
_UNSUPPORTED: Final = frozenset({"classification"})
_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def infer_from_proto(request: oip_pb.ModelInferRequest, raw: Sequence[bytes] | None = None) -> TensorRequest:
    """Return the request; raises InvalidArgument with everything that is wrong, before anything is allocated for it.

    `raw`: the bytes of all inputs, where some of them lie in shared memory.
    """
    check_names(request.model_name, request.model_version, model_field="model_name", version_field="model_version")
    if len(request.inputs) > TENSOR_LIMIT or len(request.outputs) > TENSOR_LIMIT:
        count = max(len(request.inputs), len(request.outputs))
        raise InvalidTensors([Violation("inputs", f"want at most {TENSOR_LIMIT} tensors, got {count}")])
    for tensor in request.inputs:
        if tensor.parameters:
            refuse_parameters(tensor.name, list(tensor.parameters), shared=raw is not None)
    for output in request.outputs:
        if output.parameters:
            refuse_parameters(output.name, list(output.parameters), shared=raw is not None)
    raw = raw or request.raw_input_contents
    return TensorRequest(
        model=request.model_name,
        version=request.model_version,
        user_id=_user_id(request.parameters) if request.parameters else "",
        inputs=_raw_inputs(request, raw) if raw else _typed_inputs(request),
        outputs=tuple([output.name for output in request.outputs]),
    )


class InferForms:
    """Knows requests again whose tensors are described as in an earlier one: they need not be taken apart."""

    def __init__(self) -> None:
        self._forms: Forms[Sequence[tuple[str, str, tuple[int, ...]]]] = Forms()

    def request(self, sketch: Any) -> TensorRequest | None:
        """Return the request; None says nothing about right or wrong."""
        described, raw = self._forms.find(sketch), sketch.raw_input_contents
        if described is None or len(raw) != len(described):
            return None
        inputs = tuple([Tensor(*form, data) for form, data in zip(described, raw, strict=True)])
        return TensorRequest(sketch.model_name, sketch.model_version, "", inputs)

    def learn(self, sketch: Any, request: oip_pb.ModelInferRequest) -> None:
        """Remember how a request that was answered describes its tensors."""
        is_raw = len(request.raw_input_contents) == len(request.inputs)
        if is_raw and not any(tensor.parameters for tensor in request.inputs):
            described = [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in request.inputs]
            self._forms.learn(sketch, described)


def infer_to_proto(
    answer: TensorAnswer, request_id: str, written: Written = MappingProxyType({})
) -> oip_pb.ModelInferResponse:
    """Return the answer with raw contents and the request's own id.

    An output that was written into shared memory has no contents, which keeps the places of the others.
    """
    return oip_pb.ModelInferResponse(
        model_name=answer.choice.target.version.model,
        model_version=answer.choice.target.version.id,
        id=request_id,
        parameters={name: _parameter(value) for name, value in answer_parameters(answer).items()},
        outputs=[
            oip_pb.ModelInferResponse.InferOutputTensor(
                name=tensor.name,
                datatype=tensor.data_type,
                shape=tensor.shape,
                parameters=parameters_to_proto(written.get(tensor.name, {})),
            )
            for tensor in answer.outputs
        ],
        raw_output_contents=[b"" if tensor.name in written else tensor.data for tensor in answer.outputs],
    )


class InferAnswers:
    """Answers in wire form. What is the same in all answers of a version is made once, for protobuf joins messages.

    Fields that follow each other, in any order, are one message: the part that is known, the id of the prediction at the
    end of the last parameter, and then what is new in every answer.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], bytes] = {}

    def encode(self, answer: TensorAnswer, request_id: str) -> bytes:
        """Return the same message as `infer_to_proto` does, as bytes."""
        if len(answer.ids) != 1:
            return infer_to_proto(answer, request_id).SerializeToString()
        choice, version = answer.choice, answer.choice.target.version
        forms = [(tensor.name, tensor.data_type, tensor.shape) for tensor in answer.outputs]
        key = (
            version.model, version.id, choice.target.deployment.name, choice.variant, choice.assignment, choice.epoch,
            *forms,
        )  # fmt: skip
        head = self._heads.get(key) or self._learn(key, answer)
        tail = answer_tail(request_id, [tensor.data for tensor in answer.outputs])
        return b"".join((head, str(answer.ids[0]).encode(), tail))

    def _learn(self, key: tuple[object, ...], answer: TensorAnswer) -> bytes:
        if len(self._heads) >= _HEADS_LIMIT:
            self._heads.clear()
        known = infer_to_proto(answer, "")
        del known.raw_output_contents[:]
        del known.parameters[_PREDICTION_ID]
        last = oip_pb.ModelInferResponse(parameters={_PREDICTION_ID: _parameter(str(answer.ids[0]))})
        head = known.SerializeToString() + last.SerializeToString()[: -len(str(answer.ids[0]))]
        self._heads[key] = head
        return head


def answer_parameters(answer: TensorAnswer) -> dict[str, str | int]:
    """Return who answered and how it was chosen; the prediction's id where there is one row only."""
    choice = answer.choice
    found: dict[str, str | int] = {
        "variant": choice.variant,
        "served_by": choice.target.deployment.name,
        "assignment": choice.assignment.value,
        "config_epoch": choice.epoch,
    }
    if len(answer.ids) == 1:
        found[_PREDICTION_ID] = str(answer.ids[0])
    return found


def tensor_metadata(specs: Sequence[TensorSpec]) -> list[oip_pb.ModelMetadataResponse.TensorMetadata]:
    """Return tensors as metadata."""
    return [
        oip_pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.data_type, shape=spec.shape)
        for spec in specs
    ]


def metadata_to_dict(response: oip_pb.ModelMetadataResponse | oip_pb.ServerMetadataResponse) -> dict[str, object]:
    """Return metadata as the protocol's JSON: sizes are numbers, and what is never set is left out."""
    found: dict[str, object] = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    found.pop("properties", None)
    for tensors in (found.get("inputs"), found.get("outputs")):
        for tensor in tensors if isinstance(tensors, list) else ():
            tensor["shape"] = [int(size) for size in tensor["shape"]]
    return found


def refuse_parameters(tensor: str, names: Sequence[str], *, shared: bool) -> None:
    """Refuse parameters of extensions that this server does not offer and that change the answer.

    `shared` tells that whoever calls has seen to those of shared memory.
    """
    if REGION in names and not shared:
        raise SharedMemoryOff
    for name in names:
        if name in _UNSUPPORTED:
            raise InvalidTensors([Violation(f"{tensor}.parameters.{name}", "want no such parameter: not offered here")])


def collect(fields: Sequence[tuple[str, Callable[[], Tensor]]]) -> tuple[Tensor, ...]:
    """Return the tensors that the readers give; raises InvalidTensors with what each of them rejects."""
    tensors: list[Tensor] = []
    violations: list[Violation] = []
    for name, read in fields:
        try:
            tensors.append(read())
        except Reject as reject:
            violations.append(Violation(f"inputs.{name}", str(reject)))
    if violations:
        raise InvalidTensors(violations)
    return tuple(tensors)


def _user_id(parameters: Mapping[str, oip_pb.InferParameter]) -> str:
    if USER_ID not in parameters:
        return ""
    if parameters[USER_ID].WhichOneof("parameter_choice") != "string_param":
        raise InvalidField([Violation("parameters.user_id", "want a text, got another kind of value")])
    return parameters[USER_ID].string_param


def _raw_inputs(request: oip_pb.ModelInferRequest, raw: Sequence[bytes]) -> tuple[Tensor, ...]:
    if len(raw) != len(request.inputs):
        want = f"want {len(request.inputs)} entries, one for each input, got {len(raw)}"
        raise InvalidTensors([Violation("raw_input_contents", want)])
    pairs = list(zip(request.inputs, raw, strict=True))
    try:
        return tuple([_raw_tensor(tensor, data) for tensor, data in pairs])
    except Reject:
        # Again, for everything that is wrong and not the first of it only.
        return collect([(tensor.name, partial(_raw_tensor, tensor, data)) for tensor, data in pairs])


def _raw_tensor(tensor: oip_pb.ModelInferRequest.InferInputTensor, data: bytes) -> Tensor:
    if tensor.HasField("contents"):
        raise Reject("want no contents beside raw_input_contents, got both")
    if tensor.datatype not in DATA_TYPES:
        raise Reject(f"want a datatype of the protocol, such as FP32, got {echo(tensor.datatype)}")
    return Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)


def _typed_inputs(request: oip_pb.ModelInferRequest) -> tuple[Tensor, ...]:
    return collect([(tensor.name, partial(_typed_tensor, tensor)) for tensor in request.inputs])


def _typed_tensor(tensor: oip_pb.ModelInferRequest.InferInputTensor) -> Tensor:
    data_type = typed_data_type(tensor.datatype)
    count = element_count(tensor.shape)
    wanted = _CONTENTS[data_type.name]
    others = [field.name for field, _ in tensor.contents.ListFields() if field.name != wanted]
    if others:
        raise Reject(f"want {data_type.name} values in {wanted}, got {others[0]}")
    values = getattr(tensor.contents, wanted)
    if len(values) != count:
        raise Reject(f"want {count} values in {wanted} for the shape, got {len(values)}")
    return Tensor(tensor.name, data_type.name, tuple(tensor.shape), _raw(data_type, values))


def _raw(data_type: DataType, values: Sequence[object]) -> bytes:
    if data_type.kind is Kind.BYTES:
        return pack_bytes([value for value in values if isinstance(value, bytes)])
    return raw_from_numbers(data_type, values)


def _parameter(value: str | int) -> oip_pb.InferParameter:
    if isinstance(value, str):
        return oip_pb.InferParameter(string_param=value)
    return oip_pb.InferParameter(int64_param=value)
