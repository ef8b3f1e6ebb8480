"""Alert rules, alerts, what sinks are told, silences."""

import sqlalchemy as sa
from alembic import op

revision = "m0004"
down_revision = "m0003"
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "alert_rule",
        *(sa.Column(name, _TEXT, nullable=False) for name in ("name", "folded_name", "model", "etag", "body")),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("alert_rule_by_folded_name", "alert_rule", ["folded_name"], unique=True)
    op.create_table(
        "alert",
        sa.Column("name", _TEXT, nullable=False),
        sa.Column("open_key", _TEXT),
        *(
            sa.Column(name, _TEXT, nullable=False)
            for name in ("rule", "model", "version", "environment", "slice", "feature")
        ),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("fire_us", sa.BigInteger),
        sa.Column("resolve_us", sa.BigInteger),
        sa.Column("rule_body", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("alert_by_open_key", "alert", ["open_key"], unique=True)
    op.create_index("alert_by_rule", "alert", ["rule", "state"])
    op.create_index("alert_by_state", "alert", ["state", "name"])
    op.create_table(
        "alert_delivery",
        *(sa.Column(name, _TEXT, nullable=False) for name in ("alert", "sink", "event")),
        sa.Column("due_us", sa.BigInteger),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("held", sa.SmallInteger, nullable=False),
        sa.Column("delivered_us", sa.BigInteger),
        sa.Column("error", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("alert", "sink", "event"),
    )
    op.create_index("alert_delivery_by_due", "alert_delivery", ["sink", "due_us"])
    op.create_table(
        "silence",
        *(sa.Column(name, _TEXT, nullable=False) for name in ("name", "rule", "model", "feature")),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        *(sa.Column(name, _TEXT, nullable=False) for name in ("reason", "creator")),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("silence_by_end", "silence", ["end_us"])
    op.create_table(
        "change_answer",
        sa.Column("request_id", _TEXT, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("body", _TEXT, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("change_answer_by_create", "change_answer", ["create_us"])
