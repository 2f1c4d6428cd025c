"""Read the status of the stores, the rejects and the last runs."""

from dataclasses import asdict, dataclass
from typing import Any

from qdrant_client.http.exceptions import ResponseHandlingException
from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.resources.connections import embedded_servers, open_catalog, open_index
from storage import qdrant
from storage.embedded.server_info import Server
from storage.errors import StoreUnavailable
from storage.postgres import catalog, model_registry, perceptual_hashes, runs
from storage.postgres.rejects import count_rejects
from storage.postgres.runs import Run

RECENT_RUNS = 5


@dataclass(frozen=True, slots=True)
class Status:
    """Hold the state of all stores at one time."""

    home: str
    model: str
    """The model of the settings; that of the collection may be another."""

    items: dict[str, int]
    shared_pictures: int
    """Images of more than one item: they are stored and embedded once."""

    sharing_items: int
    points: dict[str, int]
    """Embedding states by collection: the number of points that Postgres knows of."""

    collection: qdrant.Collection | None
    collection_points: int
    collection_problem: str | None
    """Why Qdrant could not be read, in a sentence; None if it could."""

    servers: list[Server]
    """Embedded servers in the data directory; empty where `settings` name others."""

    rejects: dict[str, int]
    """Open rejects by reason."""

    runs: list[Run]
    failed: list[Run]
    """Last runs, by flow and source, that did not complete."""

    last_ingest: Run | None
    """The last ingest with a measured speed, which is in its counts."""

    def as_json(self) -> dict[str, Any]:
        document = asdict(self)
        if document["collection"] is not None:
            del document["collection"]["indexed_only"]  # a limit of the server, not a property of the stores
        return document


def read_status(settings: Settings) -> Status:
    """Read Postgres, and Qdrant if available, without loading a model."""
    collection, points, problem = _read_index(settings)
    with open_catalog(settings) as engine, Session(engine) as session:
        shared, sharing = perceptual_hashes.count_copies(session)
        return Status(
            home=str(settings.home.resolve()),
            model=settings.model,
            items=catalog.counts(session),
            shared_pictures=shared,
            sharing_items=sharing,
            points=model_registry.marks_by_collection(session),
            collection=collection,
            collection_points=points,
            collection_problem=problem,
            servers=embedded_servers(settings),
            rejects=count_rejects(session),
            runs=runs.recent_runs(session, RECENT_RUNS),
            failed=runs.failed_runs(session),
            last_ingest=runs.last_ingest(session),
        )


def _read_index(settings: Settings) -> tuple[qdrant.Collection | None, int, str | None]:
    try:
        with open_index(settings) as client:
            active = qdrant.active_collection(client)
            return active, 0 if active is None else qdrant.count(client, active.name), None
    except StoreUnavailable as error:
        return None, 0, str(error)
    except ResponseHandlingException as error:
        return None, 0, f"Qdrant at {settings.qdrant.url} did not answer ({error}); is it running?"
