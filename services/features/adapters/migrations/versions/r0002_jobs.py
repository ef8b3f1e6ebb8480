"""Jobs."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "features_job",
        sa.Column("name", _TEXT, primary_key=True),
        sa.Column("folded_name", _TEXT, nullable=False, unique=True),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("sort_key", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("feature_view", _TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("checkpoint", sa.BigInteger(), nullable=False),
        sa.Column("owner", _TEXT, nullable=False),
        sa.Column("lease_us", sa.BigInteger(), nullable=False),
        sa.Index("features_job_by_kind", "kind", "sort_key"),
        sa.Index("features_job_by_state", "state", "lease_us"),
        sa.Index("features_job_by_view", "feature_view", "state"),
    )
