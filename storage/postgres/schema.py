"""Define the Postgres tables; Alembic compares the database with them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, MetaData, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Name every constraint, so that migrations can drop it by name."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it as a class attribute)
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[dict[str, Any]]: JSONB,
    }


class ItemRow(Base):
    """Store one item; its vectors can be rebuilt from it.

    The id is derived from source and key, so that it alone keeps them unique; an index over the two
    would reject keys of more than 2,700 bytes.
    """

    __tablename__ = "items"
    __table_args__ = (
        CheckConstraint("image_sha256 ~ '^[0-9a-f]{64}$'", name="image_sha256_is_hex"),
        CheckConstraint("(image_sha256 is null) = (uri is null)", name="a_picture_has_a_uri"),
        Index(None, "source"),
        CheckConstraint(
            "case when deleted is null then deletion is null and cleared is null"
            " else deletion is not null and deletion in ('asked', 'missing') end",
            name="deletion_is_known",
        ),
        Index(None, "image_sha256"),
        Index("ix_items_uncleared", "id", postgresql_where=text("deleted is not null and cleared is null")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    source: Mapped[str]
    key: Mapped[str]
    texts: Mapped[list[dict[str, Any]]]
    image_sha256: Mapped[str | None]
    uri: Mapped[str | None]
    from_strangers: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether the URI came over the API: it is fetched by stricter rules ever after."""

    width: Mapped[int | None]
    height: Mapped[int | None]
    format: Mapped[str | None]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata")
    content_hash: Mapped[str]
    record_hash: Mapped[str]
    created: Mapped[datetime] = mapped_column(server_default=text("now()"))
    updated: Mapped[datetime] = mapped_column(server_default=text("now()"))
    deleted: Mapped[datetime | None]
    """When the item became a tombstone."""

    deletion: Mapped[str | None]
    """`asked`: deleted on request; `missing`: gone from its source, and may return."""

    cleared: Mapped[datetime | None]
    """When points, blob, embedding states and texts of the item were removed."""


class ModelRow(Base):
    """Store a model that embedded items or was evaluated."""

    __tablename__ = "models"
    __table_args__ = (CheckConstraint("state in ('candidate', 'active', 'retired')", name="state_is_known"),)

    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    """A name that `load_encoder` accepts, or a folder below `models` of the data directory."""

    dim: Mapped[int]
    state: Mapped[str]
    parent: Mapped[str | None] = mapped_column(ForeignKey("models.fingerprint"))
    """The fingerprint of the model that it was fine-tuned from."""

    training: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """Data, split, losses, figures before and after; empty for a pretrained model."""

    created: Mapped[datetime] = mapped_column(server_default=text("now()"))


class CollectionRow(Base):
    """Store a Qdrant collection and its model."""

    __tablename__ = "collections"
    __table_args__ = (CheckConstraint("state in ('building', 'active', 'retired')", name="state_is_known"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(ForeignKey("models.fingerprint"))
    state: Mapped[str]
    created: Mapped[datetime] = mapped_column(server_default=text("now()"))
    activated: Mapped[datetime | None]
    retired: Mapped[datetime | None]
    """When it stopped being active; a purge counts from here."""


class MarkRow(Base):
    """Store an embedding state: the digest that a point was built from.

    It is written after the point.
    """

    __tablename__ = "marks"
    __table_args__ = (Index(None, "collection"),)

    item_id: Mapped[UUID] = mapped_column(ForeignKey("items.id"), primary_key=True)
    collection: Mapped[str] = mapped_column(ForeignKey("collections.name"), primary_key=True)
    content_hash: Mapped[str]
    record_hash: Mapped[str]
    embedded: Mapped[datetime] = mapped_column(server_default=text("now()"))


class RunRow(Base):
    """Store one run of a flow with counts and times."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(
            "outcome in ('running', 'completed', 'failed', 'crashed', 'cancelled', 'refused')",
            name="outcome_is_known",
        ),
        Index(None, "source", "started"),
        Index(None, "started"),
        Index("ix_runs_running", "started", postgresql_where=text("outcome = 'running'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    flow: Mapped[str]
    source: Mapped[str | None]
    location: Mapped[str | None]
    options: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """Options that a later run of the source must repeat."""

    prefect_run_id: Mapped[UUID | None]
    started: Mapped[datetime] = mapped_column(server_default=text("now()"))
    ended: Mapped[datetime | None]
    outcome: Mapped[str]
    error: Mapped[str | None]
    counts: Mapped[dict[str, Any]]
    seconds: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """Progress of a running run: `storage.postgres.runs.StageProgress`."""

    acknowledged: Mapped[datetime | None]
    """When a person took note of its failure; it is not reported as one since."""


class RejectRow(Base):
    """Store a rejected row; a repeated reject at its place updates it."""

    __tablename__ = "rejects"
    __table_args__ = (Index("ix_rejects_open", "source", postgresql_where=text("resolved is null")),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """Derived from source and place."""

    source: Mapped[str]
    place: Mapped[str]
    key: Mapped[str | None]
    reason: Mapped[str]
    message: Mapped[str]
    raw: Mapped[str]
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"))
    first_seen: Mapped[datetime] = mapped_column(server_default=text("now()"))
    last_seen: Mapped[datetime] = mapped_column(server_default=text("now()"))
    resolved: Mapped[datetime | None]


class SeenRow(Base):
    """Store the items that a run has met, with their places.

    They reveal duplicate keys and items that are gone.

    The rows of a run go with its end; the table is unlogged, because a crash ends the run as well.
    """

    __tablename__ = "seen"
    __table_args__ = ({"prefixes": ["UNLOGGED"]},)

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    item_id: Mapped[UUID] = mapped_column(primary_key=True)
    place: Mapped[str]


class PerceptualHashRow(Base):
    """Store the perceptual hash of an image.

    It is computed once, when near duplicates are first needed.
    """

    __tablename__ = "perceptual_hashes"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    phash: Mapped[int] = mapped_column(BigInteger)


class EvaluationRow(Base):
    """Store one figure of an evaluation with its sample sizes."""

    __tablename__ = "evaluations"
    __table_args__ = (Index(None, "collection", "at"), Index(None, "model", "at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.fingerprint"))
    collection: Mapped[str | None] = mapped_column(ForeignKey("collections.name", ondelete="SET NULL"))
    """The collection of the image vectors; None where they were computed for the evaluation."""

    at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    dataset: Mapped[str]
    direction: Mapped[str]
    lang: Mapped[str | None]
    part: Mapped[str | None]
    """Of the queries, such as `lang=de` or `kind=fruit`; None for all of them."""

    metric: Mapped[str]
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    """The 95% interval, by bootstrap over items."""

    queries: Mapped[int]
    gallery: Mapped[int]


class PromotionRow(Base):
    """Store one decision of the promotion gate and its checks."""

    __tablename__ = "promotions"
    __table_args__ = (Index(None, "candidate", "at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    candidate: Mapped[str] = mapped_column(ForeignKey("models.fingerprint"))
    active: Mapped[str | None] = mapped_column(ForeignKey("models.fingerprint"))
    """The model that was active, and compared with the candidate."""

    at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    promoted: Mapped[bool]
    forced: Mapped[bool]
    """Whether it was promoted regardless of the checks."""

    checks: Mapped[list[dict[str, Any]]]
    """Name, figures, limit and outcome of each check."""


class KeyRow(Base):
    """Store one API key, by its hash alone."""

    __tablename__ = "keys"
    __table_args__ = (
        CheckConstraint("scopes <@ '{read,write,admin}' and scopes <> '{}'", name="scopes_are_known"),
        Index("ix_keys_name", "name", unique=True, postgresql_where=text("revoked is null")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created: Mapped[datetime] = mapped_column(server_default=text("now()"))
    expires: Mapped[datetime | None]
    used: Mapped[datetime | None]
    """When it was last used, to the minute."""

    revoked: Mapped[datetime | None]


class RequestRow(Base):
    """Store an accepted API request, and later its receipt."""

    __tablename__ = "requests"
    __table_args__ = (
        CheckConstraint("kind in ('ingest', 'delete')", name="kind_is_known"),
        CheckConstraint("state in ('queued', 'running', 'done', 'failed')", name="state_is_known"),
        CheckConstraint("(body is null) = (state in ('done', 'failed'))", name="what_waits_has_a_body"),
        Index(
            "ix_requests_idempotency_key",
            "key_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key is not null"),
        ),
        Index(
            "ix_requests_waiting", "accepted", "id", postgresql_where=text("state in ('queued', 'running')")
        ),
        Index(None, "ended"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("keys.id"))
    """The key of the client."""

    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str]
    """SHA-256 of the request, which identifies a repetition."""

    kind: Mapped[str]
    source: Mapped[str | None]
    body: Mapped[bytes | None]
    """The whole request with images; deleted when the request ends."""

    state: Mapped[str]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of attempts that neither ended nor returned it: a crash or a bug."""

    accepted: Mapped[datetime] = mapped_column(server_default=text("now()"))
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    run_id: Mapped[UUID | None]
    counts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    rejects: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))
    """The rejects: key, reason, message."""

    problem: Mapped[str | None]
    """The reason of the failure, or of the wait."""
