"""what the API needs: keys, and requests that wait for their turn"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        _moment("created", server_default=sa.text("now()"), nullable=False),
        _moment("expires"),
        _moment("used"),
        _moment("revoked"),
        sa.CheckConstraint(
            "scopes <@ '{read,write,admin}' and scopes <> '{}'", name=op.f("ck_keys_scopes_are_known")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_keys")),
        sa.UniqueConstraint("sha256", name=op.f("uq_keys_sha256")),
    )
    living = sa.text("revoked is null")
    op.create_index("ix_keys_name", "keys", ["name"], unique=True, postgresql_where=living)
    op.create_table(
        "requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _moment("accepted", server_default=sa.text("now()"), nullable=False),
        _moment("started"),
        _moment("ended"),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("counts", _json(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("rejects", _json(), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.CheckConstraint("kind in ('ingest', 'delete')", name=op.f("ck_requests_kind_is_known")),
        sa.CheckConstraint(
            "state in ('queued', 'running', 'done', 'failed')", name=op.f("ck_requests_state_is_known")
        ),
        sa.CheckConstraint(
            "(body is null) = (state in ('done', 'failed'))", name=op.f("ck_requests_what_waits_has_a_body")
        ),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name=op.f("fk_requests_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
    )
    op.create_index(
        "ix_requests_idempotency_key",
        "requests",
        ["key_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key is not null"),
    )
    waiting = sa.text("state in ('queued', 'running')")
    op.create_index("ix_requests_waiting", "requests", ["accepted", "id"], postgresql_where=waiting)
    op.create_index(op.f("ix_requests_ended"), "requests", ["ended"])


def _moment(name: str, **options: object) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), **{"nullable": True, **options})


def _json() -> postgresql.JSONB:
    return postgresql.JSONB(astext_type=sa.Text())
