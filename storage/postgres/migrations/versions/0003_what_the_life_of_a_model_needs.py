"""what the life of a model needs: lineage, intervals, decisions"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("models", sa.Column("parent", sa.Text(), nullable=True))
    op.create_foreign_key(op.f("fk_models_parent"), "models", "models", ["parent"], ["fingerprint"])
    op.add_column("models", sa.Column("training", _json(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("collections", sa.Column("retired", sa.DateTime(timezone=True), nullable=True))
    op.execute("update collections set retired = now() where state = 'retired'")
    op.add_column("evaluations", sa.Column("model", sa.Text(), nullable=True))
    op.execute(
        "update evaluations set model = collections.fingerprint from collections"
        " where collections.name = evaluations.collection"
    )
    op.alter_column("evaluations", "model", existing_type=sa.Text(), nullable=False)
    op.create_foreign_key(op.f("fk_evaluations_model"), "evaluations", "models", ["model"], ["fingerprint"])
    op.create_index(op.f("ix_evaluations_model_at"), "evaluations", ["model", "at"])
    op.alter_column("evaluations", "collection", existing_type=sa.Text(), nullable=True)
    op.drop_constraint(op.f("fk_evaluations_collection"), "evaluations")
    op.create_foreign_key(
        op.f("fk_evaluations_collection"),
        "evaluations",
        "collections",
        ["collection"],
        ["name"],
        ondelete="SET NULL",
    )
    op.add_column("evaluations", sa.Column("part", sa.Text(), nullable=True))
    op.add_column("evaluations", sa.Column("low", sa.Float(), nullable=True))
    op.add_column("evaluations", sa.Column("high", sa.Float(), nullable=True))
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("active", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("promoted", sa.Boolean(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("checks", _json(), nullable=False),
        sa.ForeignKeyConstraint(["candidate"], ["models.fingerprint"], name=op.f("fk_promotions_candidate")),
        sa.ForeignKeyConstraint(["active"], ["models.fingerprint"], name=op.f("fk_promotions_active")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
    )
    op.create_index(op.f("ix_promotions_candidate_at"), "promotions", ["candidate", "at"])


def _json() -> postgresql.JSONB:
    return postgresql.JSONB(astext_type=sa.Text())
