"""Trying again what could not be taken in, and only that."""

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
from flows.tracking.text import many
from storage.postgres import runs
from storage.postgres.rejects import Reject, open_rejects
from storage.sources import BadSource


@dataclass(frozen=True, slots=True)
class Retry:
    """What became of the open rejects of one source."""

    source: str
    tried: int
    open: int
    """How many of them are open still."""

    problem: str | None = None
    """Why none could be tried, or some were not found, in a sentence."""

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
) -> list[Retry]:
    """Read the sources of open rejects again, and try those rows alone; what passes is resolved.

    A row is known again by its place or by its key; one that its source no longer has is resolved as well,
    unless a part of the source could not be understood: it may stand there.
    All rows with the key of a reject are tried, so that of two with one key still the first counts.

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
) -> Iterator[Retry]:
    """Yield what became of those that can be read again, and of those that cannot."""
    read = [reject for reject in rejects if not reject.sent]
    if read:
        yield _read_again(deps, settings, source, read, prefect_run_id)
    if many := len(rejects) - len(read):
        yield Retry(source, 0, many, "they came over the API; whoever sent them has to send them again")


def _read_again(
    deps: Deps, settings: Settings, source: str, rejects: list[Reject], prefect_run_id: UUID | None
) -> Retry:
    with deps.sessions() as session:
        found = runs.last_read(session, source)
    if found is None:
        return Retry(source, len(rejects), len(rejects), "no run has read it; run: sightline ingest SOURCE")
    location, options = found
    langs = options.get("langs")
    keys = frozenset(reject.key for reject in rejects if reject.key is not None)
    only = RowSelection(frozenset(reject.place for reject in rejects), keys)
    request = Request(Path(location), source, None if langs is None else tuple(langs), None, only=only)
    try:
        ingest_source(deps, settings, request, prefect_run_id=prefect_run_id)
    except (BadSource, EmptySource) as error:
        return Retry(source, len(rejects), len(rejects), str(error))
    with deps.sessions() as session:
        still = {one.place: one for one in open_rejects(session, source=source) if not one.sent}
    left = [reject for reject in rejects if reject.place in still]
    lost = [reject.place for reject in left if still[reject.place].last_seen == reject.last_seen]
    return Retry(source, len(rejects), len(left), _not_found(lost))


def _not_found(places: list[str]) -> str | None:
    """Say which rows were not met again, and are open all the same."""
    if not places:
        return None
    first = ", ".join(places[:EXAMPLES]) + (", …" if len(places) > EXAMPLES else "")
    return (
        f"{many(len(places), 'row')} not found, and a part of the source could not be understood: {first}; "
        "correct that part first, see: sightline rejects"
    )
