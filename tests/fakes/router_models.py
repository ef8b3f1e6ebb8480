"""Models for tests: their signatures, and what they answer, computed from raw bytes so that any answer can be checked."""

import struct
from collections.abc import Callable, Sequence

from google.protobuf import text_format
from interlock.types.v1.signature_pb2 import Signature
from interlock.types.v1.tensor_pb2 import DataType, Tensor

Compute = Callable[[Sequence[Tensor], int], list[Tensor]]

FLIGHT = "flight-delay"
PAIR = "pair"
MIRROR = "mirror"
LIVE = "live-delay"
MIRROR_TYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES",
)  # fmt: skip

_FLIGHT_SIGNATURE = """
inputs { name: "words" data_type: DATA_TYPE_BYTES shape: [-1, 3] }
inputs { name: "numbers" data_type: DATA_TYPE_FP32 shape: [-1, 4] }
outputs { name: "probabilities" data_type: DATA_TYPE_FP32 shape: [-1, 2] }
features { name: "carrier" type: FEATURE_TYPE_STRING tensor: "words" column: 0
  allowed_values { string_value: "B6" } allowed_values { string_value: "AA" } allowed_values { string_value: "UA" } }
features { name: "origin" type: FEATURE_TYPE_STRING tensor: "words" column: 1 source: "request" }
features { name: "dest" type: FEATURE_TYPE_STRING tensor: "words" column: 2 }
features { name: "sched_dep_hour" type: FEATURE_TYPE_INT64 tensor: "numbers" column: 0 minimum: 0 maximum: 23 }
features { name: "month" type: FEATURE_TYPE_INT64 tensor: "numbers" column: 1 minimum: 1 maximum: 12
  missing_policy: MISSING_POLICY_DEFAULT default_value { int64_value: 6 } }
features { name: "weekday" type: FEATURE_TYPE_INT64 tensor: "numbers" column: 2 minimum: 1 maximum: 7
  violation_policy: VIOLATION_POLICY_CLIP }
features { name: "distance" type: FEATURE_TYPE_DOUBLE tensor: "numbers" column: 3 minimum: 0 maximum: 10000
  violation_policy: VIOLATION_POLICY_FLAG nullable: true }
prediction { task: TASK_CLASSIFICATION tensor: "probabilities" labels: "on_time" labels: "late" }
"""

_PAIR_SIGNATURE = """
inputs { name: "x" data_type: DATA_TYPE_FP64 shape: [-1, 2] }
outputs { name: "y" data_type: DATA_TYPE_FP64 shape: [-1, 1] }
features { name: "a" type: FEATURE_TYPE_DOUBLE tensor: "x" column: 0 }
features { name: "b" type: FEATURE_TYPE_DOUBLE tensor: "x" column: 1 }
prediction { task: TASK_REGRESSION tensor: "y" }
"""


# One feature of each policy. The answer is a number whose digits are the values: 100 to the power of the place.
_LIVE_SIGNATURE = """
inputs { name: "x" data_type: DATA_TYPE_FP64 shape: [-1, 4] }
outputs { name: "y" data_type: DATA_TYPE_FP64 shape: [-1, 1] }
features { name: "hour" type: FEATURE_TYPE_INT64 tensor: "x" column: 0 minimum: 0 maximum: 23 }
features { name: "delay" type: FEATURE_TYPE_DOUBLE tensor: "x" column: 1 source: "carriers.delay" maximum: 60
  missing_policy: MISSING_POLICY_DEFAULT default_value { double_value: 7 } max_age { seconds: 60 }
  violation_policy: VIOLATION_POLICY_CLIP }
features { name: "wind" type: FEATURE_TYPE_DOUBLE tensor: "x" column: 2 source: "weather.wind" minimum: 0
  missing_policy: MISSING_POLICY_FALLBACK }
features { name: "landings" type: FEATURE_TYPE_INT64 tensor: "x" column: 3 source: "weather.landings" }
prediction { task: TASK_REGRESSION tensor: "y" }
"""


def live_signature(**policies: int) -> Signature:
    """The live model's signature, with other missing policies by feature."""
    signature = text_format.Parse(_LIVE_SIGNATURE, Signature())
    for feature in signature.features:
        if feature.name in policies:
            feature.missing_policy = policies[feature.name]  # type: ignore[assignment]
    return signature


def schedule_signature() -> Signature:
    """A version of the live model that knows the hour only."""
    signature = live_signature()
    signature.inputs[0].shape[1] = 1
    del signature.features[1:]
    return signature


def flight_signature() -> Signature:
    return text_format.Parse(_FLIGHT_SIGNATURE, Signature())


def pair_signature() -> Signature:
    return text_format.Parse(_PAIR_SIGNATURE, Signature())


def mirror_signature() -> Signature:
    """One input and one output of each element type, and no features."""
    signature = Signature()
    for name in MIRROR_TYPES:
        data_type = DataType.Value(f"DATA_TYPE_{name}")
        signature.inputs.add(name=f"in_{name}", data_type=data_type, shape=[-1, 2])
        signature.outputs.add(name=f"out_{name}", data_type=data_type, shape=[-1, 2])
    return signature


def late_probability(hour: float) -> float:
    """What the flight model answers for an hour: 17 is more likely late than not."""
    return round(hour / 24, 6)


def run_flight(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    numbers = struct.unpack(f"<{4 * rows}f", _named(tensors, "numbers").data)
    late = [late_probability(numbers[4 * row]) for row in range(rows)]
    data = b"".join(struct.pack("<2f", 1 - value, value) for value in late)
    return [Tensor(name="probabilities", data_type=DataType.DATA_TYPE_FP32, shape=[rows, 2], data=data)]


def run_pair(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    values = struct.unpack(f"<{2 * rows}d", _named(tensors, "x").data)
    sums = [values[2 * row] * 1000 + values[2 * row + 1] for row in range(rows)]
    return [Tensor(name="y", data_type=DataType.DATA_TYPE_FP64, shape=[rows, 1], data=struct.pack(f"<{rows}d", *sums))]


def run_live(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    columns = _named(tensors, "x").shape[1]
    values = struct.unpack(f"<{rows * columns}d", _named(tensors, "x").data)
    sums = [
        sum(value * 100 ** (columns - 1 - place) for place, value in enumerate(values[row * columns :][:columns]))
        for row in range(rows)
    ]
    return [Tensor(name="y", data_type=DataType.DATA_TYPE_FP64, shape=[rows, 1], data=struct.pack(f"<{rows}d", *sums))]


def run_mirror(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    return [
        Tensor(
            name=tensor.name.replace("in_", "out_"), data_type=tensor.data_type, shape=tensor.shape, data=tensor.data
        )
        for tensor in tensors
    ]


COMPUTE: dict[str, Compute] = {FLIGHT: run_flight, PAIR: run_pair, MIRROR: run_mirror, LIVE: run_live}


def _named(tensors: Sequence[Tensor], name: str) -> Tensor:
    return next(tensor for tensor in tensors if tensor.name == name)
