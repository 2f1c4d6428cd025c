"""what watching needs: how far a run is, the latest runs of all flows, runs that a person cancelled"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("runs", sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_index(op.f("ix_runs_started"), "runs", ["started"])
    running = sa.text("outcome = 'running'")
    op.drop_constraint(op.f("ck_runs_outcome_is_known"), "runs")
    op.create_check_constraint(
        op.f("ck_runs_outcome_is_known"),
        "runs",
        "outcome in ('running', 'completed', 'failed', 'crashed', 'cancelled')",
    )
    op.create_index("ix_runs_running", "runs", ["started"], postgresql_where=running)
