"""Open models, pools and clients; no other module does."""

import logging
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import NoReturn
from urllib.parse import urlsplit

from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from embedding.encoders.sentence_encoder import Encoder
from embedding.process_tuning import keep_freed_memory, shorten_spinning
from flows.config.addresses import is_loopback
from flows.config.settings import Qdrant, Settings
from flows.resources.model_loader import active_model, open_model
from flows.tracking.retry_policy import persist
from storage import qdrant
from storage.blobs import Blobs
from storage.embedded.postgres.server import find_postgres, postgres_url
from storage.embedded.qdrant.process.client import find_index, index_client
from storage.embedded.server_info import Server
from storage.errors import StoreUnavailable
from storage.fault_evidence import message_of
from storage.faults import find_fault
from storage.postgres import migrate
from storage.postgres.engine import address_of, open_engine
from storage.redaction import redacted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stores:
    """Hold the stores, passed as an argument and never imported."""

    engine: Engine
    sessions: sessionmaker[Session]
    vectors: QdrantClient
    blobs: Blobs | None
    """None where images are not kept."""


@dataclass(frozen=True, slots=True)
class Deps(Stores):
    """Hold the stores and the model that encodes."""

    encoder: Encoder

    def searched_collection(self, *, refresh: bool = False) -> qdrant.Collection | None:  # noqa: ARG002
        """Return the collection behind the alias, or None before the first ingest.

        Args:
            refresh: describe it now instead of reading a cache.
        """
        return qdrant.active_collection(self.vectors)

    def encoder_of(self, collection: qdrant.Collection) -> Encoder:
        """Return the encoder of the queries of `collection`.

        Raises:
            ModelMismatch: another model made it.
        """
        qdrant.require_model(collection, self.encoder.fingerprint, self.encoder.name)
        return self.encoder

    def timed(self, kind: str, find: str) -> AbstractContextManager[None]:  # noqa: ARG002 (`SearchDeps` uses them)
        """Return a context to measure a search in; this one measures nothing."""
        return nullcontext()


@contextmanager
def open_stores(settings: Settings, *, wait_s: float = 0) -> Iterator[Stores]:
    """Open the stores of `settings`; see `open_catalog`."""
    with open_catalog(settings, wait_s=wait_s) as engine, open_index(settings) as vectors:
        yield Stores(engine, sessionmaker(engine), vectors, open_blobs(settings))


@contextmanager
def open_deps(settings: Settings, *, wait_s: float = 0) -> Iterator[Deps]:
    """Open the stores and the model of `settings`; see `open_catalog`."""
    with open_stores(settings, wait_s=wait_s) as stores:
        yield with_model(stores, settings)


def with_model(stores: Stores, settings: Settings) -> Deps:
    """Add the model that searches use to `stores`.

    Before the first ingest it is the model of the settings.

    Raises:
        UnusedModel: a model is set that has never been used here.
        ModelUnavailable: it cannot be loaded.
    """
    keep_freed_memory()
    shorten_spinning()
    encoder = open_model(settings, active_model(stores.vectors, stores.sessions, settings))
    return Deps(stores.engine, stores.sessions, stores.vectors, stores.blobs, encoder)


@contextmanager
def open_catalog(settings: Settings, *, wait_s: float = 0) -> Iterator[Engine]:
    """Open Postgres with the newest schema: a server, or the embedded one.

    Args:
        wait_s: how long to try a server that does not answer yet; 0 fails at once.

    Raises:
        StoreUnavailable: it does not answer, now or while it is in use.
    """
    with open_database(settings) as engine:
        persist(partial(_migrate, engine), for_s=wait_s)
        yield engine


@contextmanager
def open_database(settings: Settings) -> Iterator[Engine]:
    """Open Postgres without migration; see `open_catalog`."""
    given = settings.database_url
    if given:
        engine = open_engine(given.get_secret_value(), timeout_s=settings.database_timeout_s)
    else:
        own = partial(postgres_url, settings.home)  # starts it again if it died meanwhile
        engine = open_engine(own(), timeout_s=settings.database_timeout_s, before_connecting=own)
    try:
        with postgres_named(settings, engine):
            yield engine
    finally:
        engine.dispose()


@contextmanager
def postgres_named(settings: Settings, engine: Engine) -> Iterator[None]:
    """Name Postgres and the remedy in the errors of its connection.

    Raises:
        StoreUnavailable: it does not answer.
    """
    own = None if settings.database_url else "see its log with --debug"
    try:
        yield
    except DBAPIError as error:
        _raise_named(error, address_of(engine), own)


@contextmanager
def open_index(settings: Settings) -> Iterator[QdrantClient]:
    """Open Qdrant: a server, or the embedded index.

    Both speak the REST API of Qdrant.

    Raises:
        StoreUnavailable: it does not answer, now or while it is in use.
    """
    url = settings.qdrant.url
    own = index_client(settings.home, timeout_s=settings.qdrant.timeout_s)
    with index_named(settings), own if url is None else _server(url, settings.qdrant) as client:
        yield client


@contextmanager
def index_named(settings: Settings) -> Iterator[None]:
    """Name Qdrant and the remedy in the errors of its connection.

    Raises:
        StoreUnavailable: it does not answer.
    """
    url = settings.qdrant.url
    try:
        yield
    except (ApiException, QdrantException) as error:
        where = redacted(url) if url else f"{settings.home} (embedded)"
        _raise_named(error, where, None if url else "the next command starts it again")


def _raise_named(error: Exception, where: str, own_remedy: str | None) -> NoReturn:
    """Raise a store's fault with its address, other errors unchanged.

    Args:
        own_remedy: that of an embedded store without an answer.
    """
    fault = find_fault(error)
    if fault is None or fault.of_request:
        raise error
    remedy = own_remedy if own_remedy and fault.unanswered else fault.remedy
    raise StoreUnavailable(
        f"{fault.store} at {where} {fault.cause} ({message_of(error)}); {remedy}"
    ) from error


@contextmanager
def _server(url: str, settings: Qdrant) -> Iterator[QdrantClient]:
    key = settings.api_key.get_secret_value() if settings.api_key else None
    trusted = _certificates(settings) if url.startswith("https:") else True
    # the check would run in a thread without a join, and warn where the first request fails
    # as a header: the client warns of a key by http at every start, even on loopback
    headers = {} if key is None else {"api-key": key}
    if key is not None:
        _warn_of_plain_key(url)
    client = QdrantClient(
        url, headers=headers, timeout=settings.timeout_s, verify=trusted, check_compatibility=False
    )
    try:
        yield client
    finally:
        client.close()


@cache
def _warn_of_plain_key(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        log.warning(
            "the key of Qdrant crosses the network to %s without encryption; write https:// in "
            "SIGHTLINE_QDRANT__URL if the server has TLS",
            parts.hostname,
        )


def _certificates(settings: Qdrant) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_file)
    if settings.client_certificate is not None:
        context.load_cert_chain(settings.client_certificate)
    return context


def _migrate(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate.upgrade(connection)


def embedded_servers(settings: Settings) -> list[Server]:
    """Return the embedded servers that `settings` use and that run."""
    postgres = find_postgres(settings.home) if settings.database_url is None else None
    index = find_index(settings.home) if settings.qdrant.url is None else None
    return [server for server in (postgres, index) if server is not None]


def open_blobs(settings: Settings) -> Blobs | None:
    """Return the store of image bytes, or None without one."""
    if not settings.keep_pictures:
        return None
    return Blobs(settings.pictures_url or str(settings.home.absolute() / "pictures"))
