"""Definitions, when they were applied, and answers to repeated requests."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "features_head",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
    )
    op.execute("INSERT INTO features_head (id, version, time_us) VALUES (1, 0, 0)")
    op.create_table(
        "features_definition",
        sa.Column("name", _TEXT, primary_key=True),
        sa.Column("folded_name", _TEXT, nullable=False, unique=True),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Index("features_definition_by_kind", "kind", "name"),
    )
    op.create_table(
        "features_applied",
        sa.Column("version", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("principal", _TEXT, nullable=False),
        sa.Column("source_revision", _TEXT, nullable=False),
        sa.Column("changes", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "features_answer",
        sa.Column("principal", _TEXT, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("fingerprint", _TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "request_id"),
        sa.Index("features_answer_by_time", "time_us"),
    )
