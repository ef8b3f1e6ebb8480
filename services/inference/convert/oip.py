"""The Open Inference Protocol's ModelInfer, to an item and back.

The request's id is echoed; its parameters are not, an answer has parameters of its own only (none but in a stream).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from inference import grpc_service_pb2 as oip

from services.common.errors import InvalidArgument, Unimplemented, Violation, echo
from services.common.infer_sketch import Forms, answer_tail
from services.common.shared_regions import SharedMemoryOff
from services.common.shared_tensors import Written, in_regions, parameters_to_proto
from services.common.tensor_limits import TENSOR_LIMIT
from services.inference.convert.checks import (
    MAX_ELEMENTS,
    Violations,
    data_defect,
    is_plain,
    names,
    output_positions,
    plain_key,
    shape_defect,
    shown,
    text_defect,
)
from services.inference.convert.contents import UnusableContents, raw_from_contents
from services.inference.domain.failure import OutputNotFound
from services.inference.domain.item import BatchAnswer, BatchKey, Place
from services.inference.domain.tensor import BYTES, Tensor, TensorSpec, element_count
from services.inference.domain.version import VersionKey, VersionSpec

_CLASSIFICATION: Final = "classification"
_SEQUENCE: Final = "sequence_id"
_HEADS_LIMIT: Final = 1024


# Made for each request; a frozen one costs twice the time.
@dataclass(slots=True)
class InferRequest:
    """A validated request: the rows of every input in the order of the signature."""

    rows: int
    inputs: Sequence[bytes]
    key: BatchKey
    timeout_s: float | None
    """The caller's own limit beside the call's deadline."""


def infer_from_proto(
    request: oip.ModelInferRequest, version: VersionSpec, shared: Sequence[bytes] | None = None
) -> InferRequest:
    """Return the request; raises `InvalidTensors` with everything that does not fit the signature, or `OutputNotFound`.

    `shared`: the bytes of all inputs, where some tensors lie in shared memory.
    """
    plain = _at_first_sight(request, version)
    if plain is not None:
        return plain
    _check_extensions(request, is_shared=shared is not None)
    raw = list(request.raw_input_contents) if shared is None else shared
    violations = Violations()
    _check_counts(request, raw, version, violations)
    violations.raise_if_any()
    given = _by_name(request, raw, version, violations)
    violations.raise_if_any()
    inputs = [_data(spec, *given[spec.name], raw, violations) for spec in version.inputs]
    rows = _rows(version, given, violations)
    outputs = output_positions(_wanted_outputs(request, version), version.outputs, violations)
    violations.raise_if_any()
    trailing = tuple(tuple(given[spec.name][1].shape[1:]) for spec in version.inputs)
    timeout_us = _integer(request, "timeout")
    return InferRequest(
        rows=rows,
        inputs=inputs,
        key=BatchKey(outputs, trailing),
        timeout_s=timeout_us / 1e6 if timeout_us > 0 else None,
    )


def _at_first_sight(request: oip.ModelInferRequest, version: VersionSpec) -> InferRequest | None:
    """Return a request with which nothing can be wrong: every input in its place, of fixed size, and nothing besides.

    None says nothing about right or wrong: whoever looks closely tells.
    """
    raw, specs = request.raw_input_contents, version.inputs
    if request.parameters or request.outputs or not len(raw) == len(request.inputs) == len(specs):
        return None
    rows = 0
    for spec, tensor, data in zip(specs, request.inputs, raw, strict=True):
        rows = rows or (tensor.shape[0] if tensor.shape else 0)
        if tensor.name != spec.name or tensor.parameters or tensor.HasField("contents"):
            return None
        if not is_plain(spec, tensor.datatype, tensor.shape, len(data), rows):
            return None
    return InferRequest(rows, list(raw), plain_key(version), None)


@dataclass(frozen=True, slots=True)
class _Form:
    """What the descriptions of some tensors mean to a version."""

    inputs: Sequence[TensorSpec]
    """Of the version; the object itself, for another version may come under the same name."""
    rows: int
    key: BatchKey
    sizes: tuple[int, ...]
    """Bytes of each input."""


class InferForms:
    """Knows requests again whose tensors are described as in an earlier one: they need no second check."""

    def __init__(self) -> None:
        self._forms: Forms[_Form] = Forms()

    def request(self, sketch: Any, version: VersionSpec) -> InferRequest | None:
        """Return the request; None says nothing about right or wrong."""
        form = self._forms.find(sketch)
        if form is None or form.inputs is not version.inputs:
            return None
        raw = list(sketch.raw_input_contents)
        return InferRequest(form.rows, raw, form.key, None) if tuple(map(len, raw)) == form.sizes else None

    def learn(self, sketch: Any, version: VersionSpec, request: oip.ModelInferRequest) -> None:
        """Remember the descriptions of a request with which nothing can be wrong."""
        plain = _at_first_sight(request, version)
        if plain is not None:
            sizes = tuple(map(len, plain.inputs))
            self._forms.learn(sketch, _Form(version.inputs, plain.rows, plain.key, sizes))


def _wanted_outputs(request: oip.ModelInferRequest, version: VersionSpec) -> list[str]:
    known = {spec.name for spec in version.outputs}
    for index, output in enumerate(request.outputs):
        if output.name not in known:
            raise OutputNotFound(index, output.name, names(version.outputs))
    return [output.name for output in request.outputs]


class InferAnswers:
    """Answers in wire form, always with raw contents.

    What is the same in all answers of a version is made once: fields that follow each other, in any order, are one
    message to protobuf.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], bytes] = {}

    def encode(self, key: VersionKey, ident: str, answer: BatchAnswer, place: Place) -> bytes:
        """Return a ModelInferResponse with the rows of one place."""
        first, rows = place.first_row, place.item.rows
        head = answer.heads.get(rows)
        if head is None:
            form = (
                key,
                rows,
                *[(output.spec.name, output.spec.datatype, output.shape[1:]) for output in answer.outputs],
            )
            head = answer.heads[rows] = self._heads.get(form) or self._learn(form, key, rows, answer)
        return head + answer_tail(ident, answer.contents(first, rows))

    def _learn(self, form: tuple[object, ...], key: VersionKey, rows: int, answer: BatchAnswer) -> bytes:
        if len(self._heads) >= _HEADS_LIMIT:
            self._heads.clear()
        known = oip.ModelInferResponse(model_name=key.model, model_version=key.version)
        for output in answer.outputs:
            shape = (rows, *output.shape[1:])
            known.outputs.add(name=output.spec.name, datatype=output.spec.datatype, shape=shape)
        head = self._heads[form] = known.SerializeToString()
        return head


def shared_to_proto(key: VersionKey, ident: str, tensors: Sequence[Tensor], written: Written) -> oip.ModelInferResponse:
    """Return an answer of which some outputs are in shared memory; they have no contents, which keeps the places of the others."""
    answer = oip.ModelInferResponse(model_name=key.model, model_version=key.version, id=ident)
    for tensor in tensors:
        parameters = parameters_to_proto(written.get(tensor.name, {}))
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, parameters=parameters)
        answer.raw_output_contents.append(b"" if tensor.name in written else tensor.data)
    return answer


def _check_extensions(request: oip.ModelInferRequest, *, is_shared: bool) -> None:
    """Refuse what would be answered wrongly if it were ignored."""
    if _SEQUENCE in request.parameters and _is_set(request.parameters[_SEQUENCE]):
        raise Unimplemented("sequences are not offered here: send each request by itself", reason="NOT_IMPLEMENTED")
    if not is_shared and in_regions(request):
        raise SharedMemoryOff
    for output in request.outputs[:TENSOR_LIMIT]:
        if _CLASSIFICATION in output.parameters:
            raise Unimplemented(
                "the classification extension is not offered here: read the output tensor", reason="NOT_IMPLEMENTED"
            )


def _is_set(parameter: oip.InferParameter) -> bool:
    kind = parameter.WhichOneof("parameter_choice")
    return kind is not None and bool(getattr(parameter, kind))


def _integer(request: oip.ModelInferRequest, name: str) -> int:
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in {"int64_param", "uint64_param"}:
        wrong = Violation(f"parameters.{name}", f"want an integer, got {kind or 'nothing'}")
        raise InvalidArgument(f"{wrong.field}: {wrong.description}", reason="INVALID_FIELD", violations=[wrong])
    value: int = getattr(parameter, kind)
    return value


def _check_counts(
    request: oip.ModelInferRequest, raw: Sequence[bytes], version: VersionSpec, violations: Violations
) -> None:
    """Compare lengths before anything is walked: a small message can hold millions of empty parts."""
    inputs = len(request.inputs)
    if inputs > TENSOR_LIMIT:
        violations.add("inputs", f"want {len(version.inputs)}, got {inputs}")
    if raw and len(raw) != inputs:
        violations.add("raw_input_contents", f"want one entry for each of the {inputs} inputs, got {len(raw)}")
    if len(request.outputs) > TENSOR_LIMIT:
        violations.add("outputs", f"want at most {len(version.outputs)}, got {len(request.outputs)}")


def _by_name(
    request: oip.ModelInferRequest, raw: Sequence[bytes], version: VersionSpec, violations: Violations
) -> dict[str, tuple[int, Any]]:
    """Return position and tensor of every input that is right by name, datatype and shape."""
    specs = {spec.name: spec for spec in version.inputs}
    given: dict[str, tuple[int, Any]] = {}
    for position, tensor in enumerate(request.inputs):
        wanted = specs.get(tensor.name)
        if wanted is None:
            violations.add("inputs", f"want one of {names(version.inputs)}, got {echo(tensor.name)}")
        elif tensor.name in given:
            violations.add(f"inputs.{tensor.name}", "want it once, got it again")
        else:
            given[tensor.name] = (position, tensor)
            _check_form(wanted, tensor, bool(raw), violations)
    for name, spec in specs.items():
        if name not in given:
            violations.add(f"inputs.{name}", f"want {spec.datatype} {shown(spec.shape)}, got no tensor of that name")
    return given


def _check_form(spec: TensorSpec, tensor: Any, raw: bool, violations: Violations) -> None:
    if tensor.datatype != spec.datatype:
        violations.add(f"inputs.{spec.name}", f"want {spec.datatype}, got {echo(tensor.datatype)}")
        return
    defect = shape_defect(spec, tensor.shape)
    if not defect and raw and tensor.HasField("contents"):
        defect = "want values in raw_input_contents only, got contents too"
    if defect:
        violations.add(f"inputs.{spec.name}", defect)


def _data(spec: TensorSpec, position: int, tensor: Any, raw: Sequence[bytes], violations: Violations) -> bytes:
    if raw:
        data, defect = raw[position], data_defect(spec, tensor.shape, raw[position])
    else:
        data, defect = _typed(spec, tensor)
    if defect:
        violations.add(f"inputs.{spec.name}", defect)
    return data


def _typed(spec: TensorSpec, tensor: Any) -> tuple[bytes, str]:
    try:
        data = raw_from_contents(spec.datatype, tensor.contents, element_count(tensor.shape, MAX_ELEMENTS))
    except UnusableContents as unusable:
        return b"", str(unusable)
    return data, text_defect(tensor.shape, data) if spec.datatype == BYTES else ""


def _rows(version: VersionSpec, given: dict[str, tuple[int, Any]], violations: Violations) -> int:
    first = version.inputs[0]
    rows: int = given[first.name][1].shape[0]
    for spec in version.inputs[1:]:
        other = given[spec.name][1].shape[0]
        if other != rows:
            violations.add(f"inputs.{spec.name}", f"want {rows} rows as {first.name!r} has, got {other}")
    return rows
