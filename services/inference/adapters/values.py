"""Raw tensor bytes to the runtime's arrays and back. Fixed-size elements are not copied on the way in."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.inference.domain.frame import Buffer
from services.inference.domain.tensor import BYTES

_DTYPES: Final[dict[str, Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}


def array_from_bytes(datatype: str, shape: Sequence[int], data: Buffer) -> NDArray[Any]:
    """Return the array; of BF16 the bit patterns, of BYTES an object array of texts. Raises `ValueError`."""
    if datatype != BYTES:
        return np.frombuffer(data, dtype=_DTYPES[datatype]).reshape(shape)
    array = np.empty(int(np.prod(shape, dtype=object)), dtype=object)
    view, offset = memoryview(data), 0
    for index in range(array.size):
        start = offset + 4
        offset = start + int.from_bytes(view[offset:start], "little")
        array[index] = bytes(view[start:offset]).decode("utf-8")
    return array.reshape(shape)


def bytes_from_array(datatype: str, array: NDArray[Any]) -> Buffer:
    """Return the elements as they travel. Raises `ValueError` when the array has another element type."""
    if datatype != BYTES:
        if array.dtype != _DTYPES[datatype]:
            raise ValueError(f"want {datatype}, got {array.dtype}")
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""
    parts = []
    for element in array.reshape(-1).tolist():
        value = element if isinstance(element, bytes) else str(element).encode("utf-8", "surrogatepass")
        parts.append(len(value).to_bytes(4, "little"))
        parts.append(value)
    return b"".join(parts)


def zeros(datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Return a tensor of zeros, or of empty texts."""
    if datatype == BYTES:
        return np.full(tuple(shape), "", dtype=object)
    return np.zeros(tuple(shape), dtype=_DTYPES[datatype])


def differences(want: NDArray[Any], got: NDArray[Any], absolute: float, relative: float) -> NDArray[np.bool_]:
    """Return where |got - want| > absolute + relative * |want|; texts and truth values must be equal, NaN equals NaN."""
    if want.dtype.kind not in "iuf":
        return np.asarray(want != got, dtype=np.bool_)
    wanted, given = want.astype(np.float64), got.astype(np.float64)
    same = (wanted == given) | (np.isnan(wanted) & np.isnan(given))
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(given - wanted) <= absolute + relative * np.abs(wanted)
    finite = np.isfinite(wanted) & np.isfinite(given)
    return np.asarray(~(same | (near & finite)), dtype=np.bool_)


def widen_bf16(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Return bfloat16 bit patterns as the numbers that they stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
