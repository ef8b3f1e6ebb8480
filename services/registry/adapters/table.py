"""The tables. A resource is kept as the contract's message beside the columns that are searched for.

`head` has one row: whoever writes locks it first, so writers go one after the other and epochs are in commit order.
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, Table

from services.common.database import TEXT

METADATA: Final = MetaData()

HEAD: Final = Table(
    "head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("registry_id", TEXT, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("kept_after", BigInteger, nullable=False),
    Column("audit_sequence", BigInteger, nullable=False),
    Column("audit_hash", TEXT, nullable=False),
)

RESOURCE: Final = Table(
    "resource",
    METADATA,
    Column("name", TEXT, primary_key=True),
    Column("folded_name", TEXT, nullable=False, unique=True),
    Column("other_name", TEXT, nullable=True),
    Column("folded_other_name", TEXT, nullable=True, unique=True),
    Column("kind", TEXT, nullable=False),
    Column("sort_key", TEXT, nullable=False),
    Column("model", TEXT, nullable=False),
    Column("model_version", TEXT, nullable=False),
    Column("environment", TEXT, nullable=False),
    Column("pool", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("resource_by_kind", "kind", "model", "sort_key"),
    Index("resource_by_environment", "kind", "environment"),
    Index("resource_by_pool", "kind", "pool"),
    Index("resource_by_version", "kind", "model_version"),
    Index("resource_by_other_name", "other_name"),
)

# What versions fetch from feature views, so that nobody reads every version to learn it.
FEATURE_BINDING: Final = Table(
    "feature_binding",
    METADATA,
    Column("model_version", TEXT, nullable=False),
    Column("feature", TEXT, nullable=False),
    Column("view", TEXT, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    PrimaryKeyConstraint("model_version", "feature"),
    Index("feature_binding_by_view", "view", "model_version", "feature"),
)

CHANGE: Final = Table(
    "change",
    METADATA,
    Column("epoch", BigInteger, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("environment", TEXT, nullable=False),
    Column("pool", TEXT, nullable=False),
    Column("gone", Boolean, nullable=False),
    # Absent for versions, which never change: their one body is in `resource`.
    Column("body", LargeBinary, nullable=True),
    PrimaryKeyConstraint("epoch", "ordinal"),
    Index("change_by_environment", "environment", "epoch"),
    Index("change_by_pool", "pool", "epoch"),
    Index("change_by_name", "name", "time_us"),
)

AUDIT: Final = Table(
    "audit_entry",
    METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time_us", BigInteger, nullable=False),
    Column("principal", TEXT, nullable=False),
    Column("action", TEXT, nullable=False),
    Column("resource", TEXT, nullable=False),
    Column("before_digest", TEXT, nullable=False),
    Column("after_digest", TEXT, nullable=False),
    Column("request_id", TEXT, nullable=False),
    Column("previous_hash", TEXT, nullable=False),
    Column("hash", TEXT, nullable=False),
    Index("audit_entry_by_resource", "resource", "sequence"),
)

REPORT: Final = Table(
    "replica_report",
    METADATA,
    Column("deployment", TEXT, nullable=False),
    Column("replica_id", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("message", TEXT, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("expire_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("deployment", "replica_id"),
    Index("replica_report_by_replica", "replica_id"),
    Index("replica_report_by_expiry", "expire_us"),
)

ANSWER: Final = Table(
    "answer",
    METADATA,
    Column("principal", TEXT, nullable=False),
    Column("request_id", TEXT, nullable=False),
    Column("fingerprint", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("principal", "request_id"),
    Index("answer_by_time", "time_us"),
)
