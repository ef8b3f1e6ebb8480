"""The tables of the monitor. `METADATA` is whole once this module is imported."""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, PrimaryKeyConstraint, Table

from services.common.database import TEXT

METADATA: Final = MetaData()

# Every change of a policy, for windows keep the policy that they began with. The highest revision is the current one.
POLICY: Final = Table(
    "monitoring_policy",
    METADATA,
    Column("model", TEXT, nullable=False),
    Column("revision", BigInteger, nullable=False),
    # Prediction time, microseconds, from which on it holds for windows.
    Column("from_us", BigInteger, nullable=False),
    Column("update_us", BigInteger, nullable=False),
    Column("etag", TEXT, nullable=False),
    Column("request_id", TEXT, nullable=False),
    # JSON.
    Column("body", TEXT, nullable=False),
    PrimaryKeyConstraint("model", "revision"),
    Index("monitoring_policy_by_request", "request_id"),
)


def _window_table(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("model", TEXT, nullable=False),
        Column("version", TEXT, nullable=False),
        Column("environment", TEXT, nullable=False),
        # Empty: everything.
        Column("slice", TEXT, nullable=False),
        # Empty: pinned.
        Column("variant", TEXT, nullable=False),
        Column("start_us", BigInteger, nullable=False),
        Column("end_us", BigInteger, nullable=False),
        Column("update_us", BigInteger, nullable=False),
        Column("body", LargeBinary, nullable=False),
        PrimaryKeyConstraint("model", "version", "environment", "slice", "variant", "start_us", "end_us"),
        Index(f"{name}_by_end", "end_us"),
    )


# What predictions looked like, window by window.
ANALYSIS_WINDOW: Final = _window_table("analysis_window")
# What became of them once labels came.
QUALITY_WINDOW: Final = _window_table("quality_window")

# How far something has been taken, in the same transaction as what came of it: that is how nothing counts twice.
POSITION: Final = Table(
    "monitor_position",
    METADATA,
    Column("name", TEXT, nullable=False),
    Column("value", BigInteger, nullable=False),
    PrimaryKeyConstraint("name"),
)
