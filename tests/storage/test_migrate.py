import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from storage.postgres import migrate
from storage.postgres.schema import Base


def test_the_migrations_build_exactly_the_schema(engine: Engine):
    with engine.connect() as connection:
        connection.execute(text("create schema fresh"))
        connection.execute(text("set search_path to fresh"))

        migrate.upgrade(connection)

        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        connection.rollback()


def test_migrating_twice_changes_nothing(engine: Engine):
    with engine.begin() as connection:
        migrate.upgrade(connection)


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        (
            "insert into items"
            " (id, source, key, texts, metadata, content_hash, record_hash, image_sha256, uri)"
            " values (gen_random_uuid(), 's', 'k', '[]', '{}', '', '', 'not hex', 'u')",
            "image_sha256_is_hex",
        ),
        (
            "insert into items (id, source, key, texts, metadata, content_hash, record_hash, uri)"
            " values (gen_random_uuid(), 's', 'k', '[]', '{}', '', '', 'u')",
            "a_picture_has_a_uri",
        ),
        ("insert into models (fingerprint, name, dim, state) values ('f', 'm', 3, 'odd')", "state_is_known"),
        (
            "insert into runs (id, flow, source, location, outcome, counts, seconds)"
            " values (gen_random_uuid(), 'f', 's', 'l', 'odd', '{}', '{}')",
            "outcome_is_known",
        ),
    ],
)
def test_the_database_refuses_what_the_code_should_never_write(
    engine: Engine, statement: str, constraint: str
):
    with engine.connect() as connection, pytest.raises(IntegrityError, match=constraint):
        connection.execute(text(statement))
