"""Warm-up of every batch size and the check of golden rows, before a version may say READY.

Golden rows are run at every batch size that will occur, since a model may be right alone and wrong in company. Where
there are none, zeros warm the sizes; a model that refuses zeros is not refused for it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.adapters.load_plan import LoadRefused
from services.inference.adapters.onnx_model import OnnxModel, RunInterrupted, RunRefused
from services.inference.adapters.values import differences, widen_bf16, zeros
from services.inference.domain.tensor import TensorSpec

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Golden:
    """Rows whose answers are known, by tensor name."""

    inputs: Arrays
    outputs: Arrays
    absolute: float
    relative: float

    @property
    def rows(self) -> int:
        """How many."""
        return len(next(iter(self.inputs.values())))


def rehearse(model: OnnxModel, golden: Sequence[Golden], sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Run every batch size; return each with its seconds, warm. Raises `LoadRefused` on a wrong golden answer."""
    for index, row in enumerate(golden):
        for size in sizes if index == 0 else {sizes[0], sizes[-1]}:
            _check(model, row, index, size)
    return warm(model, golden, sizes)


def warm(model: OnnxModel, golden: Sequence[Golden], sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Run each size twice; return each with the seconds of its second run. One that the model refuses is left out."""
    measured = []
    for size in sizes:
        arrays = [_warm_input(spec, golden, size) for spec in model.inputs]
        for _ in range(2):
            started = time.perf_counter()
            try:
                model.run(range(len(model.outputs)), arrays)
            except (RunRefused, RunInterrupted):
                break
            seconds = time.perf_counter() - started
        else:
            measured.append((size, seconds))
    return measured


def _warm_input(spec: TensorSpec, golden: Sequence[Golden], size: int) -> NDArray[Any]:
    if golden:
        return _repeat(golden[0].inputs[spec.name], size)
    return zeros(spec.datatype, (size, *(1 if extent == -1 else extent for extent in spec.trailing)))


def _repeat(rows: NDArray[Any], size: int) -> NDArray[Any]:
    return np.ascontiguousarray(rows[np.arange(size) % len(rows)])


def _check(model: OnnxModel, golden: Golden, index: int, size: int) -> None:
    """Compare the answers for the golden rows, cut or repeated to fill a batch of `size`."""
    for first in range(0, golden.rows, size):
        take = (first + np.arange(size)) % golden.rows
        arrays = [np.ascontiguousarray(golden.inputs[spec.name][take]) for spec in model.inputs]
        positions = [number for number, spec in enumerate(model.outputs) if spec.name in golden.outputs]
        try:
            answers = model.run(positions, arrays)
        except RunRefused as error:
            raise LoadRefused(f"golden row {index}: the model refused it: {error}") from None
        for position, got in zip(positions, answers, strict=True):
            _compare(model.outputs[position], golden, index, take, got)


def _compare(spec: TensorSpec, golden: Golden, index: int, take: NDArray[Any], got: NDArray[Any]) -> None:
    want = golden.outputs[spec.name][take]
    where = f"golden row {index}, output {spec.name!r}, in a batch of {len(take)}"
    if want.shape != got.shape:
        raise LoadRefused(f"{where}: want shape {list(want.shape)}, got {list(got.shape)}")
    if spec.datatype == "BF16":
        want, got = widen_bf16(want), widen_bf16(got)
    wrong = np.argwhere(differences(want, got, golden.absolute, golden.relative))
    if len(wrong):
        place = tuple(int(number) for number in wrong[0])
        raise LoadRefused(
            f"{where}, at {list(place)}: want {want[place]}, got {got[place]} "
            f"(tolerance {golden.absolute:g} + {golden.relative:g} of it)"
        )
