"""The tables of the definitions. Each is kept as the contract's message beside the columns that are searched for.

`features_head` has one row: whoever writes locks it first. Other services may live in the same database: every table
begins with `features_`.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, Table

from services.common.database import TEXT

METADATA: Final = MetaData()

HEAD: Final = Table(
    "features_head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("time_us", BigInteger, nullable=False),
)

DEFINITION: Final = Table(
    "features_definition",
    METADATA,
    Column("name", TEXT, primary_key=True),
    Column("folded_name", TEXT, nullable=False, unique=True),
    Column("kind", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("features_definition_by_kind", "kind", "name"),
)

APPLIED: Final = Table(
    "features_applied",
    METADATA,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("time_us", BigInteger, nullable=False),
    Column("principal", TEXT, nullable=False),
    Column("source_revision", TEXT, nullable=False),
    Column("changes", LargeBinary, nullable=False),
)

ANSWER: Final = Table(
    "features_answer",
    METADATA,
    Column("principal", TEXT, nullable=False),
    Column("request_id", TEXT, nullable=False),
    Column("fingerprint", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("principal", "request_id"),
    Index("features_answer_by_time", "time_us"),
)

JOB: Final = Table(
    "features_job",
    METADATA,
    Column("name", TEXT, primary_key=True),
    Column("folded_name", TEXT, nullable=False, unique=True),
    Column("kind", TEXT, nullable=False),
    # Newest first: counts down.
    Column("sort_key", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("feature_view", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("checkpoint", BigInteger, nullable=False),
    Column("owner", TEXT, nullable=False),
    Column("lease_us", BigInteger, nullable=False),
    Index("features_job_by_kind", "kind", "sort_key"),
    Index("features_job_by_state", "state", "lease_us"),
    Index("features_job_by_view", "feature_view", "state"),
)
