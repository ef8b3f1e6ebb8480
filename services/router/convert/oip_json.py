"""The Open Inference Protocol over REST: JSON, and JSON with tensors behind it (the binary tensor extension)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
from google.api.httpbody_pb2 import HttpBody

from services.common.errors import Violation
from services.common.json_body import Fields, InvalidJson, decode_object, raise_violations
from services.common.rest_twin import JSON_CONTENT_TYPE
from services.common.shared_tensors import SharedTensors, Written
from services.common.tensor_limits import TENSOR_LIMIT
from services.common.wording import describe
from services.router.convert.oip import USER_ID, answer_parameters, collect, refuse_parameters
from services.router.convert.typed_values import json_from_raw, raw_from_json
from services.router.domain.failure import InvalidField, InvalidTensors
from services.router.domain.prediction import TensorAnswer, TensorRequest
from services.router.domain.rejection import Reject
from services.router.domain.signature import Signature
from services.router.domain.tensor import DATA_TYPES, Kind, Tensor, element_count, pack_bytes, show_shape

HEADER_LENGTH_KEY: Final = "inference-header-content-length"
BINARY_CONTENT_TYPE: Final = "application/octet-stream"

# The path names model and version; the KServe SDK says the model again in the body, and nobody reads it there.
_REQUEST: Final = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
_INPUT: Final = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT: Final = ("name", "parameters")
_BINARY_SIZE: Final = "binary_data_size"
_BINARY: Final = "binary_data"
_BINARY_ALL: Final = "binary_data_output"
_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Which outputs go out as raw bytes; what was said of one alone goes before what was said of all."""

    named: Mapping[str, bool]
    rest: bool

    def is_binary(self, output: str) -> bool:
        """Whether an output goes out as raw bytes."""
        return self.named.get(output, self.rest)

    def is_typed(self, output: str) -> bool:
        """Whether an output goes out as JSON."""
        return not self.is_binary(output)


@dataclass(frozen=True, slots=True)
class InferAsk:
    """An infer request over REST: the tensors, the caller's id, and the form of the outputs."""

    request: TensorRequest
    id: str
    form: OutputForm


def infer_from_http(model: str, version: str, body: bytes, header_length: int, shared: SharedTensors) -> InferAsk:
    """Return the request of a body whose first `header_length` bytes are JSON and whose rest is tensors.

    Other tensors may lie in `shared`, and outputs go there.
    """
    fields = Fields(decode_object(body[:header_length]), _REQUEST)
    request_id, parameters = fields.text("id"), fields.members("parameters")
    inputs, outputs = fields.items("inputs"), fields.items("outputs")
    if max(len(inputs), len(outputs)) > TENSOR_LIMIT:
        fields.add("inputs", f"want at most {TENSOR_LIMIT} tensors, got {max(len(inputs), len(outputs))}")
    fields.check()
    wanted, named = _outputs(outputs, shared)
    form = OutputForm(named, _flag(parameters, _BINARY_ALL, "parameters") or False)
    tensors = _inputs(inputs, body[header_length:], shared)
    request = TensorRequest(model, version, _user_id(parameters), tensors, wanted, form.is_typed)
    return InferAsk(request, request_id, form)


def infer_from_raw(model: str, version: str, body: bytes, signature: Signature) -> InferAsk:
    """Return the request of a body that is nothing but one tensor: batch 1, all outputs binary.

    Allowed for a model with one input of at most one variable dimension beside the batch.
    """
    free = [size for size in signature.inputs[0].shape[1:] if size < 0]
    if len(signature.inputs) != 1 or len(free) > 1:
        want = "want a JSON header before the tensors: only a model with one input of one free dimension goes without"
        raise InvalidTensors([Violation("inputs", want)])
    tensor = collect([(signature.inputs[0].name, partial(_whole_body, signature, body))])
    return InferAsk(TensorRequest(model, version, "", tensor), "", OutputForm({}, rest=True))


def header_length(value: str, body_bytes: int) -> int:
    """Return how many bytes of a body are JSON; all of them when the header was not sent."""
    if not value:
        return body_bytes
    if not (value.isascii() and value.isdecimal() and len(value) < 16 and int(value) <= body_bytes):
        want = f"want Inference-Header-Content-Length from 0 to {body_bytes}, got {describe(value)}"
        raise InvalidJson(want, [Violation(HEADER_LENGTH_KEY, want)])
    return int(value)


def infer_to_http(
    answer: TensorAnswer, request_id: str, form: OutputForm, written: Written
) -> tuple[HttpBody, int | None]:
    """Return the answer's body, and how many bytes of it are JSON when tensors follow."""
    tails: list[bytes] = []
    outputs = [_output(tensor, form, tails, written) for tensor in answer.outputs]
    choice = answer.choice
    head: dict[str, object] = {"model_name": choice.target.version.model, "model_version": choice.target.version.id}
    if request_id:
        head["id"] = request_id
    head.update(parameters=answer_parameters(answer), outputs=outputs)
    text = _ENCODER.encode(head)
    if not tails:
        return HttpBody(content_type=JSON_CONTENT_TYPE, data=text), None
    return HttpBody(content_type=BINARY_CONTENT_TYPE, data=b"".join((text, *tails))), len(text)


def json_body(value: object) -> HttpBody:
    """Return a value as a JSON body."""
    return HttpBody(content_type=JSON_CONTENT_TYPE, data=_ENCODER.encode(value))


def _outputs(outputs: Sequence[Any], shared: SharedTensors) -> tuple[tuple[str, ...], dict[str, bool]]:
    names: list[str] = []
    named: dict[str, bool] = {}
    for index, output in enumerate(outputs):
        fields = _object(output, _OUTPUT, f"outputs[{index}]")
        name, parameters = fields.text("name"), fields.members("parameters")
        fields.check()
        refuse_parameters(name, list(parameters), shared=True)
        binary = _flag(parameters, _BINARY, f"outputs[{index}].parameters")
        if shared.expect(name, f"outputs[{index}]", parameters):
            named[name] = True
        elif binary is not None:
            named[name] = binary
        names.append(name)
    return tuple(names), named


def _inputs(inputs: Sequence[Any], tail: bytes, shared: SharedTensors) -> tuple[Tensor, ...]:
    tensors: list[tuple[str, Tensor]] = []
    position = 0
    for index, found in enumerate(inputs):
        fields = _object(found, _INPUT, f"inputs[{index}]")
        tensor, used = _input(fields, found, tail[position:], shared)
        position += used
        tensors.append((tensor.name, tensor))
    if position != len(tail):
        raise InvalidTensors(
            [Violation("inputs", f"want {position} bytes of tensors behind the JSON, got {len(tail)}")]
        )
    return tuple(tensor for _, tensor in tensors)


def _input(fields: Fields, found: Mapping[str, Any], tail: bytes, shared: SharedTensors) -> tuple[Tensor, int]:
    name, data_type, parameters = fields.text("name"), fields.text("datatype"), fields.members("parameters")
    shape = fields.items("shape")
    if not all(type(size) is int for size in shape):
        fields.add("shape", "want whole numbers, got something else")
    fields.check()
    refuse_parameters(name, list(parameters), shared=True)
    data = shared.read(f"inputs.{name}", parameters)
    if data is not None:
        _refuse_other_data(name, fields, parameters)
        return collect([(name, partial(_binary_tensor, name, data_type, shape, data))])[0], 0
    if _BINARY_SIZE in parameters:
        size_bytes = _binary_size(name, parameters[_BINARY_SIZE], len(tail), has_data=fields.has("data"))
        return collect([(name, partial(_binary_tensor, name, data_type, shape, tail[:size_bytes]))])[0], size_bytes
    return collect([(name, partial(_typed_tensor, name, data_type, shape, found.get("data")))])[0], 0


def _typed_tensor(name: str, data_type: str, shape: Sequence[int], data: object) -> Tensor:
    return Tensor(name, data_type, tuple(shape), raw_from_json(data_type, shape, data))


def _binary_tensor(name: str, data_type: str, shape: Sequence[int], data: bytes) -> Tensor:
    if data_type not in DATA_TYPES:
        raise Reject(f"want a datatype of the protocol, such as FP32, got {describe(data_type)}")
    element_count(shape)
    return Tensor(name, data_type, tuple(shape), data)


def _refuse_other_data(name: str, fields: Fields, parameters: Mapping[str, Any]) -> None:
    if fields.has("data") or _BINARY_SIZE in parameters:
        raise InvalidTensors([Violation(f"inputs.{name}", "want either shared memory or data of the body, got both")])


def _binary_size(name: str, value: object, left_bytes: int, *, has_data: bool) -> int:
    place = f"inputs.{name}.parameters.{_BINARY_SIZE}"
    if has_data:
        raise InvalidTensors([Violation(place, "want either data or binary_data_size, got both")])
    if type(value) is not int or not 0 <= value <= left_bytes:
        want = f"want a whole number of bytes from 0 to the {left_bytes} that are left, got {describe(value)}"
        raise InvalidTensors([Violation(place, want)])
    return value


def _whole_body(signature: Signature, body: bytes) -> Tensor:
    spec = signature.inputs[0]
    data_type = DATA_TYPES[spec.data_type]
    fixed = element_count([size for size in spec.shape[1:] if size >= 0])
    if data_type.kind is Kind.BYTES:
        if fixed != 1:
            raise Reject(f"want a JSON header: only one element of BYTES goes without, the shape is {spec.shape}")
        return Tensor(spec.name, spec.data_type, tuple(1 for _ in spec.shape), pack_bytes([body]))
    step = fixed * data_type.size_bytes
    free = len(body) // step if step else 0
    shape = (1, *(free if size < 0 else size for size in spec.shape[1:]))
    want = element_count(shape) * data_type.size_bytes
    if len(body) != want or not body:
        raise Reject(
            f"want {want or step} bytes of {data_type.name} for the shape {show_shape(shape)}, got {len(body)}"
        )
    return Tensor(spec.name, spec.data_type, shape, body)


def _output(tensor: Tensor, form: OutputForm, tails: list[bytes], written: Written) -> dict[str, object]:
    found: dict[str, object] = {"name": tensor.name, "datatype": tensor.data_type, "shape": tensor.shape}
    if tensor.name in written:
        found["parameters"] = written[tensor.name]
        return found
    if form.is_binary(tensor.name):
        tails.append(tensor.data)
        found["parameters"] = {_BINARY_SIZE: len(tensor.data)}
        return found
    try:
        found["data"] = json_from_raw(tensor)
    except Reject as reject:
        raise InvalidTensors([Violation(f"outputs.{tensor.name}", str(reject))]) from None
    return found


def _object(value: object, known: tuple[str, ...], path: str) -> Fields:
    if not isinstance(value, dict):
        raise_violations([Violation(path, f"want an object, got {describe(value)}")])
        return Fields({}, known, path)
    return Fields(value, known, path)


def _flag(parameters: Mapping[str, Any], name: str, path: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidField([Violation(f"{path}.{name}", f"want true or false, got {describe(value)}")])
    return value


def _user_id(parameters: Mapping[str, Any]) -> str:
    value = parameters.get(USER_ID, "")
    if not isinstance(value, str):
        raise InvalidField([Violation(f"parameters.{USER_ID}", f"want a text, got {describe(value)}")])
    return value
