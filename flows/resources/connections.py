"""The composition root: the only place that opens models, pools and clients."""

import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from embedding.encoders.sentence_encoder import Encoder
from embedding.process_tuning import keep_freed_memory, wait_briefly
from flows.config.settings import Qdrant, Settings
from flows.resources.model_loader import active_model, open_model
from flows.tracking.retry_policy import first_line, is_transient, persist
from storage import qdrant
from storage.blobs import Blobs
from storage.embedded.postgres.server import find_postgres, postgres_url
from storage.embedded.qdrant.process.client import find_index, index_client
from storage.embedded.server_info import Server
from storage.postgres import migrate
from storage.postgres.engine import address_of, open_engine


class StoreUnavailable(RuntimeError):
    """A store did not answer in time, however often it was asked; nothing half-done counts as done."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything at rest, passed as an argument and never imported."""

    engine: Engine
    sessions: sessionmaker[Session]
    vectors: QdrantClient
    blobs: Blobs | None
    """None where images are not kept."""


@dataclass(frozen=True, slots=True)
class Deps(Stores):
    """What a step needs that makes vectors as well."""

    encoder: Encoder

    def encoder_of(self, collection: qdrant.Collection) -> Encoder:
        """Return what queries of `collection` are encoded by.

        Raises:
            ModelMismatch: another model made it.
        """
        qdrant.require_model(collection, self.encoder.fingerprint, self.encoder.name)
        return self.encoder

    def timed(self, asked: str, find: str) -> AbstractContextManager[None]:  # noqa: ARG002 (who takes it, asks)
        """Return what a search happens in; here nobody takes the time."""
        return nullcontext()


@contextmanager
def open_stores(settings: Settings, *, wait_s: float = 0) -> Iterator[Stores]:
    """Open the stores that `settings` name, and close them on the way out; see `open_catalog`."""
    with open_catalog(settings, wait_s=wait_s) as engine, open_index(settings) as vectors:
        yield Stores(engine, sessionmaker(engine), vectors, open_blobs(settings))


@contextmanager
def open_deps(settings: Settings, *, wait_s: float = 0) -> Iterator[Deps]:
    """Open the stores and the model that `settings` name, and close them afterwards; see `open_catalog`."""
    with open_stores(settings, wait_s=wait_s) as stores:
        yield with_model(stores, settings)


def with_model(stores: Stores, settings: Settings) -> Deps:
    """Return `stores` with the model that searches use, or before the first ingest the one that is set.

    Raises:
        OtherModel: a model is set that has never been used here.
        ModelUnavailable: it cannot be loaded.
    """
    keep_freed_memory()
    wait_briefly()
    encoder = open_model(settings, active_model(stores.vectors, stores.sessions, settings))
    return Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, encoder)


@contextmanager
def open_catalog(settings: Settings, *, wait_s: float = 0) -> Iterator[Engine]:
    """Open Postgres, brought to the newest schema: the server that is set, else our own.

    Args:
        wait_s: how long to try a server that does not answer yet; a person at a terminal is told at once.

    Raises:
        StoreUnavailable: it does not answer, now or while it is in use.
    """
    with open_database(settings) as engine:
        persist(partial(_migrate, engine), for_s=wait_s)
        yield engine


@contextmanager
def open_database(settings: Settings) -> Iterator[Engine]:
    """Open Postgres as it is; see `open_catalog`."""
    given = settings.database_url
    if given:
        engine = open_engine(given.get_secret_value(), timeout_s=settings.database_timeout_s)
    else:
        own = partial(postgres_url, settings.home)  # starts it: nobody else would, if it died meanwhile
        engine = open_engine(own(), timeout_s=settings.database_timeout_s, before_connecting=own)
    try:
        with postgres_named(settings, engine):
            yield engine
    finally:
        engine.dispose()


@contextmanager
def postgres_named(settings: Settings, engine: Engine) -> Iterator[None]:
    """Have the error of a Postgres that does not answer name it and the remedy.

    Raises:
        StoreUnavailable: it does not answer.
    """
    try:
        yield
    except DBAPIError as error:
        if not is_transient(error):
            raise
        remedy = (
            "is the server of SIGHTLINE_DATABASE_URL running?"
            if settings.database_url
            else "see its log with --debug"
        )
        raise StoreUnavailable(
            f"Postgres at {address_of(engine)} does not answer ({first_line(error)}); {remedy}"
        ) from error


@contextmanager
def open_index(settings: Settings) -> Iterator[QdrantClient]:
    """Open Qdrant: the server that is set, else our own index in the home folder.

    Whoever gets the client need not ask which of the two it is: both speak Qdrant's REST API.

    Raises:
        StoreUnavailable: it does not answer, now or while it is in use.
    """
    url = settings.qdrant.url
    own = index_client(settings.home, timeout_s=settings.qdrant.timeout_s)
    with index_named(settings), own if url is None else _server(url, settings.qdrant) as client:
        yield client


@contextmanager
def index_named(settings: Settings) -> Iterator[None]:
    """Have the error of a Qdrant that does not answer name it and the remedy.

    Raises:
        StoreUnavailable: it does not answer.
    """
    url = settings.qdrant.url
    try:
        yield
    except (ResponseHandlingException, UnexpectedResponse) as error:
        if not is_transient(error):
            raise
        where = url or f"{settings.home} (our own)"
        remedy = (
            "is the server of SIGHTLINE_QDRANT__URL running?" if url else "the next command starts it again"
        )
        raise StoreUnavailable(
            f"Qdrant at {where} does not answer ({first_line(error)}); {remedy}"
        ) from error


@contextmanager
def _server(url: str, settings: Qdrant) -> Iterator[QdrantClient]:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    trusted = _certificates(settings) if url.startswith("https:") else True
    # it would ask for the version in a thread that nobody waits for, and warn where the first request fails
    client = QdrantClient(
        url, api_key=key, timeout=settings.timeout_s, verify=trusted, check_compatibility=False
    )
    try:
        yield client
    finally:
        client.close()


def _certificates(settings: Qdrant) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.client_certificate is not None:
        context.load_cert_chain(settings.client_certificate)
    return context


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection)


def embedded_servers(settings: Settings) -> list[Server]:
    """Return those servers of our own that `settings` use and that run now."""
    postgres = find_postgres(settings.home) if settings.database_url is None else None
    index = find_index(settings.home) if settings.qdrant.url is None else None
    return [server for server in (postgres, index) if server is not None]


def open_blobs(settings: Settings) -> Blobs | None:
    """Return the store of image bytes, or None where images are not kept."""
    if not settings.keep_pictures:
        return None
    return Blobs(settings.pictures_url or str(settings.home.absolute() / "pictures"))
