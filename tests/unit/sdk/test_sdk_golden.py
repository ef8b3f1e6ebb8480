"""Golden rows and the signature's tensors."""

import numpy as np
import pytest
from interlock.types.v1 import tensor_pb2
from onnx import TensorProto, helper

from interlock_sdk.golden import golden_rows, spread_positions
from interlock_sdk.onnx_signature import onnx_tensor_specs
from interlock_sdk.tensors import tensor_from_proto


def test_each_golden_row_holds_one_row_of_every_tensor() -> None:
    inputs = {"x": np.array([[1.0], [2.0]], dtype=np.float32)}
    rows = golden_rows(inputs, {"y": np.array([3, 4])}, absolute_tolerance=0.5)
    assert [tensor_from_proto(row.inputs[0]).tolist() for row in rows] == [[[1.0]], [[2.0]]]
    assert [tensor_from_proto(row.outputs[0]).tolist() for row in rows] == [[3], [4]]
    assert {row.absolute_tolerance for row in rows} == {0.5}


@pytest.mark.parametrize("lengths", [(65, 65), (2, 3)])
def test_too_many_or_unequally_many_rows_are_refused(lengths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="want 1 to 64 rows"):
        golden_rows({"x": np.zeros(lengths[0])}, {"y": np.zeros(lengths[1])}, absolute_tolerance=0.1)


def test_spread_positions_reach_from_the_smallest_to_the_largest_value() -> None:
    values = np.random.default_rng(3).permutation(101)
    assert values[spread_positions(values, 5)].tolist() == [0, 25, 50, 75, 100]


def test_spread_positions_of_few_values_are_all_of_them() -> None:
    assert spread_positions([3.0, 1.0, 2.0], 10).tolist() == [1, 2, 0]


def test_tensor_specs_are_read_in_the_models_order() -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    graph = helper.make_graph(
        [helper.make_node("Add", ["b", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("a", TensorProto.STRING, [None, 3]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        initializer=[weights],
    )
    inputs, outputs = onnx_tensor_specs(helper.make_model(graph).SerializeToString())
    assert [(spec.name, spec.data_type, list(spec.shape)) for spec in inputs] == [
        ("b", tensor_pb2.DATA_TYPE_FP32, [-1, 2]),
        ("a", tensor_pb2.DATA_TYPE_BYTES, [-1, 3]),
    ]
    assert [spec.name for spec in outputs] == ["y"]


def test_an_element_type_that_cannot_travel_is_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.COMPLEX64, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    with pytest.raises(ValueError, match="'x'"):
        onnx_tensor_specs(helper.make_model(graph).SerializeToString())
