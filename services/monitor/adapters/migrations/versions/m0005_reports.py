"""Reports for people, with their content."""

import sqlalchemy as sa
from alembic import op

revision = "m0005"
down_revision = "m0004"
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_TEXTS = ("report_id", "model", "request", "format", "state", "creator", "request_id", "error_message")


def upgrade() -> None:
    op.create_table(
        "report",
        *(sa.Column(name, _TEXT, nullable=False) for name in _TEXTS),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("error_code", sa.SmallInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("content", sa.LargeBinary),
        sa.PrimaryKeyConstraint("report_id"),
    )
    op.create_index("report_by_model", "report", ["model", "report_id"])
    op.create_index("report_by_request", "report", ["request_id"])
    op.create_index("report_by_state", "report", ["state"])
    op.create_index("report_by_create", "report", ["create_us"])
