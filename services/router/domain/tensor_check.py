"""Checking tensors that callers send against the signature: counts and shapes first, bytes last, nothing allocated."""

from collections.abc import Callable, Sequence

from services.common.errors import Violation, echo
from services.common.tensor_limits import DIMENSION_LIMIT, TENSOR_LIMIT
from services.common.wording import did_you_mean
from services.router.domain.failure import InvalidTensors, OutputNotFound
from services.router.domain.rejection import Reject
from services.router.domain.signature import Signature, TensorSpec
from services.router.domain.tensor import (
    DATA_TYPES,
    RAW_ONLY,
    Tensor,
    check_raw,
    element_count,
    no_typed_form,
    show_shape,
)


def check_inputs(signature: Signature, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], int]:
    """Return the tensors in the signature's order and their number of rows.

    Raises InvalidTensors with everything that does not fit, each with what was wanted and what came.
    """
    rows = _rows_if_plain(signature, tensors)
    if rows:
        return tuple(tensors), rows
    if len(tensors) > TENSOR_LIMIT:
        raise InvalidTensors([Violation("inputs", f"want {len(signature.inputs)} tensors, got {len(tensors)}")])
    given = {tensor.name: tensor for tensor in tensors}
    violations = _name_violations(signature, tensors)
    for spec in signature.inputs:
        if spec.name in given:
            violations += _tensor_violations(spec, given[spec.name])
    if violations:
        raise InvalidTensors(violations)
    ordered = tuple(given[spec.name] for spec in signature.inputs)
    return ordered, _rows(ordered)


def check_outputs(signature: Signature, names: Sequence[str], is_typed: Callable[[str], bool] | None) -> None:
    """Refuse a requested output that the signature does not have, that is asked for twice, or that has no typed form.

    No names mean all outputs; `is_typed` tells which ones the caller wants as typed values instead of raw bytes, None
    that it wants none.
    """
    known = [spec.name for spec in signature.outputs]
    if len(names) > TENSOR_LIMIT or len(set(names)) != len(names):
        raise InvalidTensors([Violation("outputs", "want each output once, got one more than once")])
    for index, name in enumerate(names):
        if name not in known:
            raise OutputNotFound(index, name, known, did_you_mean(name, known))
    if is_typed is None:
        return
    for spec in signature.outputs:
        if spec.data_type in RAW_ONLY and (not names or spec.name in names) and is_typed(spec.name):
            raise InvalidTensors([Violation(f"outputs.{spec.name}", no_typed_form(spec.data_type))])


def check_shape(spec: TensorSpec, data_type: str, shape: Sequence[int]) -> int:
    """Return the number of elements of an input with this type and shape; `Reject` when the signature has another."""
    if data_type != spec.data_type:
        raise Reject(f"want the datatype {spec.data_type}, got {echo(data_type)}")
    count = element_count(shape)
    fits = len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True))
    if not fits:
        raise Reject(f"want the shape {show_shape(spec.shape)}, got {show_shape(shape)}")
    if shape[0] < 1:
        raise Reject("want at least 1 row, got 0")
    return count


def _rows_if_plain(signature: Signature, tensors: Sequence[Tensor]) -> int:
    """Return the number of rows where nothing is wrong at first sight: every tensor in its place, of fixed size.

    0 says nothing about right or wrong: whoever looks closely tells.
    """
    if len(tensors) != len(signature.inputs) or not tensors[0].shape:
        return 0
    rows = tensors[0].shape[0]
    for spec, tensor in zip(signature.inputs, tensors, strict=True):
        if (
            tensor.name != spec.name
            or tensor.data_type != spec.data_type
            or tensor.shape[1:] != spec.shape[1:]
            or tensor.shape[0] != rows
            or spec.row_bytes == 0
            or len(tensor.data) != rows * spec.row_bytes
        ):
            return 0
    return rows if 0 < rows <= DIMENSION_LIMIT else 0


def _name_violations(signature: Signature, tensors: Sequence[Tensor]) -> list[Violation]:
    known = [spec.name for spec in signature.inputs]
    found: list[Violation] = []
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            found.append(Violation(f"inputs.{tensor.name}", "want each input once, got it more than once"))
        elif tensor.name not in known:
            hint = did_you_mean(tensor.name, known)
            found.append(Violation(f"inputs.{tensor.name}", f"want an input of the model, got an unknown name{hint}"))
        seen.add(tensor.name)
    missing = [name for name in known if name not in seen]
    return found + [
        Violation(f"inputs.{name}", "want a tensor, got nothing: the input is required") for name in missing
    ]


def _tensor_violations(spec: TensorSpec, tensor: Tensor) -> list[Violation]:
    try:
        count = check_shape(spec, tensor.data_type, tensor.shape)
        check_raw(DATA_TYPES[tensor.data_type], count, tensor.data)
    except Reject as reject:
        return [Violation(f"inputs.{spec.name}", str(reject))]
    return []


def _rows(tensors: Sequence[Tensor]) -> int:
    rows = tensors[0].shape[0]
    for tensor in tensors:
        if tensor.shape[0] != rows:
            want = f"want {rows} rows as in {tensors[0].name}, got {tensor.shape[0]}"
            raise InvalidTensors([Violation(f"inputs.{tensor.name}", want)])
    return rows
