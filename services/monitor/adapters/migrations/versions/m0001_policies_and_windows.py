"""Policies, windows, positions."""

import sqlalchemy as sa
from alembic import op

revision = "m0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_WINDOW_KEY = ("model", "version", "environment", "slice", "variant", "start_us", "end_us")


def upgrade() -> None:
    op.create_table(
        "monitoring_policy",
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("from_us", sa.BigInteger, nullable=False),
        sa.Column("update_us", sa.BigInteger, nullable=False),
        sa.Column("etag", _TEXT, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("body", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("model", "revision"),
    )
    op.create_index("monitoring_policy_by_request", "monitoring_policy", ["request_id"])
    for name in ("analysis_window", "quality_window"):
        op.create_table(
            name,
            *(sa.Column(column, _TEXT, nullable=False) for column in _WINDOW_KEY[:5]),
            sa.Column("start_us", sa.BigInteger, nullable=False),
            sa.Column("end_us", sa.BigInteger, nullable=False),
            sa.Column("update_us", sa.BigInteger, nullable=False),
            sa.Column("body", sa.LargeBinary, nullable=False),
            sa.PrimaryKeyConstraint(*_WINDOW_KEY),
        )
        op.create_index(f"{name}_by_end", name, ["end_us"])
        op.create_index(f"{name}_by_model", name, ["model", "environment", "end_us"])
    op.create_table(
        "monitor_position",
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
