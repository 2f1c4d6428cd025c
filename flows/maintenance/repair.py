"""Repair the differences between Postgres and Qdrant; Postgres is the truth."""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from embedding.images.decode import BadImage
from embedding.images.worker_pool import Workers
from flows.config.settings import Limits, Settings
from flows.ingestion.image_cache import CachedImage
from flows.ingestion.stages import encode_items
from flows.resources.collections import open_collection
from flows.resources.comparison import (
    Report,
    compared,
    confirmed,
    damage_of,
    is_of_another_model,
    missing_images,
    reconcile,
)
from flows.resources.connections import Deps, Stores
from flows.resources.deletion import finish_deletes
from flows.resources.images import load_image
from flows.tracking.progress import Progress, no_progress, no_steps
from flows.tracking.run_log import tracked_run
from storage import qdrant
from storage.consistency.differences import Difference
from storage.errors import Conflict
from storage.postgres import catalog, model_registry
from storage.postgres.locks import flow_lock, lone_lock
from storage.postgres.run_totals import COMPARISON, STILL
from storage.records import Item
from storage.sources import redacted

MAX_ROUNDS = 5
MAX_DELETE = 0.05
"""The share of points that a repair may delete; for more, a person looks first and says so at a terminal."""


class TooManyDeletes(Conflict):
    """A repair would delete more than the limit allows; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Mended:
    """A repair: what differed before, what still differs, and why that could not be mended."""

    before: Report
    after: Report
    rounds: int
    unmended: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        rest = {"rounds": self.rounds, "unmended": list(self.unmended)}
        return {"before": self.before.as_json(), "after": self.after.as_json()} | rest


def repair(
    deps: Deps,
    settings: Settings,
    *,
    max_delete: float,
    yes: bool,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> Mended:
    """Mend what differs, and compare again, until nothing does or nothing gets better.

    Args:
        max_delete: the share of all points that may be deleted, in [0, 1].
        yes: delete however many there are.

    Raises:
        TooManyDeletes: more would go; nothing was changed.
        Busy: another process writes, or compares.
        ModelMismatch: the collection that searches go to was made by another model than the one that is set.
    """
    with (
        flow_lock(deps.engine, COMPARISON),
        tracked_run(
            deps.sessions,
            lone_lock(deps.engine),
            COMPARISON,
            for_s=settings.retry_for_s,
            options={"repair": True},
            prefect_run_id=prefect_run_id,
            progress=progress,
        ) as run,
    ):
        before = after = run.persist(partial(compared, deps, run.progress))
        run.counts = dict(before.counts)
        _refuse_many_deletes(before, max_delete, yes=yes)
        rounds, unmended = 0, set[str]()
        while after.work and rounds < MAX_ROUNDS:
            run.progress("repair", rounds, MAX_ROUNDS)
            unmended = run.persist(partial(_mend, deps, settings))
            rounds, last = rounds + 1, after.work
            after = run.persist(partial(reconcile, deps))
            if after.work >= last:
                break
        run.counts[STILL] = dict(after.counts)
        if after.damage:
            run.error = damage_of(after)
    return Mended(before, after, rounds, tuple(sorted(unmended)))


def _refuse_many_deletes(report: Report, max_delete: float, *, yes: bool) -> None:
    deletes = report.points if report.counts["other_model"] else report.counts["stray"]
    if deletes > max_delete * report.points and not yes:
        raise TooManyDeletes(
            f"a repair would delete {deletes:,} of {report.points:,} points, more than {max_delete:.0%}; is "
            "this the right database? Nothing was changed; --yes deletes them, --max-delete sets the limit"
        )


def _mend(deps: Deps, settings: Settings) -> set[str]:
    """Mend what differs now; safe to repeat.

    Returns:
        Why some of it could not be mended.
    """
    unmended = _mend_pictures(deps, settings.limits)
    _drop_collections_of_other_models(deps)
    active = open_collection(deps, settings)
    for _ in finish_deletes(deps, None):
        pass
    with deps.sessions() as session:
        names = {one.name for one in model_registry.known_collections(session)}
    for name in sorted(names | set(qdrant.list_collections(deps.vectors))):
        differences = confirmed(deps, name, name == active.name, Report(), no_steps)
        while chunk := list(islice(differences, settings.batch_size)):
            strays = [one.id for one in chunk if one.kind == "stray"]
            if strays:
                qdrant.delete_points(deps.vectors, name, strays)
            if name == active.name:
                unmended |= _write_again(deps, active, [one for one in chunk if one.entry], settings.limits)
            else:
                _take_back(deps, name, [one.entry.id for one in chunk if one.entry])
        if qdrant.optimizer_error(deps.vectors, name):
            qdrant.restart_optimizer(deps.vectors, name)
    return unmended


def _drop_collections_of_other_models(deps: Deps) -> None:
    """Remove a collection that says another model made it than Postgres says; it is made anew if need be."""
    with deps.sessions() as session:
        known = model_registry.known_collections(session)
    for one in known:
        if is_of_another_model(deps, one):
            deps.vectors.delete_collection(one.name)
            with deps.sessions.begin() as session:
                model_registry.forget_marks(session, one.name)


def _take_back(deps: Deps, collection: str, ids: list[UUID]) -> None:
    """Forget points that are not what their marks say, of a model that is not at hand to make them again."""
    if not ids:
        return
    if deps.vectors.collection_exists(collection):
        qdrant.delete_points(deps.vectors, collection, ids)
    with deps.sessions.begin() as session:
        catalog.drop_marks(session, collection, ids)


def _write_again(
    deps: Deps, collection: qdrant.Collection, differences: list[Difference], limits: Limits
) -> set[str]:
    """Write the points of these items, as Postgres has them, and then their marks."""
    if not differences:
        return set()
    with deps.sessions() as session:
        items = catalog.items_with_digests(session, [one.entry.id for one in differences if one.entry])
    payloads = {
        one.id: items[one.id]
        for one in differences
        if one.only_payload and isinstance(one.id, UUID) and one.id in items
    }
    whole = {id: entry for id, entry in items.items() if id not in payloads}
    pictures, unreadable = _pictures(deps, [item for item, _ in whole.values()], limits)
    good = {
        id: item for id, (item, _) in whole.items() if not item.image or item.image.sha256 in pictures
    }
    digests = {id: digest for id, (_, digest) in items.items() if id in good or id in payloads}
    points, *_ = encode_items(deps.encoder, good, digests, pictures)
    qdrant.upsert(deps.vectors, collection, points)
    qdrant.overwrite_payloads(deps.vectors, collection.name, payloads)
    with deps.sessions.begin() as session:
        catalog.mark_embedded(session, collection.name, digests)
    return unreadable


def _pictures(deps: Deps, items: list[Item], limits: Limits) -> tuple[dict[str, CachedImage], set[str]]:
    """Return the decoded images of `items` by SHA-256, and why others cannot be had."""
    pictures: dict[str, CachedImage] = {}
    unreadable = set()
    with Workers(deps.encoder.preparation, 0) as workers:
        for item in items:
            picture = item.image
            if picture is None or picture.sha256 in pictures:
                continue
            data = load_image(deps, picture.sha256, picture.origin, limits, or_origin=True)
            if data is None:
                where = redacted(picture.uri)
                unreadable.add(f"{item.source}: {item.key}: its picture is gone, here and at {where}")
                continue
            try:
                prepared = workers.submit(data, name=item.key).result()
            except BadImage as error:
                unreadable.add(f"{item.source}: {error}")
                continue
            pictures[picture.sha256] = CachedImage.decoded(prepared)
    return pictures, unreadable


def _mend_pictures(stores: Stores, limits: Limits) -> set[str]:
    """Fetch again what the blob store has lost, where the source still has the same bytes."""
    if stores.blobs is None:
        return set()
    unmended = set()
    for picture in missing_images(stores, Report()):
        data = load_image(stores, picture.sha256, picture.origin, limits, or_origin=True)
        if data is not None:
            stores.blobs.put(picture.sha256, data)
        else:
            where = redacted(picture.uri)
            unmended.add(f"picture {picture.sha256[:12]}…: its bytes are gone, here and at {where}")
    return unmended
