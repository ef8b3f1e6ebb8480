"""What a model gave for a batch, checked before anybody is answered."""

from collections.abc import Sequence

from services.inference.domain.frame import Failure, FrameTensor, RunFailure
from services.inference.domain.item import BatchAnswer, OutputData
from services.inference.domain.tensor import BYTES, TensorSpec, row_size_bytes


def batch_answer(
    specs: Sequence[TensorSpec], tensors: Sequence[FrameTensor], rows: int, compute_s: float
) -> BatchAnswer | RunFailure:
    """Return the answer of a batch, or what is wrong with it: nothing is answered before rows out are rows in."""
    outputs = []
    for spec, tensor in zip(specs, tensors, strict=True):
        wrong = _output_defect(spec, tensor, rows)
        if wrong:
            return RunFailure(Failure.BAD_OUTPUT, f"output {spec.name!r}: {wrong}")
        outputs.append(OutputData(spec, tensor.shape, bytes(tensor.parts[0])))
    return BatchAnswer(rows, outputs, compute_s)


def _output_defect(spec: TensorSpec, tensor: FrameTensor, rows: int) -> str:
    """Return what is wrong with an output, or an empty string: rows out must be rows in before anybody is answered."""
    shape = tensor.shape
    if tensor.datatype != spec.datatype:
        return f"want {spec.datatype}, got {tensor.datatype}"
    if len(shape) != len(spec.shape) or any(
        want not in {-1, got} for want, got in zip(spec.trailing, shape[1:], strict=True)
    ):
        return f"want shape {[rows, *spec.trailing]}, got {list(shape)}"
    if shape[0] != rows:
        return f"want {rows} rows, got {shape[0]}"
    size = len(tensor.parts[0])
    if spec.datatype != BYTES and size != rows * row_size_bytes(spec.datatype, shape[1:]):
        return f"want {rows} rows of {row_size_bytes(spec.datatype, shape[1:])} bytes, got {size} bytes"
    return ""
