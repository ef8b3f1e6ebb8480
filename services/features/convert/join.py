"""What somebody wants joined, read from the contract."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from interlock.features.v1 import offline_feature_service_pb2 as pb

from services.common.errors import Violation, echo
from services.common.refusals import InvalidRequest, refuse
from services.common.stamp import duration_from_proto
from services.features.convert.job import check_references, clock_from_proto
from services.features.domain.catalog import Snapshot
from services.features.domain.point_in_time import JoinPlan, plan_views

CHUNK_LIMIT_BYTES: Final = 1024 * 1024
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True)
class JoinOrder:
    """A join that is sound by itself."""

    open: pb.JoinOpen
    features: Sequence[str]
    entity_columns: Mapping[str, str]

    def plan(self, snapshot: Snapshot) -> JoinPlan:
        """Return the plan by the definitions; raises ResourceNotFound, InvalidRequest."""
        views = plan_views(snapshot, self.features, self.entity_columns)
        plan = JoinPlan(
            self.open.time_column,
            views,
            time_zone=self.open.time_zone,
            clock=clock_from_proto(self.open.clock),
            assumed_delay_us=duration_from_proto(self.open.assumed_delay) // _MICROSECOND,
            include_event_times=self.open.include_event_times,
        )
        known = [key.entity for key in plan.keys]
        refuse(
            [
                Violation(f"open.entity_columns[{echo(entity)}]", f"want an entity of the views ({', '.join(known)})")
                for entity in sorted(set(self.entity_columns) - set(known))
            ]
        )
        return plan


def order_from_proto(message: pb.JoinFeaturesRequest | None) -> JoinOrder:
    """Return what the first message of a stream asks for."""
    if message is None or message.WhichOneof("message") != "open":
        raise InvalidRequest([Violation("open", "want it in the first message, got something else or nothing")])
    opened = message.open
    refuse(list(_check(opened)))
    return JoinOrder(opened, tuple(opened.features), dict(opened.entity_columns))


def chunk_from_proto(message: pb.JoinFeaturesRequest) -> bytes:
    """Return the bytes of any later message."""
    if message.WhichOneof("message") != "arrow_stream":
        raise InvalidRequest([Violation("arrow_stream", "want it in every message after the first, got another one")])
    if len(message.arrow_stream) > CHUNK_LIMIT_BYTES:
        got = len(message.arrow_stream)
        raise InvalidRequest([Violation("arrow_stream", f"want at most {CHUNK_LIMIT_BYTES} bytes, got {got}")])
    return message.arrow_stream


def _check(opened: pb.JoinOpen) -> Iterator[Violation]:
    yield from check_references(tuple(opened.features), "open.features")
    if not opened.time_column:
        yield Violation("open.time_column", "want the name of a column, got nothing")
    if opened.time_zone and not _is_zone(opened.time_zone):
        want = 'want an IANA zone such as "America/New_York"'
        yield Violation("open.time_zone", f"{want}, got {echo(opened.time_zone)}")
    if duration_from_proto(opened.assumed_delay) < timedelta():
        yield Violation("open.assumed_delay", "want 0 or more, got less")


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
