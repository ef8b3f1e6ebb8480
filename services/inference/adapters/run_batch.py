"""One batch through a model: raw tensors in, raw tensors and the nanoseconds in the model out, or why not."""

import time
from collections.abc import Sequence

from services.inference.adapters.onnx_model import OnnxModel, RunInterrupted, RunOutOfMemory, RunRefused
from services.inference.adapters.values import array_from_bytes, bytes_from_array
from services.inference.domain.frame import Failure, FrameTensor, RunFailure


def run_batch(
    model: OnnxModel, outputs: Sequence[int], tensors: Sequence[FrameTensor]
) -> tuple[list[FrameTensor], int] | RunFailure:
    """Return the outputs, by position, of tensors that are in one piece each. Whatever happens is a result."""
    try:
        arrays = [array_from_bytes(tensor.datatype, tensor.shape, tensor.parts[0]) for tensor in tensors]
        started = time.perf_counter_ns()
        answers = model.run(outputs, arrays)
        compute_ns = time.perf_counter_ns() - started
    except RunInterrupted:
        return RunFailure(Failure.INTERRUPTED, "")
    except (RunOutOfMemory, MemoryError):
        return RunFailure(Failure.OUT_OF_MEMORY, "")
    except RunRefused as error:
        return RunFailure(Failure.MODEL_REFUSED, str(error))
    try:
        answered = []
        for position, array in zip(outputs, answers, strict=True):
            datatype = model.outputs[position].datatype
            answered.append(FrameTensor(datatype, array.shape, (bytes_from_array(datatype, array),)))
    except (ValueError, TypeError, AttributeError) as error:
        return RunFailure(Failure.BAD_OUTPUT, str(error))
    except MemoryError:
        return RunFailure(Failure.OUT_OF_MEMORY, "")
    return answered, compute_ns
