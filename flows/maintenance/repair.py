"""Comparing the two stores, and mending what differs: Postgres is the truth."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from embedding.images.decode import BadImage
from embedding.images.worker_pool import Workers
from flows.config.settings import Limits, Settings
from flows.ingestion.image_cache import Shown
from flows.ingestion.pipeline import open_collection
from flows.ingestion.stages import embed_all
from flows.resources.connections import Deps, Stores
from flows.resources.deletion import finish_deletes
from flows.resources.images import fetch_again, load_image
from flows.tracking.retry_policy import held
from flows.tracking.run_log import Account, Told, recorded
from storage import qdrant
from storage.blobs import PREFIXES
from storage.consistency.differences import Difference, Held, Kept, compare, judge, order
from storage.postgres import catalog, model_registry
from storage.postgres.locks import flow_lock, lone_lock
from storage.postgres.model_registry import Known
from storage.postgres.run_totals import COMPARISON, STILL
from storage.records import Item, Picture
from storage.sources import redacted

PAGE = 2000
CONFIRM = 500
EXAMPLES = 20
MAX_ROUNDS = 5
MAX_DELETE = 0.05
"""The share of points that a repair may delete; for more, a person looks first and says so at a terminal."""

DAMAGE = (
    "missing",
    "stray",
    "stale",
    "wrong_vectors",
    "missing_picture",
    "other_model",
    "no_alias",
    "lost_writes",
)
"""What makes two stores disagree; `pending` is work that an ingest has left."""

Advance = Callable[[int], None]


class TooManyDeletes(RuntimeError):
    """A repair would delete more than the limit allows; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Example:
    """One difference, for a person."""

    kind: str
    collection: str | None
    id: str
    source: str | None
    key: str | None


@dataclass(slots=True)
class Report:
    """What differs, as counts by kind, each with a few examples."""

    items: int = 0
    """Living items that were compared."""

    points: int = 0
    """Points that were compared, in all collections."""

    pictures: int = 0
    """Pictures whose bytes were looked for."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    @property
    def damage(self) -> int:
        """How many differences there are that no ingest would mend by itself."""
        return sum(self.counts[kind] for kind in DAMAGE)

    @property
    def work(self) -> int:
        """What a repair has to do."""
        return self.damage + self.counts["pending"]

    def as_json(self) -> dict[str, Any]:
        counts = {kind: self.counts[kind] for kind in (*DAMAGE, "pending")}
        compared = {"items": self.items, "points": self.points, "pictures": self.pictures}
        return {"compared": compared, "differences": counts, "examples": [asdict(e) for e in self.examples]}

    def add(self, kind: str, id: str, *, collection: str | None = None, kept: Kept | None = None) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES:
            source, key = (kept.source, kept.key) if kept else (None, None)
            self.examples.append(Example(kind, collection, id, source, key))


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


def reconcile(stores: Stores, *, advance: Advance = lambda _: None) -> Report:
    """Compare the stores record by record, and change nothing; an ingest may run meanwhile.

    Both are read in id order, a page at a time. What differs is looked at a second time, so that a record
    that was just being written is not reported.

    Args:
        advance: told how many items have been compared.
    """
    report = Report()
    with stores.sessions() as session:
        known = model_registry.known_collections(session)
    alias = qdrant.active(stores.vectors)
    searched = alias.name if alias else None
    active = next((one.name for one in known if one.state == "active"), searched)
    if active is not None and searched != active:
        report.add("no_alias", active, collection=active)
    for name in sorted({one.name for one in known} | set(qdrant.collections(stores.vectors))):
        if any(one.name == name and is_of_another_model(stores, one) for one in known):
            report.add("other_model", name, collection=name)
        if fault := qdrant.fault_of(stores.vectors, name):
            report.add("lost_writes", fault, collection=name)
        for found in confirmed(stores, name, name == active, report, advance):
            report.add(found.kind, str(found.id), collection=name, kept=found.kept)
    for picture in missing_pictures(stores, report):
        report.add("missing_picture", picture.sha256)
    return report


def watch(
    stores: Stores,
    settings: Settings,
    *,
    prefect_run_id: UUID | None = None,
    advance: Advance = lambda _: None,
) -> Report:
    """Compare the stores as `reconcile` does, and keep on record whether they agree.

    Raises:
        Busy: another comparison or a repair is running.
    """
    account = Account()
    with (
        held(flow_lock(stores.engine, COMPARISON), for_s=settings.retry_for_s) as lock,
        recorded(
            stores.sessions, lock, COMPARISON, account=lambda: account, prefect_run_id=prefect_run_id
        ) as run,
    ):
        told = Told(stores.sessions, lock, run)
        report = lock.persist(partial(_compared, stores, told, advance))
        account.counts = dict(report.counts)
        if report.damage:
            account.outcome, account.error = "failed", damage_of(report)
    return report


def damage_of(report: Report) -> str:
    """Return how the stores differ, and the remedy, on one line."""
    found = (f"{report.counts[kind]:,} {kind.replace('_', ' ')}" for kind in DAMAGE if report.counts[kind])
    return f"the stores differ: {', '.join(found)}; mend that with: sightline reconcile --repair"


def repair(
    deps: Deps,
    settings: Settings,
    *,
    max_delete: float,
    yes: bool,
    prefect_run_id: UUID | None = None,
    advance: Advance = lambda _: None,
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
    account = Account()
    with (
        flow_lock(deps.engine, COMPARISON),
        held(lone_lock(deps.engine), for_s=settings.retry_for_s) as lock,
        recorded(
            deps.sessions,
            lock,
            COMPARISON,
            account=lambda: account,
            options={"repair": True},
            prefect_run_id=prefect_run_id,
        ) as run,
    ):
        told = Told(deps.sessions, lock, run)
        before = after = lock.persist(partial(_compared, deps, told, advance))
        account.counts = dict(before.counts)
        _refuse_many_deletes(before, max_delete, yes=yes)
        rounds, unmended = 0, set[str]()
        while after.work and rounds < MAX_ROUNDS:
            told("mend", rounds, MAX_ROUNDS)
            unmended = lock.persist(partial(_mend, deps, settings))
            rounds, last = rounds + 1, after.work
            after = lock.persist(partial(reconcile, deps))
            if after.work >= last:
                break
        account.counts[STILL] = dict(after.counts)
        if after.damage:
            account.outcome, account.error = "failed", damage_of(after)
    return Mended(before, after, rounds, tuple(sorted(unmended)))


def _compared(stores: Stores, told: Told, advance: Advance) -> Report:
    """Return what differs; whoever watches is told how far the comparison is."""
    with stores.sessions() as session:
        total = catalog.counts(session)["items"]
    done = 0

    def tell(many: int) -> None:
        nonlocal done
        done += many
        advance(many)
        told("compare", done, total)

    return reconcile(stores, advance=tell)


def confirmed(
    stores: Stores, collection: str, complete: bool, report: Report, advance: Advance
) -> Iterator[Difference]:
    """Yield the differences of one collection that are there at a second look as well, in id order."""

    def counted_items() -> Iterator[Kept]:
        for page in pages(stores, collection):
            if complete:
                report.items += len(page)
                advance(len(page))
            yield from page

    def counted_points() -> Iterator[Held]:
        for point in qdrant.held(stores.vectors, collection):
            report.points += 1
            yield point

    suspects = compare(counted_items(), counted_points(), complete=complete)
    while chunk := list(islice(suspects, CONFIRM)):
        yield from second_look(stores, collection, complete, chunk)


def second_look(
    stores: Stores, collection: str, complete: bool, suspects: list[Difference]
) -> list[Difference]:
    """Return what differs among the same ids now, as far as Postgres says the same before and after."""
    foreign = [one for one in suspects if isinstance(one.id, int)]
    ids = [one.id for one in suspects if isinstance(one.id, UUID)]
    with stores.sessions() as session:
        before = {one.id: one for one in catalog.kept(session, collection, ids=ids)}
    points = {point.id: point for point in qdrant.held(stores.vectors, collection, ids)}
    with stores.sessions() as session:
        after = {one.id: one for one in catalog.kept(session, collection, ids=ids)}
    settled = (id for id in ids if before.get(id) == after.get(id))
    found = (judge(after.get(id), points.get(id), complete=complete) for id in settled)
    return sorted([*foreign, *(one for one in found if one is not None)], key=lambda one: order(one.id))


def missing_pictures(stores: Stores, report: Report) -> Iterator[Picture]:
    """Yield each image that a living item has and the blob store has not, by SHA-256."""
    if stores.blobs is None:
        return
    for prefix in PREFIXES:
        with stores.sessions() as session:
            wanted = catalog.pictures_starting(session, prefix)
        report.pictures += len(wanted)
        lost = wanted.keys() - stores.blobs.names(prefix) if wanted else ()
        yield from (wanted[sha256] for sha256 in sorted(lost))


def pages(stores: Stores, collection: str) -> Iterator[list[Kept]]:
    """Yield all living items, each page in a transaction of its own: nothing is held open for long."""
    after = None
    while True:
        with stores.sessions() as session:
            page = catalog.kept(session, collection, after=after, limit=PAGE)
        if not page:
            return
        yield page
        after = page[-1].id


def is_of_another_model(stores: Stores, known: Known) -> bool:
    """Whether a collection says that another model made it than Postgres says."""
    if not stores.vectors.collection_exists(known.name):
        return False
    return qdrant.describe(stores.vectors, known.name).fingerprint != known.fingerprint


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
    for name in sorted(names | set(qdrant.collections(deps.vectors))):
        differences = confirmed(deps, name, name == active.name, Report(), lambda _: None)
        while chunk := list(islice(differences, settings.batch_size)):
            strays = [one.id for one in chunk if one.kind == "stray"]
            if strays:
                qdrant.remove(deps.vectors, name, strays)
            if name == active.name:
                unmended |= _write_again(deps, active, [one for one in chunk if one.kept], settings.limits)
            else:
                _take_back(deps, name, [one.kept.id for one in chunk if one.kept])
        if qdrant.fault_of(deps.vectors, name):
            qdrant.acknowledge_fault(deps.vectors, name)
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
        qdrant.remove(deps.vectors, collection, ids)
    with deps.sessions.begin() as session:
        catalog.drop_marks(session, collection, ids)


def _write_again(
    deps: Deps, collection: qdrant.Collection, differences: list[Difference], limits: Limits
) -> set[str]:
    """Write the points of these items, as Postgres has them, and then their marks."""
    if not differences:
        return set()
    with deps.sessions() as session:
        items = catalog.items_with_digests(session, [one.kept.id for one in differences if one.kept])
    payloads = {
        one.id: items[one.id]
        for one in differences
        if one.only_payload and isinstance(one.id, UUID) and one.id in items
    }
    whole = {id: entry for id, entry in items.items() if id not in payloads}
    pictures, unreadable = _pictures(deps, [item for item, _ in whole.values()], limits)
    good = {
        id: item for id, (item, _) in whole.items() if not item.picture or item.picture.sha256 in pictures
    }
    digests = {id: digest for id, (_, digest) in items.items() if id in good or id in payloads}
    points, _ = embed_all(deps.encoder, good, digests, pictures)
    qdrant.upsert(deps.vectors, collection, points)
    qdrant.overwrite_payloads(deps.vectors, collection.name, payloads)
    with deps.sessions.begin() as session:
        catalog.mark_embedded(session, collection.name, digests)
    return unreadable


def _pictures(deps: Deps, items: list[Item], limits: Limits) -> tuple[dict[str, Shown], set[str]]:
    """Return the decoded images of `items` by SHA-256, and why others cannot be had."""
    pictures: dict[str, Shown] = {}
    unreadable = set()
    with Workers(deps.encoder.preparation, 0) as workers:
        for item in items:
            picture = item.picture
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
            pictures[picture.sha256] = Shown.decoded(prepared)
    return pictures, unreadable


def _mend_pictures(stores: Stores, limits: Limits) -> set[str]:
    """Fetch again what the blob store has lost, where the source still has the same bytes."""
    if stores.blobs is None:
        return set()
    unmended = set()
    for picture in missing_pictures(stores, Report()):
        data = fetch_again(picture.sha256, picture.origin, limits)
        if data is not None:
            stores.blobs.put(picture.sha256, data)
        else:
            where = redacted(picture.uri)
            unmended.add(f"picture {picture.sha256[:12]}…: its bytes are gone, here and at {where}")
    return unmended
