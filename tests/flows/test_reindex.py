"""Re-index: backfill beside the old model, verify, switch in one step, and roll back."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from qdrant_client import QdrantClient, models
from sqlalchemy import Engine, select, text, update

from embedding.encoders.sentence_encoder import Encoder, Vectors
from embedding.images.preparation import Features, PreparedImage
from embedding.images.worker_pool import Workers
from flows.config.settings import Settings
from flows.ingestion.backfill import Backfill
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.maintenance.delete import delete_items
from flows.maintenance.purge import purge
from flows.reindexing import reindex as reindexing
from flows.reindexing import verification
from flows.reindexing.reindex import (
    MissingImages,
    NoPreviousCollection,
    NotEnoughDisk,
    NotPromoted,
    ReindexRequest,
    ReindexResult,
    reindex,
    rollback,
)
from flows.reindexing.verification import NotVerified, Verification
from flows.resources import comparison
from flows.resources.comparison import reconcile
from flows.resources.connections import Deps
from flows.resources.model_loader import ModelCache, UnusedModel, active_model
from flows.search.query import Query, Results, SearchDeps, search
from storage import qdrant
from storage.postgres import catalog, model_registry
from storage.postgres.catalog import Selection
from storage.postgres.locks import Busy, Lock, exclusive_lock, flow_lock, source_lock
from storage.postgres.schema import CollectionRow, ModelRow, PromotionRow, RunRow
from storage.records import item_id
from tests.support.builders import a_folder, a_manifest, png
from tests.support.fakes import ColourEncoder
from tests.support.processes import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

COLOURS = ("red", "green", "blue")
OLD, NEW = "items__colour1", "items__turned1"


class Turned(ColourEncoder):
    """Places everything elsewhere: a query of one model goes wrong among vectors of the other."""

    def __init__(self) -> None:
        super().__init__("turned", "turned1")

    def texts(self, texts: Sequence[str]) -> Vectors:
        return super().texts(texts)[:, [1, 2, 0]]

    def encode_prepared(self, images: Sequence[Features]) -> Vectors:
        return super().encode_prepared(images)[:, [1, 2, 0]]


def load(_: Settings, name: str) -> Encoder:
    return {"colour": ColourEncoder, "turned": Turned}[name]()


def a_set(folder: Path, many: int = 12, *, source: str = "set") -> Path:
    """A manifest whose pictures are red, green and blue by turns, each with its colour as caption."""
    rows = []
    for number in range(many):
        colour = COLOURS[number % 3]
        a_folder(folder, {f"{number}.png": png(colour, (16, 16 + number))})
        rows.append({"key": str(number), "image": f"{number}.png", "text": colour})
    return a_manifest(folder / f"{source}.jsonl", rows)


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path: Path) -> Deps:
    ingest_source(deps, settings, Request(a_set(tmp_path / "shop")))
    return deps


def forced(
    deps: Deps,
    settings: Settings,
    *,
    during: Callable[[str, int], None] = lambda _what, _done: None,
    max_missing: int = 0,
) -> ReindexResult:
    return reindex(
        deps,
        settings,
        ReindexRequest("turned", force=True, max_missing=max_missing),
        load=load,
        progress=lambda what, done, _of: during(what, done),
    )


def with_models(deps: Deps, settings: Settings, clock: Callable[[], float] = time.monotonic) -> SearchDeps:
    return SearchDeps(
        deps.engine,
        deps.sessions,
        deps.vectors,
        deps.blobs,
        deps.encoder,
        ModelCache(settings, load),
        alias=qdrant.AliasCache(clock),
    )


def states(deps: Deps) -> dict[str, str]:
    with deps.sessions() as session:
        return {one.name: one.state for one in model_registry.known_collections(session)}


def colours_found(results: Results) -> set[str]:
    return {one.text for one in results.found}


def test_searches_go_to_the_new_model_and_the_old_collection_is_kept(shop: Deps, settings: Settings):
    switched = forced(shop, settings)

    assert (switched.collection, switched.before, switched.written) == (NEW, OLD, 12)
    assert switched.recall == 1
    assert qdrant.active_collection(shop.vectors) == qdrant.describe(shop.vectors, NEW)
    assert states(shop) == {OLD: "retired", NEW: "active"}
    assert not reconcile(shop).work
    with shop.sessions() as session:
        models = session.execute(select(ModelRow.name, ModelRow.state).order_by(ModelRow.name)).all()
    assert list(map(tuple, models)) == [("colour", "retired"), ("turned", "active")]


def test_searches_that_go_on_follow_the_switch(shop: Deps, settings: Settings):
    now = [0.0]
    searching = with_models(shop, settings, lambda: now[0])
    before = search(searching, Query(text="red", limit=4))

    forced(shop, settings)
    meanwhile = search(searching, Query(text="red", limit=4))
    now[0] += qdrant.MAX_AGE_S

    after = search(searching, Query(text="red", limit=4))
    assert (before.model, after.model) == ("colour", "turned")
    assert (meanwhile.model, meanwhile.collection) == (before.model, before.collection)
    assert colours_found(before) == colours_found(meanwhile) == colours_found(after) == {"red"}


def test_a_model_that_was_not_promoted_is_refused(shop: Deps, settings: Settings):
    with pytest.raises(NotPromoted, match="sightline promote turned"):
        reindex(shop, settings, ReindexRequest("turned"), load=load)

    assert states(shop) == {OLD: "active"}


def decide(deps: Deps, *decisions: bool) -> None:
    """Put on record, one after the other, whether the new model was promoted over the old one."""
    with deps.sessions.begin() as session:
        model_registry.save_model(session, fingerprint="turned1", name="turned", dim=3)
        session.flush()
        for promoted in decisions:
            model_registry.save_decision(
                session, candidate="turned1", active="colour1", promoted=promoted, forced=False, checks=[]
            )


def test_a_promoted_model_needs_no_force(shop: Deps, settings: Settings):
    decide(shop, False, True)

    assert reindex(shop, settings, ReindexRequest("turned"), load=load).collection == NEW


def test_the_last_decision_counts(shop: Deps, settings: Settings):
    decide(shop, True, False)

    with pytest.raises(NotPromoted):
        reindex(shop, settings, ReindexRequest("turned"), load=load)


def test_force_is_on_record(shop: Deps, settings: Settings):
    forced(shop, settings)

    with shop.sessions() as session:
        decision = session.scalars(select(PromotionRow)).one()
    assert (decision.candidate, decision.active, decision.promoted, decision.forced) == (
        "turned1",
        "colour1",
        True,
        True,
    )


def test_a_collection_that_does_not_fit_is_refused_before_anything_is_made(shop: Deps, settings: Settings):
    with pytest.raises(NotEnoughDisk, match="MiB are free"):
        reindex(shop, settings, ReindexRequest("turned", force=True), load=load, free_bytes=1000)
    assert not shop.vectors.collection_exists(NEW)

    reindex(shop, settings, ReindexRequest("turned", force=True, yes=True), load=load, free_bytes=1000)


def test_what_arrives_changes_and_goes_meanwhile_is_taken_along(
    shop: Deps, settings: Settings, tmp_path: Path
):
    done: set[str] = set()

    def meanwhile(what: str, _: int) -> None:
        if what == "embed" and not done:
            done.add(what)
            rows = [{"key": "1", "image": "1.png", "text": "blue"}, {"key": "new", "text": "green"}]
            changed = a_manifest(tmp_path / "shop" / "set.jsonl", rows)
            ingest_source(shop, settings, Request(changed))
            delete_items(shop, Selection(keys=("2",)), settings.home / "receipts", for_s=0)

    switched = forced(shop, settings, during=meanwhile)

    assert done
    assert switched.collection == NEW
    assert not reconcile(shop).work
    assert qdrant.count(shop.vectors, NEW) == 12
    turned = replace(shop, encoder=Turned())
    found = search(turned, Query(text="green", find="texts", limit=12)).found
    assert "new" in {one.item.key for one in found if one.text == "green"}


def test_an_item_deleted_between_its_point_and_its_mark_leaves_nothing(shop: Deps, settings: Settings):
    class DeletesMeanwhile(Turned):
        def texts(self, texts: Sequence[str]) -> Vectors:
            delete_items(shop, Selection(keys=("2",)), settings.home / "receipts", for_s=0)
            return super().texts(texts)

    reindex(shop, settings, ReindexRequest("turned", force=True), load=lambda *_: DeletesMeanwhile())

    assert qdrant.count(shop.vectors, NEW) == 11
    assert not reconcile(shop).work


def test_a_reindex_that_was_interrupted_goes_on_where_it_was(shop: Deps, settings: Settings):
    def crash(what: str, done: int) -> None:
        if what == "embed" and done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forced(shop, settings, during=crash)
    assert states(shop) == {OLD: "active", NEW: "building"}
    assert colours_found(search(shop, Query(text="red", limit=4))) == {"red"}

    assert forced(shop, settings).written == 4
    assert not reconcile(shop).work


def test_a_crash_between_the_alias_and_the_rows_is_healed_by_whatever_runs_next(
    shop: Deps, settings: Settings
):
    forced(shop, settings)
    for name, state in ((NEW, "building"), (OLD, "active")):
        with shop.sessions.begin() as session:
            session.execute(update(CollectionRow).where(CollectionRow.name == name).values(state=state))

    again = forced(shop, settings)

    assert again.written == 0
    assert states(shop) == {OLD: "retired", NEW: "active"}
    assert not reconcile(shop).work


def test_pictures_that_are_gone_hold_up_the_switch_until_they_are_let_go(
    shop: Deps, settings: Settings, tmp_path: Path
):
    assert shop.blobs is not None
    with shop.sessions() as session:
        sha256 = session.scalar(text("select image_sha256 from items where key = '4'"))
    shop.blobs.delete(sha256)
    (tmp_path / "shop" / "4.png").unlink()

    with pytest.raises(MissingImages, match="1 items have no usable image, the first of them set: 4"):
        forced(shop, settings)
    assert states(shop)[OLD] == "active"

    switched = forced(shop, settings, max_missing=1)
    assert len(switched.missing) == 1
    assert qdrant.count(shop.vectors, NEW) == 11


def test_a_reindex_waits_for_whoever_has_the_stores_alone(
    shop: Deps, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    for module in ("ingestion.backfill", "reindexing.reindex"):
        monkeypatch.setattr(f"flows.{module}.PAUSE_S", 0.01)
    alone = exclusive_lock(shop.engine)
    alone.ensure()
    told: list[str] = []

    def tell(what: str, _: int) -> None:
        told.append(what)
        if len(told) > 3:
            alone.release()

    switched = forced(shop, settings, during=tell)

    assert switched.collection == NEW
    assert told[0].startswith("wait: the stores are being repaired")


def test_the_switch_waits_for_an_ingest(shop: Deps, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    for module in ("ingestion.backfill", "reindexing.reindex"):
        monkeypatch.setattr(f"flows.{module}.PAUSE_S", 0.01)
    ingest = source_lock(shop.engine, "another")
    ingest.ensure()

    def tell(what: str, _: int) -> None:
        if what.startswith("wait: an ingest"):
            assert states(shop)[OLD] == "active"
            ingest.release()

    assert forced(shop, settings, during=tell).collection == NEW


def test_two_at_once_are_one_too_many(shop: Deps, settings: Settings):
    with flow_lock(shop.engine, "re-index"), pytest.raises(Busy, match="another re-index"):
        forced(shop, settings.model_copy(update={"retry_for_s": 0}))


def test_an_ingest_afterwards_uses_the_new_model(shop: Deps, settings: Settings, tmp_path: Path):
    forced(shop, settings)

    assert active_model(shop.vectors, shop.sessions, settings) == "turned"
    with pytest.raises(qdrant.ModelMismatch, match="sightline reindex --model colour"):
        ingest_source(shop, settings, Request(a_set(tmp_path / "more", source="more")))
    report = ingest_source(
        replace(shop, encoder=Turned()), settings, Request(a_set(tmp_path / "more", source="more"))
    )
    assert report.embedded == 12
    assert not reconcile(shop).work


def test_a_model_that_is_set_and_was_never_used_is_an_error_that_names_the_remedy(
    shop: Deps, settings: Settings
):
    with pytest.raises(UnusedModel, match="sightline reindex --model clip"):
        active_model(shop.vectors, shop.sessions, settings.model_copy(update={"model": "clip"}))


def test_back_in_one_step_with_what_came_meanwhile(shop: Deps, settings: Settings, tmp_path: Path):
    forced(shop, settings)
    turned = replace(shop, encoder=Turned())
    ingest_source(turned, settings, Request(a_set(tmp_path / "more", many=3, source="more")))

    back = rollback(shop, settings, load=load)

    assert (back.collection, back.before, back.written) == (OLD, NEW, 3)
    assert states(shop) == {OLD: "active", NEW: "retired"}
    assert not reconcile(shop).work
    assert colours_found(search(shop, Query(text="red", limit=5))) == {"red"}
    assert rollback(shop, settings, load=load).collection == NEW


def test_without_a_kept_collection_there_is_no_way_back(shop: Deps, settings: Settings):
    with pytest.raises(NoPreviousCollection, match="sightline reindex --model M"):
        rollback(shop, settings, load=load)


def test_a_retired_collection_goes_after_its_time(shop: Deps, settings: Settings):
    forced(shop, settings)
    kept = purge(shop, settings, max_delete=0, yes=False, dry_run=False)
    assert kept.collections == ()

    with shop.sessions.begin() as session:
        long_ago = {"retired": text("now() - interval '8 days'")}
        session.execute(update(CollectionRow).where(CollectionRow.name == OLD).values(long_ago))
    assert purge(shop, settings, max_delete=0, yes=False, dry_run=True).collections == (OLD,)
    assert shop.vectors.collection_exists(OLD)
    assert purge(shop, settings, max_delete=0, yes=False, dry_run=False).collections == (OLD,)

    assert not shop.vectors.collection_exists(OLD)
    assert states(shop) == {NEW: "active"}
    assert not reconcile(shop).work


def test_a_reindex_that_was_given_up_goes_after_its_time(shop: Deps, settings: Settings):
    with pytest.raises(KeyboardInterrupt):
        forced(shop, settings, during=_crash)
    soon = settings.model_copy(update={"keep_retired_days": 0})

    assert purge(shop, soon, max_delete=0, yes=False, dry_run=False).collections == (NEW,)
    assert states(shop) == {OLD: "active"}


def _crash(_what: str, _done: int) -> None:
    raise KeyboardInterrupt


def test_a_reindex_is_a_run_on_record(shop: Deps, settings: Settings):
    forced(shop, settings)

    with shop.sessions() as session:
        run = session.scalars(select(RunRow).where(RunRow.flow == "reindex")).one()
    assert (run.outcome, run.counts, run.options) == (
        "completed",
        {"written": 12, "missing": 0},
        {"model": "turned"},
    )


def test_no_search_fails_or_mixes_models_while_the_model_changes(
    deps: Deps, served: QdrantClient, settings: Settings, tmp_path: Path
):
    """Searches every few milliseconds while it is filled, switched, gone back, and the rest is dropped."""
    shop = replace(deps, vectors=served)
    ingest_source(shop, settings, Request(a_set(tmp_path / "shop")))
    searching = with_models(shop, settings)
    outcomes: Counter[str] = Counter()
    answered_by: Counter[str] = Counter()
    stop = threading.Event()
    made_by = {"colour": OLD, "turned": NEW}

    def keep_searching() -> None:
        number = 0
        while not stop.is_set():
            colour = COLOURS[number % 3]
            number += 1
            try:
                results = search(searching, Query(text=colour, limit=4))
            except Exception as error:  # noqa: BLE001 (whatever it is, it counts)
                outcomes[f"failed: {type(error).__name__}: {error}"] += 1
                continue
            mixed = made_by[results.model] != results.collection or colours_found(results) != {colour}
            outcomes["mixed" if mixed else "good"] += 1
            answered_by[results.model] += 1
            time.sleep(0.002)

    searches = threading.Thread(target=keep_searching)
    searches.start()
    try:
        soon = settings.model_copy(update={"keep_retired_days": 0})
        for _ in range(3):
            forced(shop, settings)
            rollback(shop, settings, load=load)
            time.sleep(0.05)
            purge(shop, soon, max_delete=0, yes=False, dry_run=False)
        forced(shop, settings)
        wait_until(lambda: answered_by["turned"] > 0)  # a search may keep to the alias of a second ago
    finally:
        stop.set()
        searches.join()

    assert set(outcomes) == {"good"}, outcomes
    assert outcomes["good"] > 50
    assert answered_by.keys() == {"colour", "turned"}


def before_the_lock(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Do some work once, between the last verification and the exclusive lock."""
    real, todo = reindexing.exclusive_lock, [work]

    def lone_lock_after_work(engine: Engine) -> Lock:
        if todo:
            todo.pop()()
        return real(engine)

    monkeypatch.setattr(reindexing, "exclusive_lock", lone_lock_after_work)


def test_writes_between_the_verification_and_the_lock_are_backfilled_and_verified(
    shop: Deps, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written: list[int] = []

    def write() -> None:
        rows = [{"key": "1", "image": "1.png", "text": "blue"}, {"key": "new", "text": "green"}]
        rows += [{"key": str(n), "image": f"{n}.png", "text": COLOURS[n % 3]} for n in range(3, 12)]
        changed = a_manifest(tmp_path / "shop" / "set.jsonl", rows)
        report = ingest_source(shop, settings, Request(changed, delete_missing=True))
        written.extend((report.embedded, report.deleted))

    before_the_lock(monkeypatch, write)
    whole: list[str] = []
    monkeypatch.setattr(
        verification,
        "confirmed_differences",
        lambda *args: whole.append(args[1]) or comparison.confirmed_differences(*args),
    )

    switched = forced(shop, settings)

    assert written == [2, 2]
    assert switched.written == 12 + 2
    assert whole == [NEW]
    assert qdrant.count(shop.vectors, NEW) == 11
    assert not reconcile(shop).work
    assert "new" in {
        one.item.key
        for one in search(replace(shop, encoder=Turned()), Query(text="green", find="texts", limit=12)).found
    }


@pytest.mark.parametrize("kind", ["missing", "stale", "wrong_vectors"])
def test_no_collection_is_switched_to_that_was_damaged_since_its_verification(
    shop: Deps, settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """By a process that has written the row of a point as well, or has taken the point alone."""
    id = str(item_id("set", "3"))

    def damage() -> None:
        if kind == "missing":
            shop.vectors.delete(NEW, [id])
            return
        if kind == "stale":
            shop.vectors.set_payload(NEW, {"content_hash": "other"}, [id])
        else:
            shop.vectors.delete_vectors(NEW, ["text"], [id])
        with shop.sessions.begin() as session:
            touch = text("update marks set embedded = now() where collection = :name and item_id = :id")
            session.execute(touch, {"name": NEW, "id": id})

    before_the_lock(monkeypatch, damage)

    with pytest.raises(NotVerified, match=rf"1 points .* \({kind}\)"):
        forced(shop, settings)

    assert states(shop)[OLD] == "active"
    assert qdrant.active_collection(shop.vectors) == qdrant.describe(shop.vectors, OLD)


@pytest.mark.parametrize("who", ["an interrupted delete", "nobody"])
def test_a_stray_that_came_since_the_verification_is_removed_before_the_switch(
    shop: Deps, settings: Settings, monkeypatch: pytest.MonkeyPatch, who: str
):
    def leave_a_stray() -> None:
        if who == "nobody":
            vector = {"image": [1.0, 0.0, 0.0]}
            shop.vectors.upsert(NEW, [models.PointStruct(id=str(uuid4()), vector=vector)])
        else:
            with shop.sessions.begin() as session:
                catalog.tombstone(session, [item_id("set", "3")], asked=True)

    before_the_lock(monkeypatch, leave_a_stray)

    forced(shop, settings)

    assert qdrant.count(shop.vectors, NEW) == (12 if who == "nobody" else 11)


def test_a_lock_that_was_lost_during_the_last_check_has_it_repeated(
    shop: Deps, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    taken: list[Lock] = []
    real, recheck = reindexing.exclusive_lock, verification.recheck

    def exclusive_lock(engine: Engine) -> Lock:
        taken.append(real(engine))
        return taken[-1]

    def recheck_and_lose_the_lock(backfill: Backfill, last: Verification) -> None:
        recheck(backfill, last)
        if qdrant.count(shop.vectors, OLD) == 12:
            taken[-1].release()
            more = a_manifest(tmp_path / "more.jsonl", [{"key": "new", "text": "green"}])
            ingest_source(shop, settings, Request(more))

    monkeypatch.setattr(reindexing, "exclusive_lock", exclusive_lock)
    monkeypatch.setattr(reindexing, "recheck", recheck_and_lose_the_lock)

    assert forced(shop, settings).written == 13
    assert not reconcile(shop).work


def test_an_image_that_cannot_be_decoded_is_tried_once(
    shop: Deps, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    assert shop.blobs is not None
    bad = b"no image at all"
    shop.blobs.put(hashlib.sha256(bad).hexdigest(), bad)
    with shop.sessions.begin() as session:
        changed = text("update items set image_sha256 = :sha256 where key = '4'")
        session.execute(changed, {"sha256": hashlib.sha256(bad).hexdigest()})
    submit = Workers.submit
    tried: list[bytes] = []

    def counted(self: Workers, data: bytes, *, name: str) -> "Future[PreparedImage]":
        tried.append(data)
        return submit(self, data, name=name)

    monkeypatch.setattr(Workers, "submit", counted)

    switched = forced(shop, settings, max_missing=1)

    assert len(switched.missing) == 1
    assert tried.count(bad) == 1
    assert len(tried) == 12
