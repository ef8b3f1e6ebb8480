"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("registry_id", _TEXT, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("kept_after", sa.BigInteger, nullable=False),
        sa.Column("audit_sequence", sa.BigInteger, nullable=False),
        sa.Column("audit_hash", _TEXT, nullable=False),
    )
    op.create_table(
        "resource",
        sa.Column("name", _TEXT, primary_key=True),
        sa.Column("folded_name", _TEXT, nullable=False, unique=True),
        sa.Column("other_name", _TEXT, nullable=True),
        sa.Column("folded_other_name", _TEXT, nullable=True, unique=True),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("sort_key", _TEXT, nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("model_version", _TEXT, nullable=False),
        sa.Column("environment", _TEXT, nullable=False),
        sa.Column("pool", _TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("resource_by_kind", "resource", ["kind", "model", "sort_key"])
    op.create_index("resource_by_environment", "resource", ["kind", "environment"])
    op.create_index("resource_by_pool", "resource", ["kind", "pool"])
    op.create_index("resource_by_version", "resource", ["kind", "model_version"])
    op.create_index("resource_by_other_name", "resource", ["other_name"])
    op.create_table(
        "change",
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("environment", _TEXT, nullable=False),
        sa.Column("pool", _TEXT, nullable=False),
        sa.Column("gone", sa.Boolean, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=True),
        sa.PrimaryKeyConstraint("epoch", "ordinal"),
    )
    op.create_index("change_by_environment", "change", ["environment", "epoch"])
    op.create_index("change_by_pool", "change", ["pool", "epoch"])
    op.create_index("change_by_name", "change", ["name", "time_us"])
    op.create_table(
        "audit_entry",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("principal", _TEXT, nullable=False),
        sa.Column("action", _TEXT, nullable=False),
        sa.Column("resource", _TEXT, nullable=False),
        sa.Column("before_digest", _TEXT, nullable=False),
        sa.Column("after_digest", _TEXT, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("previous_hash", _TEXT, nullable=False),
        sa.Column("hash", _TEXT, nullable=False),
    )
    op.create_index("audit_entry_by_resource", "audit_entry", ["resource", "sequence"])
    op.create_table(
        "replica_report",
        sa.Column("deployment", _TEXT, nullable=False),
        sa.Column("replica_id", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("message", _TEXT, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("expire_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("deployment", "replica_id"),
    )
    op.create_index("replica_report_by_replica", "replica_report", ["replica_id"])
    op.create_index("replica_report_by_expiry", "replica_report", ["expire_us"])
    op.create_table(
        "answer",
        sa.Column("principal", _TEXT, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("fingerprint", _TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("principal", "request_id"),
    )
    op.create_index("answer_by_time", "answer", ["time_us"])
