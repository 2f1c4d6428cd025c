"""The composition root: the only place that opens models, pools and clients."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qdrant_client import QdrantClient
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from embedding.encoder import Encoder, load_encoder
from flows.settings import Settings
from storage import migrate
from storage.blobs import Blobs
from storage.embedded.postgres import find_postgres, postgres_url
from storage.embedded.qdrant.client import find_index, index_client
from storage.embedded.server import Server

CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Deps:
    """What a step needs from outside, passed as an argument and never imported."""

    encoder: Encoder
    engine: Engine
    sessions: sessionmaker[Session]
    vectors: QdrantClient
    blobs: Blobs | None
    """None where pictures are not kept."""


@contextmanager
def open_deps(settings: Settings) -> Iterator[Deps]:
    """Open the stores and the model that `settings` name, and close them on the way out."""
    with open_catalog(settings) as engine, open_index(settings) as vectors:
        encoder = load_encoder(settings.model, device=settings.device)
        yield Deps(encoder, engine, sessionmaker(engine), vectors, open_blobs(settings))


@contextmanager
def open_catalog(settings: Settings) -> Iterator[Engine]:
    """Open Postgres, brought to the newest schema: the server that is set, else our own."""
    given = settings.database_url
    url = given.get_secret_value() if given else postgres_url(settings.home)
    engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
    try:
        with engine.begin() as connection:
            migrate.upgrade(connection)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def open_index(settings: Settings) -> Iterator[QdrantClient]:
    """Open Qdrant: the server that is set, else our own index in the home folder.

    Whoever gets the client need not ask which of the two it is: both speak Qdrant's REST API.
    """
    if settings.qdrant.url is None:
        with index_client(settings.home, timeout_s=settings.qdrant.timeout_s) as client:
            yield client
        return
    # whoever cannot be asked for a version cannot be asked for anything, and that error says it better
    warnings.filterwarnings("ignore", message="Failed to obtain server version", category=UserWarning)
    key = settings.qdrant.api_key.get_secret_value() if settings.qdrant.api_key else None
    client = QdrantClient(settings.qdrant.url, api_key=key, timeout=settings.qdrant.timeout_s)
    try:
        yield client
    finally:
        client.close()


def embedded_servers(settings: Settings) -> list[Server]:
    """Return those servers of our own that `settings` use and that run now."""
    postgres = find_postgres(settings.home) if settings.database_url is None else None
    qdrant = find_index(settings.home) if settings.qdrant.url is None else None
    return [server for server in (postgres, qdrant) if server is not None]


def open_blobs(settings: Settings) -> Blobs | None:
    """Return the store of picture bytes, or None where pictures are not kept."""
    if not settings.keep_pictures:
        return None
    return Blobs(settings.pictures_url or str(settings.home.absolute() / "pictures"))
