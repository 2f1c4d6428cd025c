"""what watching needs: how far a run is, and the latest runs of all flows"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("runs", sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_index(op.f("ix_runs_started"), "runs", ["started"])
    running = sa.text("outcome = 'running'")
    op.create_index("ix_runs_running", "runs", ["started"], postgresql_where=running)
