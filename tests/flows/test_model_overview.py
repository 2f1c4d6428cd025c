"""Models are seen in the order in which they come from each other, with what changing to one would take."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from flows.service.model_overview import ModelOverview, estimate_backfill, tree
from storage.postgres import model_history, model_registry, runs, statistics
from storage.postgres.model_history import CollectionHistory, LastDecision, ModelHistory
from tests.support.builders import a_folder, png

START = datetime(2026, 1, 1, tzinfo=UTC)


def a_model(name: str, *, parent: str | None = None, day: int = 0, state: str = "candidate") -> ModelHistory:
    created = START + timedelta(days=day)
    return ModelHistory(name, name, state, created, parent, parent, {}, {}, None, {})


def a_collection(name: str, *, retired: int | None, activated: bool = True) -> CollectionHistory:
    state = "active" if retired is None else "retired"
    ended = None if retired is None else START + timedelta(days=retired)
    return CollectionHistory(name, name, state, START if activated else None, ended)


def a_lineage(
    *models: ModelHistory,
    collections: tuple[CollectionHistory, ...] = (),
    points: dict[str, int] | None = None,
) -> ModelOverview:
    return ModelOverview(tree(models), collections, points or {}, (), (), (), None)


def test_a_model_stands_below_the_one_that_it_comes_from():
    newest_first = [
        a_model("other", day=4),
        a_model("grandchild", parent="second", day=3),
        a_model("second", parent="given", day=2),
        a_model("first", parent="given", day=1),
        a_model("given"),
        a_model("of one unknown", parent="gone", day=5),
    ]

    assert [(depth, life.name) for depth, life in tree(newest_first)] == [
        (0, "given"),
        (1, "first"),
        (1, "second"),
        (2, "grandchild"),
        (0, "other"),
        (0, "of one unknown"),
    ]


def test_a_rollback_goes_to_what_was_retired_last_and_is_there_still():
    collections = (
        a_collection("now", retired=None),
        a_collection("gone", retired=4),
        a_collection("never used", retired=3, activated=False),
        a_collection("before", retired=2),
        a_collection("long ago", retired=1),
    )
    there = {"now": 1, "never used": 1, "before": 1, "long ago": 1}

    back = a_lineage(collections=collections, points=there).back

    assert back is not None
    assert back.name == "before"


@pytest.mark.parametrize(
    ("promoted", "over", "may"), [(True, "a", True), (False, "a", False), (True, "b", False)]
)
def test_only_a_promotion_over_what_is_active_now_counts(promoted: bool, over: str, may: bool):
    active = a_model("a", state="active")
    decided = LastDecision(START, promoted, False, over, over)
    candidate = ModelHistory("c", "c", "candidate", START, None, None, {}, {}, decided, {})

    assert a_lineage(active, candidate).is_promoted(candidate) == may


def test_what_a_change_takes_is_told_by_the_last_that_was_embedded(
    deps: Deps, settings: Settings, tmp_path: Path
):
    colours = ("red", "green", "blue")
    shop = a_folder(tmp_path / "shop", {f"{colour}.png": png(colour) for colour in colours})
    ingest_source(deps, settings, Request(shop))

    with deps.sessions() as session:
        by_ingest, none = (
            estimate_backfill(session, "items__new"),
            estimate_backfill(session, "items__colour1"),
        )
    with deps.sessions.begin() as session:
        for written in (6, 0):
            id = uuid4()
            runs.start_run(session, id, "reindex")
            runs.end_run(session, id, "completed", counts={"written": written}, seconds={"total": 12.0})
    with deps.sessions() as session:
        by_reindex = estimate_backfill(session, "items__new")

    assert (by_ingest.records, by_ingest.by, none.records) == (3, "ingest", 0)
    assert by_ingest.seconds is not None
    assert (by_reindex.records, by_reindex.seconds, by_reindex.by) == (3, 6.0, "reindex")


def test_of_each_model_and_data_set_the_last_evaluation_counts(deps: Deps):
    def put(model: str, dataset: str, value: float, part: str | None = None) -> None:
        with deps.sessions.begin() as session:
            model_registry.save_model(session, fingerprint=model, name=model, dim=3)
            session.flush()
            model_registry.save_evaluation(
                session,
                model=model,
                collection=None,
                dataset=dataset,
                direction="text_to_image",
                lang=None,
                part=part,
                figures={"recall@10": {"value": value, "low": value - 0.1, "high": value + 0.1}},
                queries=10,
                gallery=20,
            )

    put("a", "all", 0.1)
    put("b", "all", 0.2)
    put("a", "all", 0.3)
    put("a", "all", 0.9, part="lang=de")
    put("a", "held-out", 0.4)

    with deps.sessions() as session:
        found = statistics.last_evaluations(session)
    assert [(one.dataset, one.model, one.value) for one in found] == [
        ("all", "a", 0.3),
        ("all", "b", 0.2),
        ("held-out", "a", 0.4),
    ]


def test_decisions_are_told_newest_first_and_in_pages(deps: Deps):
    check = {
        "name": "held-out",
        "passed": False,
        "queries": 9,
        "difference": {"value": 0.1, "low": -0.1, "high": 0.3},
        "limit": 0.0,
        "candidate": 0.6,
        "active": 0.5,
    }
    with deps.sessions.begin() as session:
        for name in ("old", "new"):
            model_registry.save_model(session, fingerprint=name, name=f"the {name} one", dim=3)
        session.flush()
        for promoted in (False, True):
            model_registry.save_decision(
                session,
                candidate="new",
                active="old",
                promoted=promoted,
                forced=promoted,
                checks=[] if promoted else [check],
            )

    with deps.sessions() as session:
        [newest] = model_history.decisions(session, 1)
        [older] = model_history.decisions(session, 5, before=newest.id)
        [new, _] = model_history.models(session)
    assert (newest.candidate, newest.active, newest.promoted, newest.forced) == (
        "the new one",
        "the old one",
        True,
        True,
    )
    assert newest.checks == ()
    [checked] = older.checks
    assert (checked.name, checked.passed, checked.gain, checked.low, checked.high) == (
        "held-out",
        False,
        0.1,
        -0.1,
        0.3,
    )
    assert new.decided is not None
    assert (new.decided.promoted, new.decided.over_fingerprint) == (True, "old")
