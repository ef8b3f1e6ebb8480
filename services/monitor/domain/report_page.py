"""Reports for people: a resource that is written in the background, and what a page is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from services.monitor.domain.analyses import Analyses, QualityRequest
from services.monitor.domain.failure import NoBaseline, NotCalibrated, ReportNotReady
from services.monitor.domain.policy import DAY_US
from services.monitor.domain.quality_window import QualityWindow
from services.monitor.domain.report import DataQualityReport, DriftReport, FairnessReport, QualityReport, TrafficReport
from services.monitor.domain.scope import ScopeRequest
from services.monitor.domain.window import WindowSketch
from services.monitor.domain.window_series import Placed

KEPT_US: Final = 30 * DAY_US
"""How long a report is kept."""


class ReportFormat(StrEnum):
    """What the content is."""

    HTML = "html"
    JSON = "json"


class ReportState(StrEnum):
    """How far a report is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report without its content."""

    report_id: str
    request: ScopeRequest
    format: ReportFormat
    state: ReportState
    creator: str
    create_us: int
    error_code: int = 0
    """gRPC status code of what went wrong. Only with FAILED."""
    error_message: str = ""
    size_bytes: int = 0

    @property
    def name(self) -> str:
        """Resource name."""
        return f"reports/{self.report_id}"

    @property
    def expire_us(self) -> int:
        """When it will be deleted."""
        return self.create_us + KEPT_US


class ReportStore(Protocol):
    """Where reports are kept. Every method raises what the database raises."""

    async def create(self, report: StoredReport, request_id: str) -> StoredReport:
        """Keep a new report; the same request_id again gives the report that it gave."""

    async def finish(self, report: StoredReport, content: bytes) -> None:
        """Keep the end of a report."""

    async def get(self, report_id: str) -> StoredReport:
        """Return a report; raises ResourceNotFound."""

    async def content(self, report_id: str) -> bytes:
        """Return the content of a report that succeeded."""

    async def page(self, model: str, before: str, size: int) -> Sequence[StoredReport]:
        """Return reports, newest first, after the one named `before`."""

    async def unfinished(self) -> Sequence[StoredReport]:
        """Return what was being written when the process ended."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a page shows. What could not be said is None, and `left_out` says why."""

    traffic: TrafficReport
    quality: QualityReport
    data_quality: DataQualityReport
    fairness: FairnessReport
    drift: DriftReport | None
    windows: Sequence[Placed[WindowSketch]]
    labelled: Sequence[Placed[QualityWindow]]
    left_out: Sequence[str]


async def find(analyses: Analyses, request: ScopeRequest) -> Findings:
    """Ask everything about a scope."""
    analyses = analyses.for_one_report()
    left_out: list[str] = []
    drift = None
    try:
        drift = await analyses.drift(request)
    except NoBaseline as error:
        left_out.append(str(error))
    try:
        quality = await analyses.quality(QualityRequest(request, include_estimates=True))
    except NotCalibrated as error:
        left_out.append(str(error))
        quality = await analyses.quality(QualityRequest(request))
    scope = quality.scope
    return Findings(
        traffic=await analyses.traffic(request),
        quality=quality,
        data_quality=await analyses.data_quality(request),
        fairness=await analyses.fairness(request),
        drift=drift,
        windows=await analyses.windows(scope),
        labelled=await analyses.labelled_windows(scope),
        left_out=left_out,
    )


def require_ready(report: StoredReport) -> None:
    """Raise ReportNotReady unless the report has a content."""
    if report.state is not ReportState.SUCCEEDED:
        raise ReportNotReady(report.name, report.state, report.error_message)
