"""Repair the differences between Postgres and Qdrant; Postgres is the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from embedding.images.worker_pool import Workers
from flows.config.settings import Limits, Settings
from flows.ingestion.backfill import Backfill, rewrite
from flows.resources.collections import open_collection
from flows.resources.comparison import (
    ComparisonReport,
    confirmed_differences,
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
from storage.postgres.locks import exclusive_lock, flow_lock
from storage.postgres.run_totals import COMPARISON, STILL
from storage.sources import redacted

MAX_ROUNDS = 5
MAX_DELETE = 0.05
"""Share of the points that a repair may delete; above it, a person confirms the repair at a terminal."""


class TooManyDeletes(Conflict):
    """A repair would delete more than the limit allows; nothing was changed."""


@dataclass(frozen=True, slots=True)
class RepairResult:
    """Hold the comparisons before and after a repair."""

    before: ComparisonReport
    after: ComparisonReport
    rounds: int
    unrepaired: tuple[str, ...]
    """Reasons of the differences that are left."""

    def as_json(self) -> dict[str, Any]:
        rest = {"rounds": self.rounds, "unmended": list(self.unrepaired)}
        return {"before": self.before.as_json(), "after": self.after.as_json()} | rest


def repair(
    deps: Deps,
    settings: Settings,
    *,
    max_delete: float,
    yes: bool,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> RepairResult:
    """Repair the stores until they agree or a round improves nothing.

    Args:
        max_delete: share of all points that may be deleted, in [0, 1].
        yes: whether any number may be deleted.

    Raises:
        TooManyDeletes: more would be deleted; nothing was changed.
        Busy: another process writes, or compares.
        ModelMismatch: another model made the active collection than the one that is set.
    """
    with (
        flow_lock(deps.engine, COMPARISON),
        tracked_run(
            deps.sessions,
            exclusive_lock(deps.engine),
            COMPARISON,
            for_s=settings.retry_for_s,
            options={"repair": True},
            prefect_run_id=prefect_run_id,
            progress=progress,
        ) as run,
    ):
        before = after = run.persist(partial(reconcile, deps, progress=run.progress))
        run.counts = dict(before.counts)
        _require_few_deletes(before, max_delete, yes=yes)
        rounds, unrepaired = 0, set[str]()
        while after.work and rounds < MAX_ROUNDS:
            run.progress("repair", rounds, MAX_ROUNDS)
            unrepaired = run.persist(partial(_repair_once, deps, settings))
            rounds, last = rounds + 1, after.work
            after = run.persist(partial(reconcile, deps))
            if after.work >= last:
                break
        run.counts[STILL] = dict(after.counts)
        if after.damage:
            run.error = damage_of(after)
    return RepairResult(before, after, rounds, tuple(sorted(unrepaired)))


def _require_few_deletes(report: ComparisonReport, max_delete: float, *, yes: bool) -> None:
    deletes = report.points if report.counts["other_model"] else report.counts["stray"]
    if deletes > max_delete * report.points and not yes:
        raise TooManyDeletes(
            f"a repair would delete {deletes:,} of {report.points:,} points, more than {max_delete:.0%}; is "
            "this the right database? Nothing was changed; --yes deletes them, --max-delete sets the limit"
        )


def _repair_once(deps: Deps, settings: Settings) -> set[str]:
    """Repair the current differences; safe to repeat.

    Returns:
        The reasons of those that cannot be repaired.
    """
    unrepaired = _restore_images(deps, settings.limits)
    _drop_collections_of_other_models(deps)
    active = open_collection(deps, settings)
    for _ in finish_deletes(deps, None):
        pass
    with deps.sessions() as session:
        names = {one.name for one in model_registry.known_collections(session)}
    for name in sorted(names | set(qdrant.list_collections(deps.vectors))):
        differences = confirmed_differences(deps, name, name == active.name, ComparisonReport(), no_steps)
        if name == active.name:
            unrepaired |= _rewrite(deps, settings, active, differences)
        else:
            _withdraw(deps, settings, name, differences)
        if qdrant.optimizer_error(deps.vectors, name):
            qdrant.restart_optimizer(deps.vectors, name)
    return unrepaired


def _drop_collections_of_other_models(deps: Deps) -> None:
    """Delete the collections that another model made than Postgres says."""
    with deps.sessions() as session:
        known = model_registry.known_collections(session)
    for one in known:
        if is_of_another_model(deps, one):
            deps.vectors.delete_collection(one.name)
            with deps.sessions.begin() as session:
                model_registry.forget_marks(session, one.name)


def _withdraw(deps: Deps, settings: Settings, collection: str, differences: Iterator[Difference]) -> None:
    """Delete differing points and their states in an inactive collection."""
    while chunk := list(islice(differences, settings.batch_size)):
        if deps.vectors.collection_exists(collection):
            qdrant.delete_points(deps.vectors, collection, [one.id for one in chunk])
        ids = [one.entry.id for one in chunk if one.entry]
        if ids:
            with deps.sessions.begin() as session:
                catalog.drop_marks(session, collection, ids)


def _rewrite(
    deps: Deps, settings: Settings, active: qdrant.Collection, differences: Iterator[Difference]
) -> set[str]:
    """Delete strays, correct payloads, and backfill the other points.

    Returns:
        The reasons of items without a usable image.
    """

    def need_vectors() -> Iterator[Sequence[UUID]]:
        while chunk := list(islice(differences, settings.batch_size)):
            strays = [one.id for one in chunk if one.kind == "stray"]
            if strays:
                qdrant.delete_points(deps.vectors, active.name, strays)
            _correct_payloads(
                deps, active.name, [one.entry.id for one in chunk if one.entry and one.only_payload]
            )
            yield [one.entry.id for one in chunk if one.entry and not one.only_payload]

    with Workers(deps.encoder.preparation, settings.decode_workers) as workers:
        backfill = Backfill(deps, deps.encoder, active, workers, settings)
        rewrite(backfill, need_vectors())
    return set(backfill.missing.values())


def _correct_payloads(deps: Deps, collection: str, ids: Sequence[UUID]) -> None:
    if not ids:
        return
    with deps.sessions() as session:
        items = catalog.items_with_digests(session, ids)
    qdrant.overwrite_payloads(deps.vectors, collection, items)
    with deps.sessions.begin() as session:
        catalog.mark_embedded(session, collection, {id: digest for id, (_, digest) in items.items()})


def _restore_images(stores: Stores, limits: Limits) -> set[str]:
    """Fetch lost images again, where the source still has the same bytes.

    Returns:
        The reasons of those that stay lost.
    """
    if stores.blobs is None:
        return set()
    lost = set()
    for image in missing_images(stores, ComparisonReport()):
        data = load_image(stores, image.sha256, image.origin, limits, or_origin=True)
        if data is not None:
            stores.blobs.put(image.sha256, data)
        else:
            where = redacted(image.uri)
            lost.add(f"image {image.sha256[:12]}…: its bytes are lost, here and at {where}")
    return lost
