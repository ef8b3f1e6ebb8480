"""Labels, and answers to requests that brought them."""

import sqlalchemy as sa
from alembic import op

revision = "m0002"
down_revision = "m0001"
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "label",
        sa.Column("prediction_id", sa.LargeBinary, nullable=False),
        sa.Column("metric", _TEXT, nullable=False),
        sa.Column("number", sa.Double),
        sa.Column("text", _TEXT),
        sa.Column("event_us", sa.BigInteger, nullable=False),
        sa.Column("source", _TEXT, nullable=False),
        sa.Column("receive_us", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("model", _TEXT, nullable=False, server_default=""),
        sa.Column("version", _TEXT, nullable=False, server_default=""),
        sa.Column("variant", _TEXT, nullable=False, server_default=""),
        sa.Column("value", sa.Double),
        sa.Column("name", _TEXT),
        sa.Column("joined_value", sa.Double),
        sa.Column("batch", sa.BigInteger),
        sa.Column("batch_value", sa.Double),
        sa.Column("batch_event_us", sa.BigInteger),
        sa.Column("batch_revision", sa.BigInteger),
        sa.PrimaryKeyConstraint("prediction_id", "metric"),
    )
    op.create_index("label_by_due", "label", ["state", "due_us"])
    op.create_index("label_by_batch", "label", ["batch"])
    op.create_index("label_by_model", "label", ["model", "prediction_id"])
    op.create_table(
        "feedback_answer",
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("feedback_answer_by_create", "feedback_answer", ["create_us"])
