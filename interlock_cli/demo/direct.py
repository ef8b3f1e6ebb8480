"""An exported version called directly, in this process: what every answer is compared with."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pandas as pd

from interlock_cli.demo.data import CATEGORICAL, Recipe
from interlock_sdk.onnx_export import CATEGORIES_INPUT, NUMBERS_INPUT

# Both sides add the same leaves, scikit-learn in double and the runtime in single precision.
TOLERANCE = 1e-5


def run_onnx(artifact: bytes, recipe: Recipe, features: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Runs an exported version in this process; gives its output tensors by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, model_inputs(recipe, features)), strict=True))


def model_inputs(recipe: Recipe, features: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Gives rows of features as the model's two input tensors."""
    return {
        CATEGORIES_INPUT: features[list(CATEGORICAL)].to_numpy(dtype=object),
        NUMBERS_INPUT: features[list(recipe.numeric)].to_numpy(dtype=np.float32),
    }
