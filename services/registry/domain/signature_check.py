"""Whether a signature is sound: every check yields what is wrong, with the field, what is wanted and what came."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from services.common.errors import Violation, echo
from services.common.tensor_limits import DIMENSION_LIMIT, RANK_LIMIT, TENSOR_LIMIT
from services.common.text_check import check_text
from services.registry.domain.feature_check import check_feature
from services.registry.domain.signature import (
    ANY_SIZE,
    FeatureSpec,
    Kind,
    PredictionSpec,
    Signature,
    Task,
    TensorSpec,
)

FEATURE_LIMIT: Final = 10_000
LABEL_LIMIT: Final = 10_000
NAME_LIMIT_CHARS: Final = 256
FEATURE_NAME_RULE: Final = "a letter or _ and up to 127 letters, digits, _ and dots"
_FEATURE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}", re.ASCII)
_SHOWN_COLUMNS: Final = 8

Violations = Iterator[Violation]


def is_feature_name(text: str) -> bool:
    """Return whether a feature of a signature may have this name."""
    return _FEATURE_NAME.fullmatch(text) is not None


def check_signature(signature: Signature, path: str) -> Violations:
    """Yield everything that is wrong with a signature; `path` is its field in the request."""
    yield from _check_tensors(signature.inputs, f"{path}.inputs")
    yield from _check_tensors(signature.outputs, f"{path}.outputs")
    if len(signature.features) > FEATURE_LIMIT:
        yield Violation(f"{path}.features", f"want at most {FEATURE_LIMIT}, got {len(signature.features)}")
        return
    yield from _check_features(signature, f"{path}.features")
    if signature.prediction is not None:
        yield from _check_prediction(signature.prediction, signature.outputs, f"{path}.prediction")
    elif signature.features:
        yield Violation(f"{path}.prediction", "want how a prediction is read, as there are features; got nothing")


def _check_tensors(tensors: Sequence[TensorSpec], path: str) -> Violations:
    if not 1 <= len(tensors) <= TENSOR_LIMIT:
        yield Violation(path, f"want 1 to {TENSOR_LIMIT} tensors, got {len(tensors)}")
        return
    seen: set[str] = set()
    for index, tensor in enumerate(tensors):
        at = f"{path}[{index}]"
        yield from check_text(tensor.name, f"{at}.name", NAME_LIMIT_CHARS, required=True)
        if tensor.name in seen:
            yield Violation(f"{at}.name", f"want a name of its own, got {echo(tensor.name)} again")
        seen.add(tensor.name)
        if tensor.data_type is None:
            yield Violation(f"{at}.data_type", "want an element type that the contract names, got none of them")
        yield from _check_shape(tensor.shape, f"{at}.shape")


def _check_shape(shape: tuple[int, ...], path: str) -> Violations:
    if not 1 <= len(shape) <= RANK_LIMIT:
        yield Violation(path, f"want 1 to {RANK_LIMIT} dimensions, got {len(shape)}")
        return
    if shape[0] != ANY_SIZE:
        yield Violation(f"{path}[0]", f"want -1, the batch dimension; got {shape[0]}")
    for index, size in enumerate(shape[1:], start=1):
        if size != ANY_SIZE and not 1 <= size <= DIMENSION_LIMIT:
            yield Violation(f"{path}[{index}]", f"want -1 or 1 to {DIMENSION_LIMIT}, got {size}")


def _check_features(signature: Signature, path: str) -> Violations:
    inputs = {tensor.name: tensor for tensor in signature.inputs}
    seen: set[str] = set()
    for index, feature in enumerate(signature.features):
        at = f"{path}[{index}]"
        yield from _check_feature_name(feature.name, seen, f"{at}.name")
        target = inputs.get(feature.tensor)
        if target is None:
            yield Violation(f"{at}.tensor", f"want the name of an input, got {echo(feature.tensor)}")
        yield from check_feature(feature, target, at)
    if signature.features:
        yield from _check_columns(signature.features, signature.inputs, path)


def _check_feature_name(name: str, seen: set[str], path: str) -> Violations:
    if not is_feature_name(name):
        yield Violation(path, f"want {FEATURE_NAME_RULE}; got {echo(name)}")
    elif name in seen:
        yield Violation(path, f"want a name of its own, got {echo(name)} again")
    seen.add(name)


def _check_columns(features: Sequence[FeatureSpec], inputs: Sequence[TensorSpec], path: str) -> Violations:
    """Every column of every input must be filled exactly once; sizes are compared before anything is counted out."""
    for tensor in inputs:
        columns = column_count(tensor)
        if columns is None:
            yield Violation(path, f"want inputs of the shape [-1, columns] under features, {echo(tensor.name)} is none")
            continue
        filled = Counter(feature.column for feature in features if feature.tensor == tensor.name)
        missing = columns - sum(0 <= column < columns for column in filled)
        if missing:
            shown = _missing_columns(filled, columns)
            yield Violation(path, f"want each column of {echo(tensor.name)} filled, got nothing for {missing}: {shown}")
        for column, count in filled.items():
            if count > 1:
                yield Violation(
                    path,
                    f"want each column of {echo(tensor.name)} filled once, got {count} features for column {column}",
                )


def _missing_columns(filled: Counter[int], columns: int) -> str:
    # At most as many columns are filled as there are features, so the first missing ones are near.
    within = range(min(columns, len(filled) + _SHOWN_COLUMNS))
    return ", ".join([str(column) for column in within if column not in filled][:_SHOWN_COLUMNS])


def column_count(tensor: TensorSpec) -> int | None:
    """Return the columns of a tensor that features can fill, [-1, columns]; None for any other shape."""
    if len(tensor.shape) != 2 or tensor.shape[1] < 1:
        return None
    return tensor.shape[1]


def _check_prediction(prediction: PredictionSpec, outputs: Sequence[TensorSpec], path: str) -> Violations:
    if prediction.task is None:
        yield Violation(f"{path}.task", "want CLASSIFICATION or REGRESSION, got neither")
    elif prediction.task is Task.CLASSIFICATION:
        yield from _check_labels(prediction.labels, f"{path}.labels")
    elif prediction.labels:
        yield Violation(f"{path}.labels", f"want none for a regression, got {len(prediction.labels)}")
    yield from _check_threshold(prediction, f"{path}.threshold")
    output = {tensor.name: tensor for tensor in outputs}.get(prediction.tensor)
    if output is None:
        yield Violation(f"{path}.tensor", f"want the name of an output, got {echo(prediction.tensor)}")
    else:
        yield from _check_prediction_tensor(prediction, output, f"{path}.tensor")


def _check_labels(labels: Sequence[str], path: str) -> Violations:
    if not 2 <= len(labels) <= LABEL_LIMIT:
        yield Violation(path, f"want 2 to {LABEL_LIMIT} labels for a classification, got {len(labels)}")
        return
    for label, count in Counter(labels).items():
        if count > 1:
            yield Violation(path, f"want each label once, got {echo(label)} {count} times")
    for index, label in enumerate(labels):
        yield from check_text(label, f"{path}[{index}]", NAME_LIMIT_CHARS, required=True)


def _check_threshold(prediction: PredictionSpec, path: str) -> Violations:
    threshold = prediction.threshold
    if threshold is None:
        return
    if prediction.task is not Task.CLASSIFICATION or len(prediction.labels) != 2:
        yield Violation(path, f"want none unless there are two labels, got {threshold:g}")
    elif not 0 < threshold < 1:
        yield Violation(path, f"want a number above 0 and below 1, got {threshold:g}")


def _check_prediction_tensor(prediction: PredictionSpec, output: TensorSpec, path: str) -> Violations:
    classification = prediction.task is Task.CLASSIFICATION
    if output.data_type is not None and output.data_type.kind not in _READABLE[classification]:
        yield Violation(
            path,
            f"want a tensor of numbers, got {echo(output.name)} of {output.data_type.kind.value} ({output.data_type.value})",
        )
    wanted = _wanted_shapes(prediction)
    if wanted and output.shape not in wanted:
        yield Violation(path, f"want the shape {list(wanted[0])}, got {echo(output.name)} of {list(output.shape)}")


_READABLE: Final = {True: (Kind.FLOAT,), False: (Kind.FLOAT, Kind.WHOLE)}


def _wanted_shapes(prediction: PredictionSpec) -> tuple[tuple[int, ...], ...]:
    if prediction.task is Task.CLASSIFICATION:
        # A model may leave the number of classes open; then every answer is checked instead.
        return (ANY_SIZE, len(prediction.labels)), (ANY_SIZE, ANY_SIZE)
    if prediction.task is Task.REGRESSION:
        return (ANY_SIZE,), (ANY_SIZE, 1)
    return ()
