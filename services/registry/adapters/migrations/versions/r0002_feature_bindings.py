"""What versions fetch from feature views, those that are registered already included."""

import sqlalchemy as sa
from alembic import op
from interlock.registry.v1.model_version_pb2 import ModelVersion

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    bindings = op.create_table(
        "feature_binding",
        sa.Column("model_version", _TEXT, nullable=False),
        sa.Column("feature", _TEXT, nullable=False),
        sa.Column("view", _TEXT, nullable=False),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("model_version", "feature"),
        sa.Index("feature_binding_by_view", "view", "model_version", "feature"),
    )
    connection = op.get_bind()
    for (body,) in connection.execute(sa.text("SELECT body FROM resource WHERE kind = 'version'")).all():
        version = ModelVersion.FromString(body)
        for feature in version.signature.features:
            if feature.source not in ("", "request"):
                row = {
                    "model_version": version.name,
                    "feature": feature.name,
                    "view": feature.source.rpartition(".")[0],
                    "spec": feature.SerializeToString(deterministic=True),
                }
                connection.execute(bindings.insert().values(row))
