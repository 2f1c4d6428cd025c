"""Services only. What a test is about stays in the test."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from qdrant_client import QdrantClient
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import sessionmaker

from flows.deps import Deps
from flows.settings import Settings
from storage import migrate
from storage.blobs import Blobs
from storage.embedded.postgres import postgres_url, stop_postgres
from tests.fakes import ColourEncoder

# The same examples everywhere, and no clock: a busy machine must not decide whether a test passes.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def a_clean_environment() -> None:
    """No setting of whoever runs the tests reaches them."""
    for name in [name for name in os.environ if name.startswith(("SIGHTLINE_", "PREFECT_"))]:
        del os.environ[name]


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose Postgres runs for as long as the tests do."""
    home = tmp_path_factory.mktemp("home")
    yield home
    stop_postgres(home)


@pytest.fixture(scope="session")
def migrated(postgres_home: Path) -> Iterator[Engine]:
    """The real Postgres, built by the migrations."""
    engine = create_engine(postgres_url(postgres_home))
    with engine.begin() as connection:
        migrate.upgrade(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(migrated: Engine) -> Iterator[Engine]:
    """The real Postgres, emptied after each test; commits are real, so locks and crashes are too."""
    yield migrated
    with migrated.begin() as connection:
        connection.execute(
            text("truncate items, marks, rejects, runs, models, collections, evaluations, seen cascade")
        )


@pytest.fixture
def vectors() -> Iterator[QdrantClient]:
    """Qdrant's own in-process engine: empty, and gone with the test."""
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def deps(engine: Engine, vectors: QdrantClient, tmp_path: Path) -> Deps:
    """The real stores, and a model whose vectors can be worked out by hand."""
    return Deps(ColourEncoder(), engine, sessionmaker(engine), vectors, Blobs(str(tmp_path / "blobs")))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", batch_size=4)
