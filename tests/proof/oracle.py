"""A model whose answer names the row and the version it belongs to, so that no mix-up can look right.

    answer(version, row) = row.id * 2**20 + (row.payload * a(version) + b(version)) mod 2**20

in whole numbers, as an ONNX graph. `row.poison` = 1 makes the model itself raise; `row.turns` makes the whole batch as
slow as one likes.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from interlock.registry.v1.model_version_pb2 import RUNTIME_ONNX, ModelFile, ModelVersion
from interlock.types.v1.signature_pb2 import FEATURE_TYPE_INT64, TASK_REGRESSION, FeatureSpec, PredictionSpec, Signature
from interlock.types.v1.tensor_pb2 import DATA_TYPE_INT64, TensorSpec
from onnx import TensorProto, helper

COLUMNS: Final = ("id", "payload", "poison", "turns")
_MIXED: Final = 1 << 20
PAYLOADS: Final = _MIXED


class Row(NamedTuple):
    """One row that is asked about; `id` is unique in a run."""

    id: int
    payload: int
    poison: int = 0
    turns: int = 0


def answer(version: int, row: Row) -> int:
    """Return what a version of the oracle says of a row."""
    scale, shift = _mix(version)
    return row.id * _MIXED + (row.payload * scale + shift) % _MIXED


def owner(value: int) -> int:
    """Return the id of the row that an answer belongs to."""
    return value // _MIXED


def packed(rows: Iterable[Row]) -> bytes:
    """Return rows as the little-endian buffer of the model's input, int64 [rows, 4]."""
    return np.array(list(rows), "<i8").tobytes()


def model(version: int) -> bytes:
    """Return the oracle as an ONNX file."""
    scale, shift = _mix(version)
    numbers = {"mixed": _MIXED, "scale": scale, "shift": shift, "c0": 0, "c1": 1, "c2": 2, "c3": 3}
    constants = [helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in numbers.items()]
    constants += [
        helper.make_tensor("only_zero", TensorProto.INT64, [1], [0]),
        helper.make_tensor("column", TensorProto.INT64, [1], [1]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
    ]
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["carried"], ["carried_on"])],
        "turn",
        [
            _value("turn_number", TensorProto.INT64),
            _value("go", TensorProto.BOOL),
            _value("carried", TensorProto.INT64),
        ],
        [_value("go_on", TensorProto.BOOL), _value("carried_on", TensorProto.INT64)],
    )
    nodes = [
        *(helper.make_node("Gather", ["x", f"c{at}"], [name], axis=1) for at, name in enumerate(COLUMNS)),
        # A table of one: index 1 lies outside, and the run fails.
        helper.make_node("Gather", ["only_zero", "poison"], ["nothing"]),
        helper.make_node("ReduceMax", ["turns"], ["most_turns"], keepdims=0),
        helper.make_node("Loop", ["most_turns", "yes", "c0"], ["none"], body=turn),
        helper.make_node("Mul", ["payload", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        helper.make_node("Mod", ["shifted", "mixed"], ["low"]),
        helper.make_node("Mul", ["id", "mixed"], ["high"]),
        helper.make_node("Add", ["high", "low"], ["both"]),
        helper.make_node("Add", ["both", "nothing"], ["checked"]),
        helper.make_node("Add", ["checked", "none"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "column"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "oracle",
        [_value("x", TensorProto.INT64, None, len(COLUMNS))],
        [_value("y", TensorProto.INT64, None, 1)],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = made.SerializeToString()
    return content


def described(digest: str, size_bytes: int) -> ModelVersion:
    """Return what is registered of a version whose file has been uploaded: tensors, and the same columns as features."""
    features = [
        FeatureSpec(name=name, type=FEATURE_TYPE_INT64, tensor="x", column=at) for at, name in enumerate(COLUMNS)
    ]
    signature = Signature(
        inputs=[_spec("x", len(COLUMNS))],
        outputs=[_spec("y", 1)],
        features=features,
        prediction=PredictionSpec(task=TASK_REGRESSION, tensor="y"),
    )
    files = [ModelFile(path="model.onnx", digest=digest, size_bytes=size_bytes)]
    return ModelVersion(runtime=RUNTIME_ONNX, files=files, signature=signature)


def _mix(version: int) -> tuple[int, int]:
    return 40_503 * (2 * version + 1), 7_919 * version


def _spec(name: str, columns: int) -> TensorSpec:
    return TensorSpec(name=name, data_type=DATA_TYPE_INT64, shape=[-1, columns])


def _value(name: str, kind: int, *shape: int | None) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))
