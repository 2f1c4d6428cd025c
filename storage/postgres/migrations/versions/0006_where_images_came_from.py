"""whether an image's URI came over the API"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "items", sa.Column("from_strangers", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    # a source has one run at a time, so that the run that wrote an item is known by when it did
    op.execute(
        """
        update items set from_strangers = true
        where uri is not null and exists (
            select from runs
            where runs.flow = 'api' and runs.source = items.source
            and items.updated between runs.started and coalesce(runs.ended, 'infinity')
        )
        """
    )
