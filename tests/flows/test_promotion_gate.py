"""What a candidate has to show before searches may use it, and what is put on record of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from embedding.encoders.sentence_encoder import Encoder, Vectors, unit_rows
from embedding.evaluation.metrics import retrieval_scores, single_answers
from embedding.evaluation.ranks import Direction
from embedding.images.preparation import PIXELS, Features
from embedding.training.splits import Split
from flows.config.settings import PromotionGate, Settings
from flows.datasets.test_sets import NothingToEvaluate, of_held_out, of_records
from flows.evaluation.evaluate import DirectionScores, evaluate
from flows.evaluation.promotion_gate import AlreadyActive, Check, Decision, decide, promote
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.reindexing.reindex import NotPromoted, ReindexRequest, reindex
from flows.resources.connections import Deps
from storage import qdrant
from storage.postgres import model_registry
from storage.postgres.locks import Busy, flow_lock
from storage.postgres.schema import PromotionRow, RunRow
from tests.support.builders import a_folder, a_manifest, encoded, noise
from tests.support.fakes import ColourEncoder

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

PICTURES = 60
SPLIT = Split(seed=0, held_out=0.5)


class Memory(ColourEncoder):
    """Places each text and each picture by chance, but a picture that it knows where its caption is."""

    dim = 16

    def __init__(self, name: str, known: Mapping[str, str]) -> None:
        super().__init__(name, f"{name}1")
        self._known = known

    def texts(self, texts: Sequence[str]) -> Vectors:
        rows = [np.random.default_rng(seed_of(text.encode())).standard_normal(16) for text in texts]
        return unit_rows(np.array(rows, float).reshape(len(texts), 16))

    def encode_prepared(self, images: Sequence[Features]) -> Vectors:
        names = [name_of(image) for image in images]
        return self.texts([self._known.get(name, name) for name in names])


def seed_of(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def name_of(picture: Features) -> str:
    return hashlib.sha256(picture[PIXELS].tobytes()).hexdigest()


def captions(start: int, end: int) -> dict[str, str]:
    """What a model knows of pictures: their captions."""
    return {
        name_of(ColourEncoder.preparation(noise((40 + number, 40)))): f"noise {number}"
        for number in range(start, end)
    }


def a_set(folder: Path, start: int, end: int, lang: str | None = None) -> Path:
    """A manifest of pictures, each with a caption."""
    for number in range(start, end):
        a_folder(folder, {f"{number}.png": encoded(noise((40 + number, 40)), "PNG")})
    rows = [
        {
            "key": str(number),
            "image": f"{number}.png",
            "texts": [{"text": f"noise {number}", "lang": lang}],
        }
        for number in range(start, end)
    ]
    return a_manifest(folder / "set.jsonl", rows)


OUTSIDE = captions(100, 120)
MODELS = {
    "active": Memory("active", {**captions(0, 20), **OUTSIDE}),
    "better": Memory("better", captions(0, 60)),
    "learned more": Memory("learned more", {**captions(0, 60), **OUTSIDE}),
    "damaged": Memory("damaged", {}),
}


def load(_: Settings, name: str) -> Encoder:
    return MODELS[name]


@pytest.fixture
def shop(deps: Deps, settings: Settings, tmp_path: Path) -> Deps:
    """Sixty pictures, of which the active model knows twenty; half of all are held out."""
    shop = replace(deps, encoder=MODELS["active"])
    ingest_source(shop, settings, Request(a_set(tmp_path / "shop", 0, PICTURES)))
    for name, model in MODELS.items():
        if name != "active":
            with shop.sessions.begin() as session:
                model_registry.save_model(
                    session,
                    fingerprint=model.fingerprint,
                    name=name,
                    dim=16,
                    parent="active1",
                    training={"split": SPLIT.as_json()},
                )
    return shop


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return a_set(tmp_path / "outside", 100, 120)


def check(decision: Decision, name: str) -> Check:
    [found] = [one for one in decision.checks if one.name == name]
    return found


def on_record(deps: Deps) -> list[PromotionRow]:
    with deps.sessions() as session:
        return list(session.scalars(select(PromotionRow).order_by(PromotionRow.id)))


def test_a_candidate_that_is_surely_better_is_promoted_and_may_be_used(shop: Deps, settings: Settings):
    decision = promote(shop, settings, "better", load=load)

    held_out = check(decision, "held-out")
    assert (decision.promoted, decision.forced) == (True, False)
    assert held_out.difference.low is not None
    assert held_out.difference.low > 0.2
    assert held_out.candidate - held_out.active == pytest.approx(held_out.difference.value)
    assert reindex(shop, settings, ReindexRequest("better"), load=load).model == "better"


def test_a_candidate_that_was_damaged_is_refused(shop: Deps, settings: Settings):
    decision = promote(shop, settings, "damaged", load=load)

    assert not decision.promoted
    assert check(decision, "held-out").difference.value < -0.1
    with pytest.raises(NotPromoted, match="sightline promote damaged"):
        reindex(shop, settings, ReindexRequest("damaged"), load=load)


def test_a_candidate_that_wins_on_what_it_has_learned_from_alone_is_refused(shop: Deps, settings: Settings):
    everything = of_records(shop, "all", None, None)
    learned = {
        name_of(ColourEncoder.preparation(noise((40 + number, 40)))): f"noise {number}"
        for number in trained_on(shop, settings)
    }
    overfitted = Memory("better", {**captions(0, 20), **learned})

    def load_overfitted(_: Settings, name: str) -> Encoder:
        return overfitted if name == "better" else MODELS[name]

    [comparison] = evaluate(
        shop, settings, ["active", "better"], everything, load=load_overfitted
    ).comparisons
    decision = promote(shop, settings, "better", load=load_overfitted)

    low = comparison.measured[0].figures["recall@10"].low
    assert low is not None
    assert low > 0.1  # it does win, where what it has learned from counts
    assert not decision.promoted
    assert abs(check(decision, "held-out").difference.value) < 0.1


def trained_on(shop: Deps, settings: Settings) -> list[int]:
    """The numbers of pictures that are on the training side of the split."""
    held_out = {entry.id for entry in of_held_out(shop, settings.limits, [SPLIT], None).entries}
    entries = of_records(shop, "all", None, None).entries
    texts = [entry.captions[0].text for entry in entries if entry.id not in held_out]
    return sorted(int(text.split()[1]) for text in texts)


def test_a_candidate_that_has_forgotten_what_is_outside_is_refused(
    shop: Deps, settings: Settings, outside: Path
):
    refused = promote(shop, settings, "better", outside=outside, load=load)
    accepted = promote(shop, settings, "learned more", outside=outside, load=load)

    assert [(one.name, one.passed) for one in refused.checks] == [("held-out", True), ("outside", False)]
    assert not refused.promoted
    assert check(refused, "outside").active == 1
    assert accepted.promoted


def test_without_a_set_from_outside_the_decision_says_that_forgetting_was_not_checked(
    shop: Deps, settings: Settings, outside: Path
):
    assert "forgetting was not checked" in promote(shop, settings, "better", load=load).remarks[0]

    named = settings.model_copy(update={"gate": PromotionGate(outside=outside)})
    assert promote(shop, named, "learned more", load=load).remarks == ()


def test_force_is_on_record_with_the_figures(shop: Deps, settings: Settings):
    promote(shop, settings, "damaged", load=load)
    promote(shop, settings, "damaged", force=True, load=load)

    first, second = on_record(shop)
    assert (first.promoted, first.forced) == (False, False)
    assert (second.promoted, second.forced) == (True, True)
    assert (second.candidate, second.active) == ("damaged1", "active1")
    assert second.checks[0]["name"] == "held-out"
    assert second.checks[0]["difference"]["value"] < 0
    assert reindex(shop, settings, ReindexRequest("damaged"), load=load).model == "damaged"


def test_a_decision_is_a_run_on_record(shop: Deps, settings: Settings):
    promote(shop, settings, "better", load=load)

    with shop.sessions() as session:
        run = session.scalars(select(RunRow).where(RunRow.flow == "promote")).one()
    assert (run.outcome, run.options, run.counts) == (
        "completed",
        {"model": "better"},
        {"promoted": True, "forced": False},
    )


def test_a_promotion_counts_against_the_model_that_it_was_compared_with(shop: Deps, settings: Settings):
    promote(shop, settings, "better", load=load)
    reindex(shop, settings, ReindexRequest("damaged", force=True), load=load)

    with pytest.raises(NotPromoted, match="has not been promoted over 'damaged'"):
        reindex(shop, settings, ReindexRequest("better"), load=load)


def test_the_active_model_needs_no_promotion(shop: Deps, settings: Settings):
    with pytest.raises(AlreadyActive, match="searches use 'active' already"):
        promote(shop, settings, "active", load=load)


def test_an_active_model_that_is_another_one_now_cannot_be_compared_with(shop: Deps, settings: Settings):
    changed = Memory("active", {})
    changed.fingerprint = "changed"

    with pytest.raises(qdrant.ModelMismatch):
        promote(shop, settings, "better", load=lambda _, name: changed if name == "active" else MODELS[name])


def test_two_decisions_at_once_are_one_too_many(shop: Deps, settings: Settings):
    with flow_lock(shop.engine, "promotion"), pytest.raises(Busy, match="another promotion"):
        promote(shop, settings.model_copy(update={"retry_for_s": 0}), "better", load=load)


def test_with_nothing_to_judge_by_there_is_no_decision_but_a_forced_one(
    deps: Deps, settings: Settings, tmp_path: Path
):
    bare = replace(deps, encoder=MODELS["active"])
    ingest_source(bare, settings, Request(a_manifest(tmp_path / "set.jsonl", [{"key": "a", "text": "a"}])))

    with pytest.raises(NothingToEvaluate):
        promote(bare, settings, "better", load=load)
    assert on_record(bare) == []

    decision = promote(bare, settings, "better", force=True, load=load)
    assert (decision.promoted, decision.forced, decision.checks) == (True, True, ())
    assert "nothing was checked" in decision.remarks[-1]


def judged(ranks: Sequence[int], langs: Sequence[str]) -> DirectionScores:
    """Texts in these languages that find their pictures at these ranks, each of a record of its own."""
    many = np.arange(len(ranks))
    parts = {f"lang={lang}": np.array([own == lang for own in langs]) for lang in set(langs)}
    direction = Direction(
        "text_to_image", "texts", many, "images", many, many, many, many, np.ones(len(many)), many, parts
    )
    answers = single_answers(np.array(ranks))
    return DirectionScores(direction, answers, retrieval_scores(answers))


FOUND, LOST = 1, 11


def test_a_language_in_which_a_candidate_falls_refuses_it_if_there_are_enough_queries():
    langs = ["en"] * 100 + ["de"] * 20
    active = judged([LOST] * 50 + [FOUND] * 70, langs)
    candidate = judged([FOUND] * 100 + [FOUND] * 18 + [LOST] * 2, langs)

    few = decide(PromotionGate(least_queries=50), ([active], [candidate]), None)
    enough = decide(PromotionGate(least_queries=20), ([active], [candidate]), None)
    tolerated = decide(PromotionGate(least_queries=20, tolerance=0.1), ([active], [candidate]), None)

    assert [(one.name, one.passed) for one in few] == [("held-out", True), ("lang=en", True)]
    assert [(one.name, one.passed) for one in enough] == [
        ("held-out", True),
        ("lang=de", False),
        ("lang=en", True),
    ]
    assert all(one.passed for one in tolerated)


@pytest.mark.parametrize(("better", "passed"), [(1, False), (30, True)])
def test_a_gain_that_may_be_chance_is_none(better: int, passed: bool):
    active = judged([LOST] * 100, ["en"] * 100)
    candidate = judged([FOUND] * better + [LOST] * (100 - better), ["en"] * 100)

    [held_out] = decide(PromotionGate(least_queries=1000), ([active], [candidate]), None)

    assert held_out.difference.value > 0
    assert held_out.passed == passed


def test_the_gain_must_exceed_the_margin():
    active = judged([LOST] * 100, ["en"] * 100)
    candidate = judged([FOUND] * 30 + [LOST] * 70, ["en"] * 100)

    gains = [
        decide(PromotionGate(margin=margin, least_queries=1000), ([active], [candidate]), None)[0]
        for margin in (0.1, 0.3)
    ]

    assert [one.passed for one in gains] == [True, False]
