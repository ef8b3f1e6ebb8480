"""Puts the monitor together."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from interlock.monitor.v1 import (
    alert_service_pb2,
    analysis_service_pb2,
    feedback_service_pb2,
    http_service_pb2,
    monitor_service_pb2,
    monitoring_policy_service_pb2,
    prediction_log_service_pb2,
    report_service_pb2,
)
from interlock.monitor.v1alpha1 import analysis_service_pb2 as alpha_analysis_service_pb2
from interlock.monitor.v1alpha1 import verdict_service_pb2

from services.common.call import Binding
from services.common.channels import open_channel
from services.common.database import Database
from services.common.errors import ServiceError
from services.common.migration import open_database
from services.common.server import Runtime
from services.common.unimplemented import unimplemented_bindings
from services.monitor.adapters.alert_metrics import PrometheusAlerts
from services.monitor.adapters.alert_sink import Alertmanager, Webhook, open_sinks
from services.monitor.adapters.alert_store import SqlAlertRules, SqlAlerts
from services.monitor.adapters.delivery_store import SqlDeliveries
from services.monitor.adapters.label_join import LabelJoin
from services.monitor.adapters.label_reader import LabelReader
from services.monitor.adapters.label_store import LabelStore
from services.monitor.adapters.log_compaction import LogCompaction
from services.monitor.adapters.log_files import LogFiles, hour_of
from services.monitor.adapters.log_journal import LogJournal, TailPart
from services.monitor.adapters.log_page import LogPages
from services.monitor.adapters.log_query import LogQuery
from services.monitor.adapters.log_reader import LogReader
from services.monitor.adapters.log_replay import LogReplay
from services.monitor.adapters.log_writer import LogWriter
from services.monitor.adapters.migrations import MIGRATIONS
from services.monitor.adapters.policy_store import PolicyStore
from services.monitor.adapters.prometheus_counts import CountsCollector
from services.monitor.adapters.prometheus_standing import StandingCollector
from services.monitor.adapters.registry_client import IDEMPOTENT, RegistryVersions
from services.monitor.adapters.report_store import SqlReportStore
from services.monitor.adapters.silence_store import SqlSilences
from services.monitor.adapters.window_store import SqlWindowStore
from services.monitor.convert.report import findings_to_json
from services.monitor.domain.alert_dispatch import AlertDispatch
from services.monitor.domain.alert_watch import AlertWatch
from services.monitor.domain.analyses import Analyses
from services.monitor.domain.bounded_queue import Drops
from services.monitor.domain.event_stream import StreamTotals
from services.monitor.domain.feedback_desk import FeedbackDesk
from services.monitor.domain.intake import Intake
from services.monitor.domain.label_intake import LabelIntake
from services.monitor.domain.log_question import EVER_US
from services.monitor.domain.policy import PolicyBook
from services.monitor.domain.ports import LabelSink, LogPolicies, PredictionSink
from services.monitor.domain.prediction_counts import PredictionCounts
from services.monitor.domain.report_desk import ReportDesk
from services.monitor.domain.report_page import Findings, ReportFormat
from services.monitor.domain.scope import Scopes
from services.monitor.domain.standing import Standings
from services.monitor.domain.window_intake import WindowIntake
from services.monitor.servicer.alert_service import AlertServicer
from services.monitor.servicer.analysis_service import AnalysisServicer
from services.monitor.servicer.feedback_service import FeedbackServicer
from services.monitor.servicer.http_service import MonitorHttpServicer
from services.monitor.servicer.monitor_service import MonitorServicer
from services.monitor.servicer.monitoring_policy_service import MonitoringPolicyServicer
from services.monitor.servicer.prediction_log_service import PredictionLogServicer
from services.monitor.servicer.report_service import ReportServicer
from services.monitor.settings import Settings, WebhookSettings

_WITHOUT_CODE: Final = (
    alpha_analysis_service_pb2,
    verdict_service_pb2,
)

_LOG: Final = structlog.get_logger(part="monitor")
_LAST_BATCHES_S: Final = 5.0
_ALERT_QUEUE_INTERVAL_S: Final = 1.0


@asynccontextmanager
async def build(settings: Settings, runtime: Runtime[Settings]) -> AsyncIterator[Sequence[Binding]]:
    """Open the adapters, and yield what the process serves."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(
                settings.monitor_database,
                MIGRATIONS,
                service="monitor",
                statement_timeout_s=settings.monitor_database_statement_timeout_s,
                version_table="alembic_version_monitor",
            )
        )
        versions = RegistryVersions(
            await stack.enter_async_context(open_channel(settings.registry_address, idempotent=IDEMPOTENT))
        )
        policies = PolicyStore(database, PolicyBook())
        await policies.load()
        counts, totals, drops = PredictionCounts(settings.prediction_count_limit), StreamTotals(), Drops()
        log = await stack.enter_async_context(_open_log(settings, runtime, policies.book, drops))
        windows = await stack.enter_async_context(
            _open_windows(
                settings, runtime, database=database, log=log, versions=versions, policies=policies.book, drops=drops
            )
        )
        await stack.enter_async_context(
            runtime.in_background(_keep_house(settings, policies, windows.store), "housekeeping")
        )
        sinks: dict[str, PredictionSink] = {"log": log.writer, "windows": windows.intake}
        intake = await stack.enter_async_context(
            _open_intake(settings, runtime, versions, sinks, drops, after_us=await windows.intake.position_us())
        )

        async def on_disk() -> None:
            await intake.drained("log")
            await log.writer.safe()

        labels = await stack.enter_async_context(
            _open_labels(
                settings,
                runtime,
                database=database,
                log=log,
                versions=versions,
                policies=policies.book,
                sinks=[windows.labels],
                drops=drops,
            )
        )
        reports = ReportDesk(SqlReportStore(database), windows.analyses, _render, runtime.spawn)
        await reports.resume()
        alerts = await stack.enter_async_context(_open_alerts(settings, runtime, database, windows.analyses))
        feedback = FeedbackServicer(labels.desk, runtime.draining, clock_tolerance_s=settings.clock_tolerance_s)
        runtime.registry.register(CountsCollector(counts, totals, drops, lambda: log.files.bad_count))
        yield (
            _binding(monitor_service_pb2, MonitorServicer(counts, totals, intake, on_disk, runtime.draining)),
            _binding(
                monitoring_policy_service_pb2,
                MonitoringPolicyServicer(policies, policies.book, versions, windows.intake.flush),
            ),
            _binding(analysis_service_pb2, AnalysisServicer(windows.analyses)),
            _binding(alert_service_pb2, alerts),
            _binding(feedback_service_pb2, feedback),
            _binding(http_service_pb2, MonitorHttpServicer(feedback, reports.store)),
            _binding(report_service_pb2, ReportServicer(reports)),
            _binding(prediction_log_service_pb2, PredictionLogServicer(labels.pages, labels.queries)),
            *unimplemented_bindings(*(module.DESCRIPTOR for module in _WITHOUT_CODE)),
        )


async def _render(findings: Findings, form: ReportFormat) -> bytes:
    return await asyncio.to_thread(findings_to_json if form is ReportFormat.JSON else _write_page, findings)


def _write_page(findings: Findings) -> bytes:
    # Plots take most of a second to import, which a start need not wait for.
    from services.monitor.adapters.report_html import write_page  # noqa: PLC0415

    return write_page(findings)


@dataclass(frozen=True, slots=True)
class _PredictionLog:
    files: LogFiles
    writer: LogWriter
    reader: LogReader
    unwritten: Sequence[TailPart]
    """What an earlier process left and could not be written yet."""


@asynccontextmanager
async def _open_log(
    settings: Settings, runtime: Runtime[Settings], policies: LogPolicies, drops: Drops
) -> AsyncIterator[_PredictionLog]:
    files = LogFiles(settings.monitor_log)
    writer = LogWriter(
        files,
        LogJournal(settings.state_dir.absolute() / "monitor" / "journal"),
        policies,
        drops,
        flush_rows=settings.monitor_log_flush_rows,
        flush_interval_s=settings.monitor_log_flush_interval_s,
        clock_tolerance_s=settings.clock_tolerance_s,
    )
    await writer.open()
    unwritten = list(writer.tail(None, 0, hour_of(EVER_US)))
    compaction = LogCompaction(files, policies, interval_s=settings.monitor_log_housekeeping_interval_s)
    async with (
        runtime.in_background(compaction.run(), "log-compaction"),
        runtime.in_background(writer.run(), "log-writer"),
    ):
        yield _PredictionLog(files, writer, LogReader(files, writer), unwritten)
    await writer.close()


@dataclass(frozen=True, slots=True)
class _Windows:
    store: SqlWindowStore
    intake: WindowIntake
    labels: LabelIntake
    analyses: Analyses


@asynccontextmanager
async def _open_windows(
    settings: Settings,
    runtime: Runtime[Settings],
    *,
    database: Database,
    log: _PredictionLog,
    versions: RegistryVersions,
    policies: PolicyBook,
    drops: Drops,
) -> AsyncIterator[_Windows]:
    """Open windows and what is asked of them; when it ends, all that came in is in the database."""
    store = SqlWindowStore(database)
    intake = WindowIntake(
        store,
        versions,
        policies,
        drops,
        # Monitors that share a database have a log each.
        position=f"predictions of {settings.monitor_log}",
        sketch_limit=settings.monitor_sketch_limit,
        feature_limit=settings.monitor_feature_limit,
        waiting_limit_rows=settings.monitor_sink_limit_rows,
        retention_s=settings.monitor_window_retention_s,
        clock_tolerance_s=settings.clock_tolerance_s,
    )
    scopes = Scopes(store, versions, policies, retention_us=int(settings.monitor_window_retention_s * 1e6))
    labels = LabelIntake(store, versions, policies, feature_limit=settings.monitor_feature_limit)
    replay = LogReplay(log.files, log.unwritten, versions)
    analyses = Analyses(store, scopes, intake.flush)
    standings = Standings(analyses)
    runtime.registry.register(StandingCollector(standings))
    async with (
        runtime.in_background(intake.run(settings.monitor_window_interval_s, replay), "windows"),
        runtime.in_background(standings.run(settings.monitor_standing_interval_s), "standings"),
    ):
        yield _Windows(store, intake, labels, analyses)
    await intake.flush()


@asynccontextmanager
async def _open_alerts(
    settings: Settings, runtime: Runtime[Settings], database: Database, analyses: Analyses
) -> AsyncIterator[AlertServicer]:
    """Open what keeps alert rules, evaluates them and tells sinks."""
    rules, alerts, silences = SqlAlertRules(database), SqlAlerts(database), SqlSilences(database)
    metrics, interval_s = PrometheusAlerts(runtime.registry), settings.monitor_alert_interval_s
    timeout_s = settings.monitor_alert_timeout_s
    async with AsyncExitStack() as stack:
        sinks = await stack.enter_async_context(
            open_sinks(_targets(settings), timeout_s=timeout_s, resend_s=settings.monitor_alert_resend_s)
        )
        dispatch = AlertDispatch(SqlDeliveries(database), silences, sinks, metrics, timeout_s=timeout_s)
        sending = dispatch.run(min(interval_s, _ALERT_QUEUE_INTERVAL_S))
        await stack.enter_async_context(runtime.in_background(sending, "alert-sinks"))
        watch = AlertWatch(rules, alerts, analyses, metrics, dispatch.wake)
        work = watch.run(interval_s, dispatch.note_orphans)
        await stack.enter_async_context(runtime.in_background(work, "alerts"))
        yield AlertServicer(rules, alerts, silences, list(sinks))


def _targets(settings: Settings) -> Mapping[str, Webhook | Alertmanager]:
    return {
        name: Webhook(str(sink.url), sink.secret.get_secret_value())
        if isinstance(sink, WebhookSettings)
        else Alertmanager(str(sink.url), sink.bearer_token.get_secret_value())
        for name, sink in settings.monitor_alert_sinks.items()
    }


@dataclass(frozen=True, slots=True)
class _Labels:
    desk: FeedbackDesk
    pages: LogPages
    queries: LogQuery


@asynccontextmanager
async def _open_labels(
    settings: Settings,
    runtime: Runtime[Settings],
    *,
    database: Database,
    log: _PredictionLog,
    versions: RegistryVersions,
    policies: PolicyBook,
    sinks: Sequence[LabelSink],
    drops: Drops,
) -> AsyncIterator[_Labels]:
    """Open what takes labels and joins them, and what reads them beside the log."""
    store = LabelStore(database, queue_limit=settings.monitor_feedback_queue_limit)
    reader = LabelReader(database)
    join = LabelJoin(
        database,
        log.reader,
        versions,
        policies=policies,
        sinks=sinks,
        drops=drops,
        interval_s=settings.monitor_label_join_interval_s,
    )
    queries = LogQuery(
        log.reader,
        reader,
        folder=settings.state_dir.absolute() / "monitor" / "queries",
        memory_bytes=settings.monitor_query_memory_bytes,
        timeout_s=settings.monitor_query_timeout_s,
        limit=settings.monitor_query_limit,
    )
    desk = FeedbackDesk(store, log.reader, versions, policies)
    async with (
        runtime.in_background(store.run(), "labels"),
        runtime.in_background(join.run(), "label-join"),
    ):
        yield _Labels(desk, LogPages(log.reader, reader), queries)


async def _keep_house(settings: Settings, policies: PolicyStore, store: SqlWindowStore) -> None:
    """Forget old windows, and learn of policies that another monitor has changed."""
    while True:
        await asyncio.sleep(settings.monitor_log_housekeeping_interval_s)
        try:
            await policies.load()
            await store.clean(int((time.time() - settings.monitor_window_retention_s) * 1e6))
        except ServiceError as error:
            _LOG.warning("housekeeping_failed", reason=error.reason)


@asynccontextmanager
async def _open_intake(
    settings: Settings,
    runtime: Runtime[Settings],
    versions: RegistryVersions,
    sinks: Mapping[str, PredictionSink],
    drops: Drops,
    *,
    after_us: int,
) -> AsyncIterator[Intake]:
    """Open what spreads predictions; when it ends, every sink has taken all of them."""
    intake = Intake(
        versions,
        sinks,
        drops,
        limit_bytes=settings.monitor_intake_limit_bytes,
        sink_limit_rows=settings.monitor_sink_limit_rows,
        after_us=after_us,
    )
    async with AsyncExitStack() as stack:
        for name, work in intake.works():
            await stack.enter_async_context(runtime.in_background(work, name))
        yield intake
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_BATCHES_S):
                await intake.drained()


def _binding(stub: Any, servicer: object) -> Binding:
    """Return the binding of the one service that a contract file defines."""
    (service,) = stub.DESCRIPTOR.services_by_name.values()
    return Binding(service.full_name, servicer)
