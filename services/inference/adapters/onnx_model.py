"""A version in ONNX Runtime: its session, one run, and how its real tensors compare with the signature."""

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from services.common.cpus import thread_count
from services.inference.adapters.load_plan import LoadPlan, LoadRefused, plain_text
from services.inference.adapters.onnx_check import read_model
from services.inference.domain.tensor import TensorSpec

_BF16_NUMBER: Final = 16  # onnx.TensorProto.BFLOAT16
_FATAL_ONLY: Final = 4
_NO_MEMORY: Final = re.compile(
    r"bad_alloc|[Ff]ailed to allocate|BFCArena|out of memory|OUT_OF_MEMORY|Available memory of"
)
_DATATYPES: Final[Mapping[str, str]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    "tensor(bfloat16)": "BF16",
}


class RunRefused(Exception):
    """The model raised on these values. The text is for people."""


class RunOutOfMemory(RunRefused):
    """There was no memory for a batch of this size."""


class RunInterrupted(Exception):
    """The run was stopped because nobody waits for it."""


class OnnxModel:
    """One loaded model. Runs are made by one thread; `interrupt` may come from another."""

    def __init__(self, plan: LoadPlan) -> None:
        self.inputs = plan.inputs
        self.outputs = plan.outputs
        self._session = _open_session(plan)
        self._options: ort.RunOptions | None = None
        _check_signature(self._session, plan)
        # numpy has no bfloat16: such a model takes the runtime's own values instead of arrays.
        self._own_values = any(spec.datatype == "BF16" for spec in (*plan.inputs, *plan.outputs))

    def run(self, outputs: Sequence[int], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the named outputs. Raises `RunRefused`, `RunOutOfMemory` or `RunInterrupted`."""
        names = [self.outputs[index].name for index in outputs]
        feed = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        options = self._options = ort.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        try:
            if self._own_values:
                return self._run_own_values(names, feed, options)
            return list(self._session.run(names, feed, options))
        except Exception as error:  # noqa: BLE001 - the runtime raises many kinds, and a batch must not end the process
            if options.terminate:
                raise RunInterrupted from None
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise RunOutOfMemory from None
            raise RunRefused(_refusal_text(error)) from None
        finally:
            self._options = None

    def interrupt(self) -> None:
        """Stop the run under way, if there is one."""
        options = self._options
        if options is not None:
            options.terminate = True

    def _run_own_values(
        self, names: Sequence[str], feed: Mapping[str, NDArray[Any]], options: ort.RunOptions
    ) -> list[NDArray[Any]]:
        values = {spec.name: _own_value(spec, feed[spec.name]) for spec in self.inputs}
        return [_array(value) for value in self._session.run_with_ort_values(names, values, options)]


def _open_session(plan: LoadPlan) -> ort.InferenceSession:
    data, external = read_model(plan.files)
    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count(plan.intra_op_threads)
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    # A thread that spins for work takes the processor from the front end and from other versions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    source = str(plan.files[0].local) if external else data
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - whatever it is, the version cannot be loaded
        raise LoadRefused(f"the runtime cannot load the model: {plain_text(error)}") from None


def _check_signature(session: ort.InferenceSession, plan: LoadPlan) -> None:
    """Compare names, datatypes and ranks. Outputs that the signature does not name are left alone."""
    real_inputs = {node.name: node for node in session.get_inputs()}
    real_outputs = {node.name: node for node in session.get_outputs()}
    wanted = sorted(spec.name for spec in plan.inputs)
    if wanted != sorted(real_inputs):
        raise LoadRefused(f"the signature does not fit the model: want inputs {wanted}, got {sorted(real_inputs)}")
    for spec in plan.inputs:
        _check_tensor("input", spec, real_inputs[spec.name])
        _check_batch_dimension(spec, real_inputs[spec.name], plan.batch_sizes)
    for spec in plan.outputs:
        if spec.name not in real_outputs:
            raise LoadRefused(
                f"the signature does not fit the model: want output {spec.name!r}, got outputs {sorted(real_outputs)}"
            )
        _check_tensor("output", spec, real_outputs[spec.name])


def _check_tensor(kind: str, spec: TensorSpec, node: Any) -> None:
    where = f"the signature does not fit the model: {kind} {spec.name!r}: want"
    datatype = _DATATYPES.get(node.type, node.type)
    if datatype != spec.datatype:
        raise LoadRefused(f"{where} {spec.datatype}, got {datatype}")
    real = [size if isinstance(size, int) else -1 for size in node.shape]
    same_rank = len(real) == len(spec.shape)
    # The runtime reports no shape at all for an output whose rank it could not infer.
    if kind == "output" and not real:
        return
    if not same_rank or any(-1 not in {a, b} and a != b for a, b in zip(spec.shape[1:], real[1:], strict=True)):
        raise LoadRefused(f"{where} shape {list(spec.shape)}, got {real}")


def _check_batch_dimension(spec: TensorSpec, node: Any, sizes: Sequence[int]) -> None:
    size = node.shape[0]
    if isinstance(size, int) and tuple(sizes) != (size,):
        raise LoadRefused(
            f"input {spec.name!r} takes exactly {size} rows: want a variable first dimension, or max_batch_size {size} "
            f"and batch_sizes [{size}], got batches of {sizes[0]} to {sizes[-1]} rows"
        )


def _refusal_text(error: BaseException) -> str:
    text = plain_text(error)
    return text.rsplit("Status Message: ", maxsplit=1)[-1]


def _own_value(spec: TensorSpec, array: NDArray[Any]) -> Any:
    if spec.datatype == "BF16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BF16_NUMBER)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: Any) -> NDArray[Any]:
    if value.data_type() != "tensor(bfloat16)":
        array: NDArray[Any] = value.numpy()
        return array
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, dtype="<u2").reshape(value.shape())
