"""What the demo found out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interlock_cli.demo.cache import TrainedVersion
from interlock_cli.demo.data import Flights
from interlock_cli.demo.direct import TOLERANCE, run_onnx
from interlock_cli.demo.failure import DemoFailed
from interlock_cli.demo.lineage import later_quality, training_late_share
from interlock_cli.demo.quality import Quality, judge
from interlock_cli.demo.traffic import Answer, probabilities_of
from interlock_sdk.onnx_export import PROBABILITIES_OUTPUT


@dataclass(frozen=True, slots=True)
class VersionResult:
    """How good one version was, and what it learned from."""

    version_id: str
    learned_from: str
    quality: Quality


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The qualities of both versions, on all later flights and on the answers that came back.

    `foreign_count` counts answers by versions that the demo did not make, `degraded_count` those that did without a live
    feature. `largest_difference` is the farthest that an answer's probability was from that of the model called directly.
    """

    all_later: tuple[VersionResult, ...]
    through_the_door: tuple[VersionResult, ...]
    foreign_count: int
    degraded_count: int
    largest_difference: float


def judge_answers(serving: Mapping[str, TrainedVersion], flights: Flights, answers: Sequence[Answer]) -> DemoResult:
    """Judges the answers to some flights, in their order, per version; a version without an answer is left out.

    Answers by versions that are not the demo's are counted and not judged: somebody has added a variant to its route.

    Raises:
        DemoFailed: an answer that the model itself would not give.
    """
    through_the_door, differences = [], [0.0]
    for version_id, trained in serving.items():
        positions = [index for index, answer in enumerate(answers) if answer.version == version_id]
        if positions:
            got = probabilities_of([answers[position] for position in positions])
            answered = flights.take(np.array(positions, dtype=np.int64))
            direct = run_onnx(trained.artifact_path.read_bytes(), trained.recipe, answered.features)
            whole = np.array([not answers[position].degraded for position in positions])
            apart = np.abs(got - direct[PROBABILITIES_OUTPUT][:, 1])[whole]
            differences.append(float(apart.max(initial=0.0)))
            quality = judge(got, answered.late, training_late_share(trained.description))
            through_the_door.append(VersionResult(version_id, trained.recipe.name, quality))
    if max(differences) > TOLERANCE:
        raise DemoFailed(f"an answer is {max(differences):.2g} away from the model called directly")
    degraded_count = sum(answer.degraded for answer in answers)
    foreign_count = sum(answer.version not in serving for answer in answers)
    all_later = [
        VersionResult(version_id, trained.recipe.name, later_quality(trained.description))
        for version_id, trained in serving.items()
    ]
    return DemoResult(tuple(all_later), tuple(through_the_door), foreign_count, degraded_count, max(differences))
