"""what deletes, retries and duplicates need to remember"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("items", sa.Column("deletion", sa.Text(), nullable=True))
    op.add_column("items", sa.Column("cleared", sa.DateTime(timezone=True), nullable=True))
    op.execute("update items set deletion = 'missing' where deleted is not null")
    op.create_check_constraint(
        op.f("ck_items_deletion_is_known"),
        "items",
        "case when deleted is null then deletion is null and cleared is null"
        " else deletion is not null and deletion in ('asked', 'missing') end",
    )
    op.create_index(
        "ix_items_uncleared",
        "items",
        ["id"],
        postgresql_where=sa.text("deleted is not null and cleared is null"),
    )
    op.alter_column("runs", "source", existing_type=sa.Text(), nullable=True)
    op.alter_column("runs", "location", existing_type=sa.Text(), nullable=True)
    op.add_column(
        "runs",
        sa.Column(
            "options", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
    )
    op.create_index("ix_rejects_open", "rejects", ["source"], postgresql_where=sa.text("resolved is null"))
    op.create_table(
        "perceptual_hashes",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("phash", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_perceptual_hashes")),
    )
