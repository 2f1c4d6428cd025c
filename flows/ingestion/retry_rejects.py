"""Retry rejected records, and only those."""

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

from flows.config.settings import Settings
from flows.ingestion.missing_items import EXAMPLES
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import EmptySource, Request, RowSelection
from flows.resources.connections import Deps
from flows.tracking.text import count_of
from storage.postgres import runs
from storage.postgres.rejects import Reject, open_rejects
from storage.sources import BadSource


@dataclass(frozen=True, slots=True)
class RetryReport:
    """Report the retry of the open rejects of one source."""

    source: str
    tried: int
    open: int
    """Rejects that stay open."""

    problem: str | None = None
    """Sentence that says why none could be retried, or which were not found."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def retry_rejects(
    deps: Deps,
    settings: Settings,
    *,
    reason: str | None = None,
    source: str | None = None,
    ids: Collection[UUID] | None = None,
    prefect_run_id: UUID | None = None,
) -> list[RetryReport]:
    """Retry the open rejects, and resolve those that pass.

    Their sources are read again. A row is identified by its place or by its key. A reject whose row the
    source no longer has is resolved as well, unless a part of the source could not be understood: the row
    may stand there. All rows with the key of a reject are retried, so that of two with one key still the
    first counts.

    Args:
        reason: only rejects with this code.
        source: only those of this source.
        ids: only these.

    Raises:
        Busy: another process writes one of the sources; those before it in order of name are done.
    """
    with deps.sessions() as session:
        rejects = open_rejects(session, reason=reason, source=source, ids=ids)
    grouped = groupby(rejects, key=lambda reject: reject.source)
    return [
        one for name, group in grouped for one in _retry(deps, settings, name, list(group), prefect_run_id)
    ]


def _retry(
    deps: Deps, settings: Settings, source: str, rejects: list[Reject], prefect_run_id: UUID | None
) -> Iterator[RetryReport]:
    """Retry rejects that can be read again; report the others."""
    read = [reject for reject in rejects if not reject.sent]
    if read:
        yield _read_again(deps, settings, source, read, prefect_run_id)
    if many := len(rejects) - len(read):
        yield RetryReport(source, 0, many, "they came over the API; their client must send them again")


def _read_again(
    deps: Deps, settings: Settings, source: str, rejects: list[Reject], prefect_run_id: UUID | None
) -> RetryReport:
    with deps.sessions() as session:
        found = runs.last_read(session, source)
    if found is None:
        return RetryReport(
            source, len(rejects), len(rejects), "no run has read it; run: sightline ingest SOURCE"
        )
    location, options = found
    langs = options.get("langs")
    keys = frozenset(reject.key for reject in rejects if reject.key is not None)
    reading = settings.reading(options)
    only = RowSelection(frozenset(reject.place for reject in rejects), keys)
    request = Request(
        Path(location), source, None if langs is None else tuple(langs), None, only=only, reading=reading
    )
    try:
        ingest_source(deps, settings, request, prefect_run_id=prefect_run_id)
    except (BadSource, EmptySource) as error:
        return RetryReport(source, len(rejects), len(rejects), str(error))
    with deps.sessions() as session:
        still = {one.place: one for one in open_rejects(session, source=source) if not one.sent}
    left = [reject for reject in rejects if reject.place in still]
    lost = [reject.place for reject in left if still[reject.place].last_seen == reject.last_seen]
    return RetryReport(source, len(rejects), len(left), _not_found(lost))


def _not_found(places: list[str]) -> str | None:
    """Return a message about rows that were not found but stay open."""
    if not places:
        return None
    first = ", ".join(places[:EXAMPLES]) + (", …" if len(places) > EXAMPLES else "")
    return (
        f"{count_of(len(places), 'row')} not found, and a part of the source could not be understood: "
        f"{first}; correct that part first, see: sightline rejects"
    )
