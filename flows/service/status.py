"""What is stored, what searches go to, what is open, and how the last runs went."""

from dataclasses import asdict, dataclass
from typing import Any

from qdrant_client.http.exceptions import ResponseHandlingException
from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.resources.connections import embedded_servers, open_catalog, open_index
from storage import qdrant
from storage.embedded.qdrant.process.client import IndexUnavailable
from storage.embedded.server_info import Server
from storage.postgres import catalog, model_registry, perceptual_hashes, runs
from storage.postgres.rejects import count_rejects
from storage.postgres.runs import Run

RECENT_RUNS = 5


@dataclass(frozen=True, slots=True)
class Status:
    """One look at everything."""

    home: str
    model: str
    """The model that is set; the collection's own may be another."""

    items: dict[str, int]
    shared_pictures: int
    """Pictures that more than one item has: they are kept and embedded once."""

    sharing_items: int
    points: dict[str, int]
    """Marks by collection: how many points Postgres knows of."""

    collection: qdrant.Collection | None
    collection_points: int
    collection_problem: str | None
    """Why Qdrant could not be looked at, in a sentence; None when it could."""

    servers: list[Server]
    """Our own servers in the home folder; empty where `settings` name others."""

    rejects: dict[str, int]
    """Open rejects by reason."""

    runs: list[Run]
    failed: list[Run]
    """The last run of a flow, and of a source where it has one, that ended otherwise than completed."""

    last_ingest: Run | None
    """The latest one that was measured to its end; its counts have its speed."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_status(settings: Settings) -> Status:
    """Look at Postgres, and at Qdrant if it can be reached; no model is loaded."""
    collection, points, problem = _look_at_index(settings)
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


def _look_at_index(settings: Settings) -> tuple[qdrant.Collection | None, int, str | None]:
    try:
        with open_index(settings) as client:
            active = qdrant.active_collection(client)
            return active, 0 if active is None else qdrant.count(client, active.name), None
    except IndexUnavailable as error:
        return None, 0, str(error)
    except ResponseHandlingException as error:
        return None, 0, f"Qdrant at {settings.qdrant.url} did not answer ({error}); is it running?"
