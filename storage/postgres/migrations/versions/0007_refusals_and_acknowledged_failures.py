"""runs that were refused, and failures that a person has acknowledged"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("runs", sa.Column("acknowledged", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint(op.f("ck_runs_outcome_is_known"), "runs")
    op.create_check_constraint(
        op.f("ck_runs_outcome_is_known"),
        "runs",
        "outcome in ('running', 'completed', 'failed', 'crashed', 'cancelled', 'refused')",
    )
