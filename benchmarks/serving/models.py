"""The models that are served, as ONNX files of random weights, the rows that are asked, and what the models say of them.

tabular   100 trees of depth 3 on 30 floats        one number
mlp       256-1024-1024-10
cnn       three convolutions on [3, 64, 64]        10 numbers
mean2k, mean1m   the mean of 512 and of 262,144 floats: bodies of 2 KB and 1 MB with hardly a model behind them
named2k, named1m   the mean of 64 and of 10,000 named features, as many as a signature may have: as JSON 2 KB and 1 MB
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

TREES, DEPTH = 100, 3
_SEED = 11


@dataclass(eq=False)
class Model:
    """A model: its row's shape, its answer's size, and how many distinct rows are asked."""

    name: str
    row_shape: tuple[int, ...]
    outputs: int
    build: Callable[[], bytes]
    row_count: int = 2_000
    feature: str = ""
    """Name of its features, before the number of the column; empty where it takes tensors only."""
    files: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def rows(self) -> np.ndarray:
        return np.random.default_rng(_SEED).standard_normal((self.row_count, *self.row_shape), np.float32)

    @property
    def feature_names(self) -> list[str]:
        """Names of its features, by column."""
        return [f"{self.feature}{at}" for at in range(*self.row_shape)] if self.feature else []

    @cached_property
    def wanted(self) -> np.ndarray:
        """What the model says of every row."""
        session = self.session()
        parts = [session.run(None, {"x": self.rows[at : at + 64]})[0] for at in range(0, self.row_count, 64)]
        return np.concatenate(parts)

    def session(self) -> onnxruntime.InferenceSession:
        return open_session(self.path)

    @property
    def path(self) -> Path:
        return self.files["onnx"]

    def write(self, folder: Path) -> None:
        self.files["onnx"] = folder / f"{self.name}.onnx"
        self.files["onnx"].write_bytes(self.build())


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def tabular() -> bytes:
    """Full trees in ai.onnx.ml's form: nodes by tree in level order, leaves in the last level."""
    draw = np.random.default_rng(_SEED)
    inner, nodes = 2**DEPTH - 1, 2 ** (DEPTH + 1) - 1
    tree_ids = np.repeat(np.arange(TREES), nodes)
    node_ids = np.tile(np.arange(nodes), TREES)
    is_inner = node_ids < inner
    leaves = np.flatnonzero(~is_inner)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=tree_ids.tolist(),
        nodes_nodeids=node_ids.tolist(),
        nodes_modes=["BRANCH_LEQ" if one else "LEAF" for one in is_inner],
        nodes_featureids=np.where(is_inner, draw.integers(0, 30, len(node_ids)), 0).tolist(),
        nodes_values=np.where(is_inner, draw.standard_normal(len(node_ids)), 0).astype(np.float32).tolist(),
        nodes_truenodeids=np.where(is_inner, 2 * node_ids + 1, 0).tolist(),
        nodes_falsenodeids=np.where(is_inner, 2 * node_ids + 2, 0).tolist(),
        target_treeids=tree_ids[leaves].tolist(),
        target_nodeids=node_ids[leaves].tolist(),
        target_ids=[0] * len(leaves),
        target_weights=(draw.standard_normal(len(leaves)) / 10).astype(np.float32).tolist(),
    )
    return _model([node], (30,), 1, [])


def mlp() -> bytes:
    sizes = (256, 1024, 1024, 10)
    weights, nodes, at = [], [], "x"
    for layer, (wide, narrow) in enumerate(pairwise(sizes)):
        last = layer == len(sizes) - 2
        weights += [_weight(f"w{layer}", (wide, narrow), wide), _weight(f"b{layer}", (narrow,), narrow)]
        nodes.append(helper.make_node("Gemm", [at, f"w{layer}", f"b{layer}"], ["y" if last else f"g{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{layer}"], [f"h{layer}"]))
        at = f"h{layer}"
    return _model(nodes, (256,), 10, weights)


def cnn() -> bytes:
    channels = (3, 32, 64, 128)
    weights, nodes, at = [], [], "x"
    for layer, (before, after) in enumerate(pairwise(channels)):
        weights += [_weight(f"w{layer}", (after, before, 3, 3), before * 9), _weight(f"b{layer}", (after,), after)]
        nodes += [
            helper.make_node("Conv", [at, f"w{layer}", f"b{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
            helper.make_node("MaxPool", [f"r{layer}"], [f"p{layer}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        at = f"p{layer}"
    weights += [_weight("w", (128, 10), 128), _weight("b", (10,), 10)]
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"]),
    ]
    return _model(nodes, (3, 64, 64), 10, weights)


def mean(size: int) -> Callable[[], bytes]:
    def build() -> bytes:
        axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
        return _model([helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)], (size,), 1, [axes])

    return build


def _weight(name: str, shape: Sequence[int], fan_in: int) -> TensorProto:
    draw = np.random.default_rng([_SEED, len(name), *shape])
    return numpy_helper.from_array((draw.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32), name)


def _model(nodes: Sequence[object], row_shape: Sequence[int], outputs: int, weights: Sequence[TensorProto]) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, *row_shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, outputs])],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


TABULAR = Model("tabular", (30,), 1, tabular, feature="f")
MLP = Model("mlp", (256,), 10, mlp)
CNN = Model("cnn", (3, 64, 64), 10, cnn, row_count=1_000)
MEAN_2K = Model("mean2k", (512,), 1, mean(512))
# Distinct all the same, and not a gigabyte of them; as JSON each is 5 MB.
MEAN_1M = Model("mean1m", (262_144,), 1, mean(262_144), row_count=32)
NAMED_2K = Model("named2k", (64,), 1, mean(64), feature="f")
_LONG_NAME = "turbine_bearing_temperature.mean_over_the_last_five_minutes_of_sensor_"
NAMED_1M = Model("named1m", (10_000,), 1, mean(10_000), row_count=64, feature=_LONG_NAME)
MODELS = (TABULAR, MLP, CNN, MEAN_2K, MEAN_1M, NAMED_2K, NAMED_1M)
