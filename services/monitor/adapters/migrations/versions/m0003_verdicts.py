"""What had drifted in windows."""

import sqlalchemy as sa
from alembic import op

revision = "m0003"
down_revision = "m0002"
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "window_verdict",
        *(sa.Column(name, _TEXT, nullable=False) for name in ("model", "version", "environment", "slice")),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("drifted", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("model", "version", "environment", "slice", "start_us", "end_us"),
    )
