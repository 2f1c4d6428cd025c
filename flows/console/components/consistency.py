"""Summarize the consistency of Postgres and Qdrant from recorded comparisons."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qdrant_client import QdrantClient
from sqlalchemy.orm import Session

from flows.console.context import ConsoleContext
from flows.maintenance.repair import MAX_DELETE
from flows.tracking.text import count_of
from storage import qdrant
from storage.consistency.differences import DAMAGE
from storage.errors import StoreUnavailable
from storage.postgres import model_registry, runs
from storage.postgres.run_totals import COMPARISON, STILL
from storage.postgres.runs import NO_VERDICT, Run

COMPARISONS = 10
MEANINGS = {
    "missing": "Postgres records them as embedded, but Qdrant has no point of them: searches miss them.",
    "stray": "Qdrant has points without a living record: searches may return deleted records.",
    "stale": "The point was made from an older version of its record.",
    "wrong_vectors": "The point has too many or too few vectors for the image and texts of its record.",
    "missing_picture": "The bytes of the image are missing from the image store.",
    "other_model": "Qdrant and Postgres name different models for the collection: scores mean nothing.",
    "no_alias": "The alias of searches does not point to the collection that is active in Postgres.",
    "lost_writes": "The index could not read back all writes to the collection.",
}
REPAIRS = {
    "missing": "embeds {} again",
    "stray": "removes {} from Qdrant",
    "stale": "writes {} again",
    "wrong_vectors": "embeds {} again",
    "missing_picture": "fetches {} again from the source",
    "other_model": "drops {} and embeds its records again",
    "no_alias": "points the alias to the active collection",
    "lost_writes": "compares {} with Postgres point by point and rewrites the differences",
}
NOUNS = {
    "missing": "record",
    "stray": "point",
    "stale": "point",
    "wrong_vectors": "record",
    "missing_picture": "image",
    "other_model": "collection",
    "no_alias": "alias",
    "lost_writes": "collection",
}
CLASS_NAME = re.compile(r"^[A-Z]\w*: ")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Summarize the recorded comparisons."""

    last: Run | None = None
    """The last comparison that was completed."""

    differences: Mapping[str, int] = field(default_factory=dict)
    """Differences found by it, by kind."""

    problem: str | None = None
    """Why a later comparison failed."""


def verdict_of(comparisons: Sequence[Run]) -> Verdict:
    """Return the verdict of comparisons, newest first.

    Running and cancelled ones do not count.
    """
    ended = [run for run in comparisons if run.outcome not in ("running", *NO_VERDICT)]
    last = next((run for run in ended if run.outcome == "completed" or run.counts), None)
    problem = problem_of(ended[0]) if ended else None
    return Verdict(last, {} if last is None else remaining_differences(last), problem)


def remaining_differences(run: Run) -> dict[str, int]:
    """Return the differences at the end of a comparison or repair."""
    found = run.counts.get(STILL, run.counts)
    return {kind: found[kind] for kind in DAMAGE if found.get(kind)}


def problem_of(run: Run) -> str | None:
    """Return why a run failed, in plain words; None if it succeeded."""
    if run.outcome == "crashed":
        return "The last comparison was interrupted: its process ended. Nothing is lost; compare again."
    if run.outcome != "failed" or run.error is None or (run.error.startswith("the stores differ")):
        return None
    return f"The last comparison failed: {CLASS_NAME.sub('', run.error)}"


def findings_text(run: Run) -> str:
    """Return the findings of a comparison, or the effects of a repair."""
    still = remaining_differences(run)
    repaired = sum(run.counts[kind] for kind in DAMAGE if run.counts.get(kind)) - sum(still.values())
    parts = [f"repaired {repaired:,}"] if STILL in run.counts and repaired > 0 else []
    parts += [f"{number:,} {kind_name(kind)}" for kind, number in still.items()]
    if not parts and run.outcome == "completed":
        return "no differences"
    return ", ".join(parts) or CLASS_NAME.sub("", run.error or "")


def kind_name(kind: str) -> str:
    """Return the display name of a kind of difference.

    >>> kind_name("missing_picture")
    'missing image'
    """
    return kind.replace("_", " ").replace("picture", "image")


def repair_text(differences: Mapping[str, int], points: int) -> str:
    """Describe the effects of a repair, with figures.

    >>> repair_text({"missing": 2}, 100)
    'It compares the stores again and embeds 2 records again. Other runs wait meanwhile.'
    """
    steps = [REPAIRS[kind].format(count_of(number, NOUNS[kind])) for kind, number in differences.items()]
    does = f"It compares the stores again and {', '.join(steps)}. Other runs wait meanwhile."
    deletes = points if differences.get("other_model") else differences.get("stray", 0)
    if deletes > MAX_DELETE * points:
        return (
            f"{does} But it would delete {deletes:,} of {points:,} points, and refuses to delete more than "
            f"{MAX_DELETE:.0%}, which may mean a wrong database. Check that first, then run in a terminal: "
            "sightline reconcile --repair --yes"
        )
    if deletes:
        return f"{does} It refuses to delete more than {MAX_DELETE:.0%} of the {points:,} points."
    return does


@dataclass(frozen=True, slots=True)
class CollectionState:
    """Represent a collection as Postgres and Qdrant report it."""

    name: str
    state: str | None
    """In Postgres; None where it does not know the collection."""

    expected: int
    """Points expected by Postgres."""

    points: int | None
    """Points in Qdrant; None without the collection."""

    is_searched: bool

    @property
    def remark(self) -> str:
        """Return the inconsistency of the collection; empty if there is none."""
        if self.points is None:
            return "missing from Qdrant"
        if self.state is None:
            return "unknown to Postgres"
        if self.state == "active" and not self.is_searched:
            return "the alias does not point to it"
        apart = self.points - self.expected
        return "" if not apart else f"{abs(apart):,} {'more' if apart > 0 else 'fewer'} than Postgres says"


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Hold recorded comparisons, or why Postgres is unavailable."""

    runs: tuple[Run, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Collections:
    """Hold the collections, or why a store is unavailable."""

    states: tuple[CollectionState, ...] = ()
    problem: str | None = None


def read_comparisons(context: ConsoleContext) -> Comparisons:
    """Read the last comparisons, newest first."""
    try:
        with context.backend.sessions() as sessions, sessions() as session:
            return Comparisons(tuple(runs.recent_runs(session, COMPARISONS, flow=COMPARISON)))
    except StoreUnavailable as error:
        return Comparisons(problem=str(error))


def read_collections(context: ConsoleContext) -> Collections:
    """Read the collections of both stores."""
    try:
        with (
            context.backend.sessions() as sessions,
            context.backend.vectors() as client,
            sessions() as session,
        ):
            return Collections(tuple(collections(session, client)))
    except StoreUnavailable as error:
        return Collections(problem=str(error))


def collections(session: Session, client: QdrantClient) -> list[CollectionState]:
    """Return all Sightline collections of either store, by name."""
    states = {one.name: one.state for one in model_registry.known_collections(session)}
    expected = model_registry.marks_by_collection(session)
    there = set(qdrant.list_collections(client))
    alias = qdrant.active_collection(client)
    return [
        CollectionState(
            name,
            states.get(name),
            expected.get(name, 0),
            qdrant.count(client, name) if name in there else None,
            alias is not None and alias.name == name,
        )
        for name in sorted(states.keys() | there)
    ]
