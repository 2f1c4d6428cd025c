"""Whether the two stores agree, by the comparisons on record, in plain words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qdrant_client import QdrantClient
from sqlalchemy.orm import Session

from flows.console.context import ConsoleContext
from flows.maintenance.repair import MAX_DELETE
from flows.service.pool import AWAY
from flows.tracking.text import many
from storage import qdrant
from storage.consistency.differences import DAMAGE
from storage.postgres import model_registry, runs
from storage.postgres.run_totals import COMPARISON, STILL
from storage.postgres.runs import Run

COMPARISONS = 10
MEANINGS = {
    "missing": "Postgres says that they can be found, but Qdrant has no point of them: searches miss them.",
    "stray": "Qdrant has points that no living record belongs to: searches may show what is gone.",
    "stale": "The point was made from an older state of its record.",
    "wrong_vectors": "The point has a vector too many or too few for the pictures and texts of its record.",
    "missing_picture": "The bytes of the picture are gone from where pictures are kept.",
    "other_model": "The collection says that another model made it than Postgres says: scores mean nothing.",
    "no_alias": "Searches do not go to the collection that Postgres calls active.",
    "lost_writes": "The index could not read back all that was written to the collection.",
}
REPAIRS = {
    "missing": "embeds {} again",
    "stray": "removes {} from Qdrant",
    "stale": "writes {} again",
    "wrong_vectors": "embeds {} again",
    "missing_picture": "fetches {} again from where it came from",
    "other_model": "drops {} and embeds its records again",
    "no_alias": "has searches go to the active collection",
    "lost_writes": "compares all of {} with Postgres and writes again what differs",
}
NOUNS = {
    "missing": "record",
    "stray": "point",
    "stale": "point",
    "wrong_vectors": "record",
    "missing_picture": "picture",
    "other_model": "collection",
    "no_alias": "alias",
    "lost_writes": "collection",
}
CLASS_NAME = re.compile(r"^[A-Z]\w*: ")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the comparisons on record say."""

    last: Run | None = None
    """The last one that got to the end of comparing."""

    differences: Mapping[str, int] = field(default_factory=dict)
    """What differs since then, by kind."""

    problem: str | None = None
    """Why a later one did not get to its end."""


def verdict_of(comparisons: Sequence[Run]) -> Verdict:
    """Return what comparisons, newest first, say; those that go on or were cancelled say nothing."""
    ended = [run for run in comparisons if run.outcome not in ("running", "cancelled")]
    last = next((run for run in ended if run.outcome == "completed" or run.counts), None)
    problem = problem_of(ended[0]) if ended else None
    return Verdict(last, {} if last is None else remaining_differences(last), problem)


def remaining_differences(run: Run) -> dict[str, int]:
    """Return what differed when a comparison, or a repair, was at its end."""
    found = run.counts.get(STILL, run.counts)
    return {kind: found[kind] for kind in DAMAGE if found.get(kind)}


def problem_of(run: Run) -> str | None:
    """Return in plain words why a run did not do what it was for; None where it did."""
    if run.outcome == "crashed":
        return "The last one was cut off: its process ended. Nothing is lost; compare again."
    if run.outcome != "failed" or run.error is None or (run.error.startswith("the stores differ")):
        return None
    return f"The last one did not get to its end: {CLASS_NAME.sub('', run.error)}"


def findings_text(run: Run) -> str:
    """Return what a comparison found, or what a repair mended and left."""
    still = remaining_differences(run)
    mended = sum(run.counts[kind] for kind in DAMAGE if run.counts.get(kind)) - sum(still.values())
    parts = [f"mended {mended:,}"] if STILL in run.counts and mended > 0 else []
    parts += [f"{number:,} {kind.replace('_', ' ')}" for kind, number in still.items()]
    if not parts and run.outcome == "completed":
        return "they agree"
    return ", ".join(parts) or CLASS_NAME.sub("", run.error or "")


def repair_text(differences: Mapping[str, int], points: int) -> str:
    """Return what a repair will do, with figures.

    >>> repair_in_words({"missing": 2}, 100)
    'It compares the stores again and embeds 2 records again. Other runs wait meanwhile.'
    """
    steps = [REPAIRS[kind].format(many(number, NOUNS[kind])) for kind, number in differences.items()]
    does = f"It compares the stores again and {', '.join(steps)}. Other runs wait meanwhile."
    deletes = points if differences.get("other_model") else differences.get("stray", 0)
    if deletes > MAX_DELETE * points:
        return (
            f"{does} But it would delete {deletes:,} of {points:,} points, and refuses to delete more than "
            f"{MAX_DELETE:.0%}, for that may be a wrong database. Look first, and then at a terminal: "
            "sightline reconcile --repair --yes"
        )
    if deletes:
        return f"{does} It refuses to delete more than {MAX_DELETE:.0%} of the {points:,} points."
    return does


@dataclass(frozen=True, slots=True)
class CollectionState:
    """One collection, as either store has it."""

    name: str
    state: str | None
    """In Postgres; None where it does not know the collection."""

    promised: int
    """Points that Postgres says are there."""

    points: int | None
    """Those that are there; None where Qdrant has no such collection."""

    is_searched: bool

    @property
    def remark(self) -> str:
        """What is odd about it; nothing where all is well."""
        if self.points is None:
            return "gone from Qdrant"
        if self.state is None:
            return "Postgres does not know it"
        if self.state == "active" and not self.is_searched:
            return "searches do not go to it"
        apart = self.points - self.promised
        return "" if not apart else f"{abs(apart):,} {'more' if apart > 0 else 'fewer'} than Postgres says"


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What Postgres says of comparisons; where it is away the problem."""

    comparisons: tuple[Run, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Collections:
    """The collections; where a store is away the problem."""

    collections: tuple[CollectionState, ...] = ()
    problem: str | None = None


def read_comparisons(context: ConsoleContext) -> Comparisons:
    """Return the last ones, newest first."""
    try:
        with context.backend.sessions() as sessions, sessions() as session:
            return Comparisons(tuple(runs.recent_runs(session, COMPARISONS, flow=COMPARISON)))
    except AWAY as error:
        return Comparisons(problem=str(error))


def read_collections(context: ConsoleContext) -> Collections:
    """Return what both stores say of them."""
    try:
        with (
            context.backend.sessions() as sessions,
            context.backend.vectors() as client,
            sessions() as session,
        ):
            return Collections(tuple(collections(session, client)))
    except AWAY as error:
        return Collections(problem=str(error))


def collections(session: Session, client: QdrantClient) -> list[CollectionState]:
    """Return all collections of ours that either store has, by name."""
    states = {one.name: one.state for one in model_registry.known_collections(session)}
    promised = model_registry.marks_by_collection(session)
    there = set(qdrant.list_collections(client))
    alias = qdrant.active_collection(client)
    return [
        CollectionState(
            name,
            states.get(name),
            promised.get(name, 0),
            qdrant.count(client, name) if name in there else None,
            alias is not None and alias.name == name,
        )
        for name in sorted(states.keys() | there)
    ]
