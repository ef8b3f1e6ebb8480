"""Small real ONNX models whose answers are a pure function of each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

OPSET = 20


def _model(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], initializers: Sequence[Any] = ()
) -> bytes:
    graph = helper.make_graph(list(nodes), "model", list(inputs), list(outputs), list(initializers))
    opsets = [
        helper.make_opsetid("", OPSET),
        *(
            {
                helper.make_opsetid(n.domain, 1).domain: helper.make_opsetid(n.domain, 1) for n in nodes if n.domain
            }.values()
        ),
    ]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def _value(name: str, kind: int, *shape: int | None) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


def oracle(columns: int = 2) -> bytes:
    """y = 2 * x + 1, exact for small whole numbers: a mixed-up answer is a wrong one."""
    constants = [
        helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    nodes = [helper.make_node("Mul", ["x", "two"], ["doubled"]), helper.make_node("Add", ["doubled", "one"], ["y"])]
    return _model(
        nodes,
        [_value("x", TensorProto.FLOAT, None, columns)],
        [_value("y", TensorProto.FLOAT, None, columns)],
        constants,
    )


def text() -> bytes:
    """The text itself, and how many columns it has: an input and an output of type BYTES."""
    nodes = [helper.make_node("Identity", ["word"], ["echo"]), helper.make_node("Identity", ["n"], ["m"])]
    inputs = [_value("word", TensorProto.STRING, None, 1), _value("n", TensorProto.INT64, None, 1)]
    return _model(nodes, inputs, [_value("echo", TensorProto.STRING, None, 1), _value("m", TensorProto.INT64, None, 1)])


def picky() -> bytes:
    """table[index]: an index outside 0 to 2 makes the model itself raise."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])
    node = helper.make_node("Gather", ["table", "index"], ["value"])
    return _model(
        [node], [_value("index", TensorProto.INT64, None, 1)], [_value("value", TensorProto.FLOAT, None, 1)], [table]
    )


def swallower() -> bytes:
    """The sum over all rows: one row out, however many went in."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    return _model([node], [_value("x", TensorProto.FLOAT, None, 2)], [_value("y", TensorProto.FLOAT, None, 2)], [axes])


def looper() -> bytes:
    """y = x, after as many turns of a loop as the largest x says: as slow as one likes."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["carried"], ["carried_on"])],
        "body",
        [
            _value("turn", TensorProto.INT64),
            _value("go", TensorProto.BOOL),
            _value("carried", TensorProto.INT64, None, 1),
        ],
        [_value("go_on", TensorProto.BOOL), _value("carried_on", TensorProto.INT64, None, 1)],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["turns"], keepdims=0),
        helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body),
    ]
    return _model(nodes, [_value("x", TensorProto.INT64, None, 1)], [_value("y", TensorProto.INT64, None, 1)], [yes])


def hungry() -> bytes:
    """y = x, with a terabyte of memory for each that all rows together are above 10: there is none."""

    def number(name: str, value: int, *shape: int) -> Any:
        return helper.make_tensor(name, TensorProto.INT64, list(shape), [value])

    constants = [
        number("ten", 10),
        number("none", 0),
        number("terabyte", 2**40),
        number("one", 1),
        number("flat", -1, 1),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Sub", ["total", "ten"], ["above"]),
        helper.make_node("Max", ["above", "none"], ["excess"]),
        helper.make_node("Mul", ["excess", "terabyte"], ["bytes"]),
        helper.make_node("Add", ["bytes", "one"], ["size"]),
        helper.make_node("Reshape", ["size", "flat"], ["shape"]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["big"], value=helper.make_tensor("v", TensorProto.INT8, [1], [0])
        ),
        helper.make_node("Shape", ["big"], ["same"]),
        helper.make_node("Sub", ["same", "shape"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return _model(
        nodes, [_value("x", TensorProto.INT64, None, 1)], [_value("y", TensorProto.INT64, None, 1)], constants
    )


def wide() -> bytes:
    """The largest of x + 1 in rows of any length: a long one needs much memory."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [helper.make_node("Add", ["x", "one"], ["more"]), helper.make_node("ReduceMax", ["more", "axes"], ["y"])]
    return _model(
        nodes, [_value("x", TensorProto.FLOAT, None, None)], [_value("y", TensorProto.FLOAT, None, 1)], [one, axes]
    )


def heavy(weights: "np.ndarray[Any, Any]") -> bytes:
    """The largest of x times each weight."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, list(weights.shape), weights.tobytes(), raw=True)
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["all"]), helper.make_node("ReduceMax", ["all", "axes"], ["y"])]
    inputs, outputs = _value("x", TensorProto.FLOAT, None, 1), _value("y", TensorProto.FLOAT, None, 1)
    return _model(nodes, [inputs], [outputs], [tensor, axes])


def identity(kind: int) -> bytes:
    """y = x of any element type."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _model([node], [_value("x", kind, None, 2)], [_value("y", kind, None, 2)])


def foreign_operator() -> bytes:
    """A model that needs a library of somebody's own."""
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    return _model([node], [_value("x", TensorProto.FLOAT, None, 2)], [_value("y", TensorProto.FLOAT, None, 2)])


def external_weights(location: str, weights: "np.ndarray[Any, Any]") -> bytes:
    """y = x + w with w in another file."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, list(weights.shape), weights.tobytes(), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    node = helper.make_node("Add", ["x", "w"], ["y"])
    columns = len(weights)
    return _model(
        [node],
        [_value("x", TensorProto.FLOAT, None, columns)],
        [_value("y", TensorProto.FLOAT, None, columns)],
        [tensor],
    )
