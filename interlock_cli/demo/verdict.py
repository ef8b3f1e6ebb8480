"""What the monitor says of the replay: quality of both arms by the labels that followed, and drift by feature."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from interlock.monitor.v1 import analysis_pb2 as pb

from interlock_cli.demo.failure import DemoFailed
from interlock_sdk.client import Client
from interlock_sdk.values import timestamp

_LABELS_TIMEOUT_S = 60.0
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the monitor says of one version."""

    version_id: str
    quality: pb.QualityReport
    drift: pb.DriftReport
    report: str
    """Path of the page about it."""


async def verdict_of(
    client: Client, model_version: str, between: tuple[datetime, datetime], labelled_count: int
) -> Verdict:
    """Asks the monitor about `models/{model}/versions/{version}` between two times, once it has joined this many labels.

    Raises DemoFailed when they do not come in time.
    """
    scope = pb.AnalysisScope(
        model_version=model_version, start_time=timestamp(between[0]), end_time=timestamp(between[1])
    )
    quality = pb.QualityReport()
    try:
        async with asyncio.timeout(_LABELS_TIMEOUT_S):
            while True:
                quality = await client.monitoring.quality(scope)
                if quality.labelled_count >= labelled_count:
                    break
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise DemoFailed(
            f"the monitor has joined {quality.labelled_count:,} of {labelled_count:,} labels of {model_version} "
            f"within {_LABELS_TIMEOUT_S:g} s"
        ) from None
    return Verdict(
        model_version.rpartition("/")[2], quality, await client.monitoring.drift(scope), await _page(client, scope)
    )


async def _page(client: Client, scope: pb.AnalysisScope) -> str:
    try:
        return f"/v1/{(await client.reports.create(scope)).name}/content"
    except TimeoutError:
        raise DemoFailed(f"the report about {scope.model_version} is not written in time") from None


def drifted(verdict: Verdict, most: int) -> Sequence[tuple[str, float, bool]]:
    """Gives the names with the largest drift, with their population stability index, and whether it counts as drift."""
    return [(found.name, _psi(found), found.drifted) for found in verdict.drift.features[:most]]


def whole_hours(times: Sequence[datetime]) -> tuple[datetime, datetime]:
    """Gives the first hour's beginning and the last hour's end."""
    first, last = (time.replace(minute=0, second=0, microsecond=0) for time in (min(times), max(times)))
    return first, last + timedelta(hours=1)


def _psi(found: pb.FeatureDrift) -> float:
    return next((one.value.estimate for one in found.statistics if one.metric == pb.DRIFT_METRIC_PSI), 0.0)
