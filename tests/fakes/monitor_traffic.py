"""Traffic of the model `fraud` as a router would report it: drawn once, so that tests can compute the same directly."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt
from interlock.monitor.v1 import monitor_service_pb2 as pb
from interlock.monitor.v1 import prediction_event_pb2 as event_pb
from interlock.registry.v1.baseline_pb2 import FeatureProfile
from interlock.types.v1.tensor_pb2 import DATA_TYPE_BYTES, DATA_TYPE_FP32, DATA_TYPE_FP64, Tensor

from interlock_sdk.baseline import profile_categories, profile_numbers, profile_probabilities
from tests.fakes.monitor_registry import LABELS

HOUR_S = 3600.0
COUNTRIES = ("NO", "SE", "DK")
_LENGTH = Struct("<I")


@dataclass(frozen=True)
class Traffic:
    """Predictions of `fraud`, one entry each."""

    ids: tuple[bytes, ...]
    amount: npt.NDArray[np.float64]
    items: npt.NDArray[np.float64]
    member: npt.NDArray[np.float64]
    country: tuple[str, ...]
    chance: npt.NDArray[np.float64]
    """Probability of fraud, calibrated."""
    label: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


def draw_traffic(seed: int, times_s: Sequence[float], *, shift: float = 0.0) -> Traffic:
    """Draw a prediction for each time; `shift` moves amounts, and with them chances and labels."""
    random = np.random.default_rng(seed)
    count = len(times_s)
    amount = random.gamma(2.0, 50.0, count) + shift
    chance = np.float64(1) / (1 + np.exp(-(amount - 150) / 40))
    # As the model gives them: single precision.
    chance = chance.astype(np.float32).astype(np.float64)
    return Traffic(
        ids=tuple(_uuid7(time_s, random) for time_s in times_s),
        amount=amount,
        items=random.integers(1, 6, count).astype(np.float64),
        member=random.integers(0, 2, count).astype(np.float64),
        country=tuple(random.choice(COUNTRIES, count, p=(0.5, 0.3, 0.2)).tolist()),
        chance=chance,
        label=(random.random(count) < chance).astype(np.int64),
    )


def hour_times(count: int, hours_ago: int, now_s: float | None = None) -> list[float]:
    """Return times spread over the hour that ended `hours_ago` whole hours ago."""
    now_s = time.time() if now_s is None else now_s
    begin = now_s - now_s % HOUR_S - (hours_ago + 1) * HOUR_S
    return [begin + HOUR_S * (index + 0.5) / count for index in range(count)]


def fraud_profiles(traffic: Traffic) -> tuple[list[FeatureProfile], list[FeatureProfile]]:
    """Return the baseline that training on `traffic` would give: features, outputs."""
    features = [
        profile_numbers("amount", traffic.amount),
        profile_numbers("items", traffic.items),
        profile_categories("member", ["true" if value else "false" for value in traffic.member]),
        profile_categories("country", traffic.country),
    ]
    chances = np.stack([1 - traffic.chance, traffic.chance], axis=1)
    return features, profile_probabilities(LABELS, chances)


def requests(
    traffic: Traffic, *, rows: int = 1000, variant: str = "main", version: str = "1", **changes: Any
) -> Iterator[pb.RecordPredictionsRequest]:
    """Yield the batches of one stream."""
    for sequence, start in enumerate(range(0, len(traffic), rows), start=1):
        chosen = slice(start, start + rows)
        batch = _batch(traffic, chosen, variant, version)
        for name, value in changes.items():
            getattr(batch, name)[:] = [value] * len(batch.statuses)
        yield pb.RecordPredictionsRequest(router_id="router-1", sequence=sequence, batch=batch)


def _batch(traffic: Traffic, chosen: slice, variant: str, version: str) -> event_pb.PredictionBatch:
    ids = traffic.ids[chosen]
    count = len(ids)
    numbers = np.stack([traffic.amount[chosen], traffic.items[chosen], traffic.member[chosen]], axis=1)
    chances = np.stack([1 - traffic.chance[chosen], traffic.chance[chosen]], axis=1).astype("<f4")
    texts = b"".join(_LENGTH.pack(len(text)) + text.encode() for text in traffic.country[chosen])
    return event_pb.PredictionBatch(
        model="fraud",
        version=version,
        variant=variant,
        environment="production",
        epoch=1,
        prediction_ids=b"".join(ids),
        inputs=[
            Tensor(name="numbers", data_type=DATA_TYPE_FP64, shape=[count, 3], data=numbers.astype("<f8").tobytes()),
            Tensor(name="texts", data_type=DATA_TYPE_BYTES, shape=[count, 1], data=texts),
        ],
        outputs=[Tensor(name="probabilities", data_type=DATA_TYPE_FP32, shape=[count, 2], data=chances.tobytes())],
        has_tensors=[True] * count,
        statuses=[0] * count,
        buckets=[10_000] * count,
        principals=[0] * count,
        principal_names=["local"],
        degraded=[False] * count,
        cached=[False] * count,
        latencies_us=[2_000] * count,
        sampling_weights=[1.0] * count,
    )


def _uuid7(time_s: float, random: np.random.Generator) -> bytes:
    tail = bytearray(random.bytes(10))
    tail[0] = 0x70 | (tail[0] & 0x0F)
    tail[2] = 0x80 | (tail[2] & 0x3F)
    return uuid.UUID(bytes=int(time_s * 1000).to_bytes(6, "big") + bytes(tail)).bytes
