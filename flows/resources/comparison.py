"""Compare Postgres and Qdrant record by record; Postgres is the truth."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any
from uuid import UUID

from flows.config.settings import Settings
from flows.resources.connections import Stores
from flows.tracking.progress import Progress, Steps, no_progress, stage_steps
from flows.tracking.run_log import tracked_run
from storage import qdrant
from storage.blobs import PREFIXES, prefix_of
from storage.consistency.differences import (
    DAMAGE,
    CatalogEntry,
    Difference,
    PointEntry,
    PointId,
    compare,
    find_difference,
    id_order,
)
from storage.postgres import catalog, model_registry
from storage.postgres.locks import flow_lock
from storage.postgres.model_registry import KnownCollection
from storage.postgres.run_totals import COMPARISON
from storage.records import ImageInfo

PAGE = 2000
CONFIRM = 500
EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Example:
    """Describe one difference."""

    kind: str
    collection: str | None
    id: str
    source: str | None
    key: str | None


@dataclass(slots=True)
class ComparisonReport:
    """Count the differences by kind, each kind with a few examples."""

    items: int = 0
    """Living items compared."""

    points: int = 0
    """Points compared, in all collections."""

    pictures: int = 0
    """Images whose bytes were looked up."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    @property
    def damage(self) -> int:
        """Number of differences that no ingest repairs by itself."""
        return sum(self.counts[kind] for kind in DAMAGE)

    @property
    def work(self) -> int:
        """Number of differences that a repair works on."""
        return self.damage + self.counts["pending"]

    def as_json(self) -> dict[str, Any]:
        counts = {kind: self.counts[kind] for kind in (*DAMAGE, "pending")}
        compared = {"items": self.items, "points": self.points, "pictures": self.pictures}
        return {"compared": compared, "differences": counts, "examples": [asdict(e) for e in self.examples]}

    def add(
        self, kind: str, id: str, *, collection: str | None = None, entry: CatalogEntry | None = None
    ) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES:
            source, key = (entry.source, entry.key) if entry else (None, None)
            self.examples.append(Example(kind, collection, id, source, key))


def reconcile(stores: Stores, *, progress: Progress = no_progress) -> ComparisonReport:
    """Compare Postgres, Qdrant and the blob store.

    Nothing is changed, and an ingest may run meanwhile. Both stores are read once, in id order, a page at a
    time. Only the differences are read again, so that a record that is being written is not reported.
    """
    with stores.sessions() as session:
        known = model_registry.known_collections(session)
        total = catalog.counts(session)["items"]
    advance = stage_steps(progress, "compare", total)
    report = ComparisonReport()
    alias = qdrant.active_collection(stores.vectors)
    searched = alias.name if alias else None
    active = next((one.name for one in known if one.state == "active"), searched)
    if active is not None and searched != active:
        report.add("no_alias", active, collection=active)
    for name in sorted({one.name for one in known} | set(qdrant.list_collections(stores.vectors))):
        if any(one.name == name and is_of_another_model(stores, one) for one in known):
            report.add("other_model", name, collection=name)
        if fault := qdrant.optimizer_error(stores.vectors, name):
            report.add("lost_writes", fault, collection=name)
        for found in confirmed_differences(stores, name, name == active, report, advance):
            report.add(found.kind, str(found.id), collection=name, entry=found.entry)
    for picture in missing_images(stores, report):
        report.add("missing_picture", picture.sha256)
    return report


def record_comparison(
    stores: Stores,
    settings: Settings,
    *,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> ComparisonReport:
    """Compare the stores, and record the result as a run.

    Raises:
        Busy: another comparison or a repair is running.
    """
    with tracked_run(
        stores.sessions,
        flow_lock(stores.engine, COMPARISON),
        COMPARISON,
        for_s=settings.retry_for_s,
        prefect_run_id=prefect_run_id,
        progress=progress,
    ) as run:
        report = run.persist(partial(reconcile, stores, progress=run.progress))
        run.counts = dict(report.counts)
        if report.damage:
            run.error = damage_of(report)
    return report


def damage_of(report: ComparisonReport) -> str:
    """Return the differences and the remedy on one line."""
    found = (f"{report.counts[kind]:,} {kind.replace('_', ' ')}" for kind in DAMAGE if report.counts[kind])
    return f"the stores differ: {', '.join(found)}; repair them with: sightline reconcile --repair"


def confirmed_differences(
    stores: Stores, collection: str, complete: bool, report: ComparisonReport, advance: Steps
) -> Iterator[Difference]:
    """Yield the confirmed differences of one collection in id order."""

    def counted_items() -> Iterator[CatalogEntry]:
        for page in item_pages(stores, collection):
            if complete:
                report.items += len(page)
                advance(len(page))
            yield from page

    def counted_points() -> Iterator[PointEntry]:
        for point in qdrant.scroll_entries(stores.vectors, collection):
            report.points += 1
            yield point

    suspects = compare(counted_items(), counted_points(), complete=complete)
    while chunk := {one.id for one in islice(suspects, CONFIRM)}:
        yield from confirm(stores, collection, complete, chunk)


def confirm(stores: Stores, collection: str, complete: bool, ids: Collection[PointId]) -> list[Difference]:
    """Compare some ids again, and return the differences in id order.

    An item that Postgres changes meanwhile is left out: a writer is at work on it.
    """
    uuids = [id for id in ids if isinstance(id, UUID)]
    with stores.sessions() as session:
        before = {one.id: one for one in catalog.entries(session, collection, ids=uuids)}
    points = {point.id: point for point in qdrant.scroll_entries(stores.vectors, collection, list(ids))}
    with stores.sessions() as session:
        after = {one.id: one for one in catalog.entries(session, collection, ids=uuids)}
    entries: dict[PointId, CatalogEntry] = {one.id: one for one in after.values()}
    settled = (id for id in ids if isinstance(id, int) or before.get(id) == after.get(id))
    found = (find_difference(entries.get(id), points.get(id), complete=complete) for id in settled)
    return sorted((one for one in found if one is not None), key=lambda one: id_order(one.id))


def missing_images(stores: Stores, report: ComparisonReport) -> Iterator[ImageInfo]:
    """Yield the lost images of living items, by SHA-256.

    An image whose items are deleted meanwhile is left out.
    """
    if stores.blobs is None:
        return
    for prefix, wanted in _images_by_prefix(stores):
        report.pictures += len(wanted)
        there = stores.blobs.names(prefix)
        if lost := [image for image in wanted if image.sha256 not in there]:
            with stores.sessions() as session:
                living = catalog.referenced_images(session, [image.sha256 for image in lost])
            yield from (image for image in lost if image.sha256 in living)


def _images_by_prefix(stores: Stores) -> Iterator[tuple[str, list[ImageInfo]]]:
    """Yield the images of living items by prefix; few by one query."""
    with stores.sessions() as session:
        few = catalog.count_images(session, at_most=PAGE) < PAGE
    for start in ("",) if few else PREFIXES:
        with stores.sessions() as session:
            images = catalog.images_by_prefix(session, start)
        for prefix, wanted in groupby(images, key=lambda image: prefix_of(image.sha256)):
            yield prefix, list(wanted)


def item_pages(stores: Stores, collection: str) -> Iterator[list[CatalogEntry]]:
    """Yield all living items page by page, each in a short transaction."""
    after = None
    while True:
        with stores.sessions() as session:
            page = catalog.entries(session, collection, after=after, limit=PAGE)
        if not page:
            return
        yield page
        after = page[-1].id


def is_of_another_model(stores: Stores, known: KnownCollection) -> bool:
    """Return whether another model made a collection than Postgres says."""
    if not stores.vectors.collection_exists(known.name):
        return False
    return qdrant.describe(stores.vectors, known.name).fingerprint != known.fingerprint
