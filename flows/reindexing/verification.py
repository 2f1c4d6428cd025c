"""Verify a collection beside writers, and the last changes exclusively.

A collection may be switched to if each living item has the point that its row describes, and nothing else
has one. That holds at the switch, because every item is in one of these groups:

1. It was compared by `verify`, agreed, and neither its row nor its embedding state was written since. Nobody
   touches its point then: an ingest and a backfill write the item or the state with it, a repair that removes
   a point removes the state, and a delete ends the life of the item first.
2. One of the two rows was written since. `changed_since` finds it by the transaction that wrote it, not by a
   clock, and `recheck` compares it anew. An item that a comparison left out, because a writer was at work on
   it, belongs here too.
3. It is outdated, or its state is gone: the backfill under the lock writes it, which makes it one of group 2,
   or counts it as missing.
4. It is deleted. Its tombstone is in group 2; the point, if an interrupted delete has left one, is a stray.

A point of no item at all is in none of these groups. `recheck` therefore counts: once every living item but
the missing ones has its point, more points than that are strays, and the collection is compared as a whole,
under the lock. So it is when Qdrant reports that it may have lost writes.
"""

import time
from collections.abc import Collection as Ids
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from flows.ingestion.backfill import PAUSE_S, Backfill
from flows.resources.comparison import CONFIRM, ComparisonReport, confirm, confirmed_differences
from flows.tracking.progress import Progress, no_steps
from storage import qdrant
from storage.consistency.differences import Difference, PointId
from storage.errors import SightlineError
from storage.postgres import embedding_states

SETTLE_S = 600.0
SAMPLE = 100
NEIGHBOURS = 10
MIN_RECALL = 0.9
"""Lowest recall of approximate searches, against exact ones, of an index that may be searched."""


class NotVerified(SightlineError):
    """The new collection differs from Postgres or is searched badly."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Hold the moment of a verification, and the strays that it found."""

    transaction: str
    """Changes from this transaction on are not verified."""

    strays: frozenset[PointId]


def verify(backfill: Backfill, last: Verification | None, progress: Progress) -> Verification:
    """Compare a collection with Postgres beside writers.

    Only the changes since `last` are compared, if there is one. Strays are not removed here, because an
    ingest may be about to revive their items.

    Raises:
        NotVerified: points are missing, or differ from what their embedding states say.
    """
    progress("verify", 0, 0)
    stores, name = backfill.stores, backfill.collection.name
    with stores.sessions() as session:
        transaction = embedding_states.oldest_transaction(session)
        changed = embedding_states.changed_since(session, name, last.transaction) if last else None
    if changed is None:
        found = list(confirmed_differences(stores, name, True, ComparisonReport(), no_steps))
    else:
        found = _differences(backfill, changed)
    _require_none(backfill, (one for one in found if one.kind not in ("stray", "pending")))
    strays = frozenset(one.id for one in found if one.kind == "stray")
    return Verification(transaction, strays | last.strays if last else strays)


def recheck(backfill: Backfill, last: Verification) -> None:
    """Require that a collection is complete and exact.

    The caller holds the exclusive lock. Safe to repeat.

    Raises:
        NotVerified: it is not.
    """
    stores, name = backfill.stores, backfill.collection.name
    with stores.sessions() as session:
        changed = embedding_states.changed_since(session, name, last.transaction)
    _settle_differences(backfill, _differences(backfill, changed | last.strays))
    if qdrant.optimizer_error(stores.vectors, name) or not _counts_agree(backfill):
        everything = confirmed_differences(stores, name, True, ComparisonReport(), no_steps)
        _settle_differences(backfill, list(everything))


def wait_until_optimized(backfill: Backfill, progress: Progress) -> None:
    """Wait until Qdrant has optimized the collection.

    Raises:
        NotVerified: it takes more than ten minutes.
    """
    vectors, name = backfill.stores.vectors, backfill.collection.name
    until = time.monotonic() + SETTLE_S
    while not qdrant.is_settled(vectors, name):
        if time.monotonic() > until:
            raise NotVerified(
                f"{name} is still being optimized after {SETTLE_S / 60:.0f} minutes; searches stay as they "
                "are; run it again later"
            )
        progress("wait for the index to be optimized", 0, 0)
        time.sleep(PAUSE_S)


def require_recall(backfill: Backfill) -> float | None:
    """Require a good recall@10 of a fixed sample of image searches.

    Returns:
        The recall of approximate searches against exact ones; None without images.

    Raises:
        NotVerified: the recall is below `MIN_RECALL`.
    """
    stores, name = backfill.stores, backfill.collection.name
    with stores.sessions() as session:
        sample = embedding_states.sample_images(session, name, SAMPLE)
    recall = qdrant.sampled_recall(stores.vectors, name, sample, NEIGHBOURS)
    if recall is not None and recall < MIN_RECALL:
        raise NotVerified(
            f"searches of {name} find {recall:.0%} of the exact results, less than {MIN_RECALL:.0%}; "
            "searches stay as they are; is it still being optimized? Run it again later"
        )
    return recall


def _differences(backfill: Backfill, ids: Ids[PointId]) -> list[Difference]:
    name, rest = backfill.collection.name, iter(ids)
    found: list[Difference] = []
    while chunk := list(islice(rest, CONFIRM)):
        found += confirm(backfill.stores, name, True, chunk)
    return found


def _settle_differences(backfill: Backfill, found: Sequence[Difference]) -> None:
    """Delete strays, and refuse any other difference."""
    strays = [one.id for one in found if one.kind == "stray"]
    if strays:
        qdrant.delete_points(backfill.stores.vectors, backfill.collection.name, strays)
    _require_none(backfill, (one for one in found if one.kind != "stray"))


def _require_none(backfill: Backfill, found: Iterable[Difference]) -> None:
    if left := [one for one in found if one.id not in backfill.missing]:
        raise NotVerified(
            f"{len(left):,} points of {backfill.collection.name} differ from Postgres, the first of them "
            f"{left[0].id} ({left[0].kind}); searches stay as they are; run it again"
        )


def _counts_agree(backfill: Backfill) -> bool:
    """Return whether the number of points is that of a complete collection."""
    stores, name = backfill.stores, backfill.collection.name
    with stores.sessions() as session:
        living = embedding_states.count_living(session)
    old = sum(1 for _ in qdrant.scroll_entries(stores.vectors, name, list(backfill.missing)))
    return qdrant.count(stores.vectors, name) == living - len(backfill.missing) + old
