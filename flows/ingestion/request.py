"""Describe one ingest: its rows, its source name and its options."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.ingestion.missing_items import DEFAULT_MAX_SHARE
from flows.ingestion.source_batches import IngestRun, Row
from storage import qdrant
from storage.errors import Conflict, InvalidInput
from storage.postgres import runs
from storage.records import Ignored
from storage.sources import read_source, source_name
from storage.sources.read_options import DEFAULTS, ReadOptions
from storage.sources.row_estimate import RowEstimate


class EmptySource(InvalidInput):
    """Report a source without records, usually a wrong path."""


class OtherLocation(Conflict):
    """Report a source name that belongs to another location; `--name` resolves it."""


class PartOfSource(InvalidInput):
    """Report a delete of missing items without reading the whole source."""


@dataclass(frozen=True, slots=True)
class RowSelection:
    """Select the rows of rejects to retry."""

    places: frozenset[str]
    keys: frozenset[str]

    def has(self, row: Row) -> bool:
        return row.place in self.places or (row.key is not None and row.key in self.keys)


@dataclass(frozen=True, slots=True)
class Request:
    """Hold the parameters of one ingest."""

    location: Path | None
    """Where the records are; None where they came with the request."""

    name: str | None = None
    langs: tuple[str, ...] | None = None
    limit: int | None = None
    delete_missing: bool = False
    revive: bool = False
    only: RowSelection | None = None
    sent: tuple[Row, ...] = ()
    """Records that came with the request, added to those of source `name`; they are not read again."""

    max_delete: float = DEFAULT_MAX_SHARE
    """The share of the source's items that may be deleted because they are missing, in [0, 1]."""

    yes: bool = False
    """Whether any number of missing items may be deleted."""

    reading: ReadOptions = DEFAULTS
    """Exclusions, columns and links of the source."""

    def __post_init__(self) -> None:
        """Reject deletes of items that the run cannot know to be missing.

        Raises:
            PartOfSource: the run does not read all of its source.
        """
        if self.delete_missing and not (self.is_whole and self.limit is None):
            raise PartOfSource(
                "delete_missing needs the whole source: with a limit, a choice of rows or records that were "
                "sent, leave it out"
            )

    @property
    def flow(self) -> str:
        """Name of the run's flow in the table `runs`."""
        if self.location is None:
            return runs.SENT
        return "ingest" if self.only is None else "retry"

    @property
    def is_whole(self) -> bool:
        """Whether the run reads its source from the beginning.

        Then few rows may be rejected.
        """
        return self.location is not None and self.only is None

    def rows(self, estimate: RowEstimate | None = None) -> Iterator[Row | Ignored]:
        """Return the rows to ingest.

        Raises:
            BadSource: the location is no folder of images and no manifest.
        """
        if self.location is None:
            return iter(self.sent)
        return read_source(self.location, estimate, self.reading)

    def source(self, session: Session) -> str:
        """Return the given name, or that of the folder or file.

        Raises:
            OtherLocation: the default name belongs to a source elsewhere, with which this one would mix.
        """
        if self.name is not None:
            return self.name
        if self.location is None:
            raise ValueError("records that come with a request need the name of their source")
        name = source_name(self.location)
        before = runs.last_location(session, name)
        if before not in (None, str(self.location.resolve())):
            raise OtherLocation(
                f"source {name!r} was read from {before} before; give this one its own name with --name, "
                f"or say --name {name} if it has moved"
            )
        return name

    def new_run(self, source: str, collection: qdrant.Collection, settings: Settings) -> IngestRun:
        """Return a run of this request that has not begun yet."""
        langs = settings.langs if self.langs is None else self.langs
        return IngestRun(uuid4(), source, collection, langs, settings.limits, self.revive)

    def options(self, run: IngestRun) -> dict[str, Any]:
        """Return the options that a scheduled run of the same source repeats."""
        given: dict[str, Any] = {"limit": self.limit, "delete_missing": self.delete_missing}
        given |= self.reading.as_json()
        return {"langs": list(run.langs)} | {name: value for name, value in given.items() if value}

    def expected_rows(self, session: Session, source: str) -> int:
        """Return the row count of the last run; 0 if unknown."""
        if self.location is None:
            return len(self.sent)
        return self.at_most(runs.last_read_count(session, source)) if self.only is None else 0

    def at_most(self, rows: int) -> int:
        """Return a number of rows within the limit of the request."""
        return rows if self.limit is None else min(rows, self.limit)
