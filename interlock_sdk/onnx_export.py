"""Exports scikit-learn's histogram gradient boosting to ONNX, text encoding included.

The graph takes two tensors, `categories` (string, [N, C]) and `numbers` (float32, [N, F]), and gives `label` (int64, [N])
and `probabilities` (float32, [N, 2]). Categories become the codes of an `OrdinalEncoder` inside the graph, so a caller
sends texts and nothing outside the model has to know the codes. A text that the encoder never saw gets its unknown code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

CATEGORIES_INPUT = "categories"
NUMBERS_INPUT = "numbers"
LABEL_OUTPUT = "label"
PROBABILITIES_OUTPUT = "probabilities"

_OPSET = 17
_ML_OPSET = 3
# What opset 17 came with; a newer number would shut out older runtimes for nothing.
_IR_VERSION = 8


class UnsupportedModel(ValueError):
    """Says why a fitted model cannot be exported."""


@dataclass(frozen=True, slots=True)
class _Tree:
    """One tree as flat arrays, index = node id."""

    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.float32]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    missing_goes_left: npt.NDArray[np.bool_]
    is_leaf: npt.NDArray[np.bool_]
    value: npt.NDArray[np.float32]


def export_boosted_trees(encoder: Any, classifier: Any, *, name: str) -> bytes:
    """Serialises an encoder and a binary classifier as one ONNX model.

    Args:
        encoder: fitted `OrdinalEncoder` of texts with `handle_unknown="use_encoded_value"`; C columns.
        classifier: fitted `HistGradientBoostingClassifier` of two classes, trained on the C codes followed by F numbers.
        name: name of the graph.

    Returns:
        The serialised model. Equal input gives equal bytes.

    Raises:
        UnsupportedModel: more than two classes, native categorical splits, or an encoder without an unknown code.
    """
    number_count = int(classifier.n_features_in_) - len(encoder.categories_)
    trees = list(_read_trees(classifier))
    nodes = [*_encoding_nodes(encoder), _ensemble_node(trees, _baseline(classifier))]
    graph = helper.make_graph(nodes, name, _inputs(len(encoder.categories_), number_count), _outputs())
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="interlock")
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def _inputs(category_count: int, number_count: int) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(CATEGORIES_INPUT, TensorProto.STRING, ["N", category_count]),
        helper.make_tensor_value_info(NUMBERS_INPUT, TensorProto.FLOAT, ["N", number_count]),
    ]


def _outputs() -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(LABEL_OUTPUT, TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info(PROBABILITIES_OUTPUT, TensorProto.FLOAT, ["N", 2]),
    ]


def _encoding_nodes(encoder: Any) -> Iterator[onnx.NodeProto]:
    """Yields one look-up per text column and the join of its codes with the numbers."""
    if encoder.handle_unknown != "use_encoded_value":
        raise UnsupportedModel("want an encoder with handle_unknown='use_encoded_value': any text may come")
    columns = [f"category_{index}" for index in range(len(encoder.categories_))]
    yield helper.make_node("Split", [CATEGORIES_INPUT], columns, axis=1)
    for column, texts in zip(columns, encoder.categories_, strict=True):
        yield _lookup_node(column, _texts(texts), float(encoder.unknown_value))
    yield helper.make_node("Concat", [*(f"{column}_code" for column in columns), NUMBERS_INPUT], ["row"], axis=1)


def _texts(categories: Sequence[object]) -> list[str]:
    if not all(isinstance(category, str) for category in categories):
        raise UnsupportedModel("want categories that are all texts")
    return [str(category) for category in categories]


def _lookup_node(column: str, texts: list[str], unknown_code: float) -> onnx.NodeProto:
    return helper.make_node(
        "LabelEncoder",
        [column],
        [f"{column}_code"],
        domain="ai.onnx.ml",
        keys_strings=texts,
        values_floats=[float(code) for code in range(len(texts))],
        default_float=unknown_code,
    )


def _baseline(classifier: Any) -> float:
    return float(np.ravel(classifier._baseline_prediction)[0])  # noqa: SLF001  scikit-learn offers no public way


def _read_trees(classifier: Any) -> Iterator[_Tree]:
    if len(classifier.classes_) != 2:
        raise UnsupportedModel(f"want two classes, got {len(classifier.classes_)}")
    for (predictor,) in classifier._predictors:  # noqa: SLF001  scikit-learn offers no public way
        nodes = predictor.nodes
        if nodes["is_categorical"].any():
            raise UnsupportedModel("want ordinal codes, got native categorical splits")
        is_leaf = nodes["is_leaf"].astype(bool)
        yield _Tree(
            feature=nodes["feature_idx"].astype(np.int64),
            threshold=round_down_to_float32(np.where(is_leaf, 0.0, nodes["num_threshold"])),
            left=np.where(is_leaf, 0, nodes["left"]).astype(np.int64),
            right=np.where(is_leaf, 0, nodes["right"]).astype(np.int64),
            missing_goes_left=nodes["missing_go_to_left"].astype(bool) & ~is_leaf,
            is_leaf=is_leaf,
            value=nodes["value"].astype(np.float32),
        )


def round_down_to_float32(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Gives for each threshold t the largest float32 that is not above it.

    For every float32 x, `x <= t` holds exactly when `x <= rounded` does, so no row changes its branch in the export.
    """
    rounded = thresholds.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return np.where(rounded.astype(np.float64) > thresholds, below, rounded).astype(np.float32)


def _ensemble_node(trees: Sequence[_Tree], baseline: float) -> onnx.NodeProto:
    """Joins all trees in one node; the leaves' sum and the baseline go through a logistic function."""
    tree_ids = [np.full(len(tree.feature), index) for index, tree in enumerate(trees)]
    node_ids = [np.arange(len(tree.feature)) for tree in trees]
    leaves = [np.flatnonzero(tree.is_leaf) for tree in trees]
    modes = np.where(np.concatenate([tree.is_leaf for tree in trees]), "LEAF", "BRANCH_LEQ")
    return helper.make_node(
        "TreeEnsembleClassifier",
        ["row"],
        [LABEL_OUTPUT, PROBABILITIES_OUTPUT],
        domain="ai.onnx.ml",
        classlabels_int64s=[0, 1],
        post_transform="LOGISTIC",
        base_values=[baseline],
        nodes_modes=modes.tolist(),
        nodes_treeids=_joined(tree_ids),
        nodes_nodeids=_joined(node_ids),
        nodes_featureids=_joined([tree.feature for tree in trees]),
        nodes_values=_joined([tree.threshold for tree in trees]),
        nodes_truenodeids=_joined([tree.left for tree in trees]),
        nodes_falsenodeids=_joined([tree.right for tree in trees]),
        nodes_missing_value_tracks_true=_joined([tree.missing_goes_left.astype(np.int64) for tree in trees]),
        class_treeids=_joined([np.full(len(leaf), index) for index, leaf in enumerate(leaves)]),
        class_nodeids=_joined(leaves),
        class_ids=[0] * sum(len(leaf) for leaf in leaves),
        class_weights=_joined([tree.value[leaf] for tree, leaf in zip(trees, leaves, strict=True)]),
    )


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> list[Any]:
    return list(np.concatenate(arrays).tolist())
