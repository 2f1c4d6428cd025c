"""How well models find: on records, on what is held out, on a manifest from outside, and on judgments."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from embedding.encoders.sentence_encoder import Encoder, Vectors
from embedding.evaluation.ranks import Direction, rank_answers
from embedding.images.preparation import Features
from embedding.training.splits import Split
from flows.config.settings import Settings
from flows.datasets.relevance_judgments import BadJudgments
from flows.datasets.test_sets import (
    EvaluationChoice,
    NothingToEvaluate,
    TestSet,
    choose_test_set,
    of_held_out,
    of_judgments,
    of_manifest,
    of_records,
)
from flows.evaluation.evaluate import DirectionMetrics, Evaluation, evaluate
from flows.evaluation.recall_plot import write_plot
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from storage import qdrant
from storage.postgres import catalog, model_registry
from storage.postgres.schema import EvaluationRow
from tests.support.builders import a_folder, a_manifest, encoded, noise, png
from tests.support.fakes import ColourEncoder

Described = dict[str, tuple[str, Sequence[object]]]


class Blind(ColourEncoder):
    """Knows texts, and takes every picture for a red one."""

    def __init__(self) -> None:
        super().__init__("blind", "blind1")

    def encode_prepared(self, images: Sequence[Features]) -> Vectors:
        self.seen_images += len(images)
        return np.tile(np.array([1, 0, 0], np.float32), (len(images), 1))


def load(_: Settings, name: str) -> Encoder:
    return {"colour": ColourEncoder, "blind": Blind}[name]()


def a_set(folder: Path, items: Described, name: str = "set.jsonl") -> Path:
    """A manifest of items, each a colour to paint its picture with and its texts."""
    for key, (colour, _) in items.items():
        a_folder(folder, {f"{key}.png": png(colour)})
    rows = [
        {"key": key, "image": f"{key}.png", "texts": list(texts), "kind": colour}
        for key, (colour, texts) in items.items()
    ]
    return a_manifest(folder / name, rows)


def ingest(deps: Deps, settings: Settings, folder: Path, items: Described) -> None:
    ingest_source(deps, settings, Request(a_set(folder, items)))


def everything(deps: Deps, keys: Sequence[str] | None = None, langs: Sequence[str] | None = None) -> TestSet:
    return of_records(deps, "all", keys, langs)


def measured(
    deps: Deps,
    settings: Settings,
    test_set: TestSet,
    models: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Evaluation:
    return evaluate(deps, settings, models, test_set, by=by, load=load)


def direction(evaluation: Evaluation, name: str, part: str | None = None, model: int = 0) -> DirectionMetrics:
    [found] = [one for one in evaluation.models[model].measured if (one.direction, one.part) == (name, part)]
    return found


def value(evaluation: Evaluation, name: str, metric: str, model: int = 0, part: str | None = None) -> float:
    return direction(evaluation, name, part, model).figures[metric].value


RED_GREEN_BLUE: Described = {
    "a": ("red", ["red"]),
    "b": ("green", ["green"]),
    "c": ("blue", ["blue"]),
}


def test_captions_that_name_their_pictures_find_them_first(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)

    result = measured(deps, settings, everything(deps))

    for name in ("text_to_image", "image_to_text"):
        assert {figure.value for figure in direction(result, name).figures.values()} == {1.0}


def test_every_caption_is_a_query_and_an_item_ranks_by_its_best_caption(
    deps: Deps, settings: Settings, tmp_path: Path
):
    ingest(deps, settings, tmp_path, {"a": ("red", ["red", "green"]), "b": ("green", ["green"])})

    result = measured(deps, settings, everything(deps))

    assert (direction(result, "text_to_image").queries, direction(result, "image_to_text").queries) == (3, 2)
    assert value(result, "text_to_image", "recall@1") == pytest.approx(2 / 3)
    # The green picture is as close to a's second caption as to its own: the smaller id wins the tie.
    assert value(result, "image_to_text", "mrr") in (1, 0.75)


def test_the_figures_come_with_the_sizes_of_their_galleries(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE | {"d": ("grey", [])})

    result = measured(deps, settings, everything(deps))

    assert direction(result, "text_to_image").gallery == 4
    assert (direction(result, "image_to_text").gallery, direction(result, "image_to_text").queries) == (3, 3)
    assert result.unanswerable == 1


def test_a_list_of_keys_shrinks_queries_and_gallery(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, {"a": ("red", ["blue"]), "b": ("blue", ["blue"])})

    assert value(measured(deps, settings, everything(deps)), "text_to_image", "recall@1") == 0.5
    alone = measured(deps, settings, everything(deps, keys=["a"]))
    assert (value(alone, "text_to_image", "recall@1"), direction(alone, "text_to_image").gallery) == (1, 1)


def test_a_language_that_is_not_embedded_can_be_judged_as_well(
    deps: Deps, settings: Settings, tmp_path: Path
):
    german = {"text": "green", "lang": "de"}
    ingest(deps, settings, tmp_path, {"a": ("red", ["red", german]), "b": ("green", ["green"])})

    result = measured(deps, settings, everything(deps, langs=["de"]))

    found = direction(result, "text_to_image")
    assert (found.queries, found.gallery, found.figures["recall@1"].value) == (1, 2, 0)


def test_figures_are_broken_down_by_language_and_by_metadata(deps: Deps, settings: Settings, tmp_path: Path):
    wrong = {"text": "blue", "lang": "de"}
    red = {f"red {number}": ("red", ["red", wrong]) for number in range(10)}
    green = {f"green {number}": ("green", ["green", wrong]) for number in range(12)}
    ingest(deps, settings, tmp_path, red | green)

    result = measured(deps, settings, everything(deps, langs=["all"]), by=["kind"])

    parts = {one.part: one.queries for one in result.models[0].measured if one.direction == "text_to_image"}
    assert parts == {None: 44, "kind=green": 24, "kind=red": 20, "lang=de": 22, "lang=none": 22}
    right, german = (
        value(result, "text_to_image", "recall@10", part=part) for part in ("lang=none", "lang=de")
    )
    assert german < value(result, "text_to_image", "recall@10") < right
    assert {one.part for one in result.models[0].measured if one.direction == "image_to_text"} == {
        None,
        "kind=green",
        "kind=red",
    }


def test_two_models_are_asked_the_same_and_compared_query_by_query(
    deps: Deps, settings: Settings, tmp_path: Path
):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)

    result = measured(deps, settings, everything(deps), ["colour", "blind"])

    assert value(result, "text_to_image", "recall@1", model=0) == 1
    assert value(result, "text_to_image", "recall@1", model=1) == pytest.approx(1 / 3)
    [comparison] = result.comparisons
    [difference] = [one for one in comparison.measured if one.direction == "text_to_image"]
    assert (comparison.model, comparison.over) == ("blind", "colour")
    assert difference.figures["recall@1"].value == pytest.approx(-2 / 3)


def test_a_model_without_a_collection_is_shown_the_pictures_and_one_with_it_is_not(
    deps: Deps, settings: Settings, tmp_path: Path
):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)
    loaded = {"colour": ColourEncoder(), "blind": Blind()}

    result = evaluate(
        deps, settings, ["colour", "blind"], everything(deps), load=lambda _, name: loaded[name]
    )

    assert [(one.model, one.collection) for one in result.models] == [
        ("colour", qdrant.collection_name("colour1")),
        ("blind", None),
    ]
    assert [one.seen_images for one in loaded.values()] == [0, 3]


def test_a_collection_is_judged_by_its_name(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)

    result = measured(deps, settings, everything(deps), [qdrant.collection_name("colour1")])

    assert result.models[0].model == "colour"
    with pytest.raises(qdrant.ModelMismatch):
        evaluate(
            deps,
            settings,
            [qdrant.collection_name("colour1")],
            everything(deps),
            load=lambda *_: ColourEncoder("colour", "another"),
        )


def test_a_picture_that_one_model_cannot_be_shown_is_left_out_for_all(
    deps: Deps, settings: Settings, tmp_path: Path
):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)
    assert deps.blobs is not None
    with deps.sessions() as session:
        [item] = catalog.items_with_key(session, "c", None)
    assert item.image is not None
    deps.blobs.delete(item.image.sha256)

    result = measured(deps, settings, everything(deps), ["colour", "blind"])

    assert result.left_out == 1
    assert [direction(result, "text_to_image", model=model).gallery for model in (0, 1)] == [2, 2]
    assert [direction(result, "text_to_image", model=model).queries for model in (0, 1)] == [2, 2]


def test_what_is_held_out_is_what_no_model_or_its_parents_have_learned_from(
    deps: Deps, settings: Settings, tmp_path: Path
):
    pictures = {f"{n}.png": encoded(noise((40 + n, 40)), "PNG") for n in range(24)}
    captions = {f"{n}.txt": f"noise {n}" for n in range(24)}
    ingest_source(deps, settings, Request(a_folder(tmp_path / "set", pictures | captions)))
    first, second = Split(seed=0, held_out=0.5), Split(seed=1, held_out=0.5)
    for fingerprint, parent, split in (("parent", None, second), ("child", "parent", first)):
        with deps.sessions.begin() as session:
            model_registry.save_model(
                session,
                fingerprint=fingerprint,
                name=fingerprint,
                dim=3,
                parent=parent,
                training={"split": split.as_json()},
            )

    def keys_of(test_set: TestSet) -> set[object]:
        return {entry.id for entry in test_set.entries}

    asked = choose_test_set(deps, settings, EvaluationChoice(held_out=True), ["child"])
    alone = [of_held_out(deps, settings.limits, [split], None) for split in (first, second)]
    assert keys_of(asked) == keys_of(alone[0]) & keys_of(alone[1])
    assert 0 < len(asked.entries) < min(len(one.entries) for one in alone)
    few = of_held_out(deps, settings.limits, [first], None, at_most=3)
    assert keys_of(few) < keys_of(alone[0])
    assert len(few.entries) == 3


def test_a_manifest_from_outside_is_judged_and_not_taken_in(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path / "own", {"a": ("red", ["red"])})
    outside = a_set(tmp_path / "outside", RED_GREEN_BLUE, "outside.jsonl")

    result = measured(deps, settings, of_manifest(outside, settings.langs, None), ["colour", "blind"])

    assert direction(result, "text_to_image").gallery == 3
    assert [value(result, "text_to_image", "recall@1", model) for model in (0, 1)] == [
        1,
        pytest.approx(1 / 3),
    ]
    with deps.sessions() as session:
        assert catalog.counts(session)["items"] == 1


def test_judgments_have_several_right_answers_that_are_worth_more_or_less(
    deps: Deps, settings: Settings, tmp_path: Path
):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)
    query = tmp_path / "query.png"
    Image.new("RGB", (9, 9), (250, 5, 5)).save(query)
    judgments = a_manifest(
        tmp_path / "clicks.jsonl",
        [
            {"query": "green", "key": "b", "relevance": 1},
            {"query": "green", "key": "a", "relevance": 2},
            {"query": "green", "key": "c", "relevance": 0},
            {"query": "purple", "key": "nobody"},
            {"image": "query.png", "key": "a"},
        ],
    )

    result = measured(deps, settings, of_judgments(deps, judgments))

    words, pictures = direction(result, "text_to_image"), direction(result, "image_to_image")
    assert (words.queries, words.gallery, pictures.queries) == (1, 3, 1)
    assert words.figures["recall@1"].value == 0.5
    assert words.figures["ndcg@10"].value < 1  # the better one is not the first
    assert pictures.figures["recall@1"].value == 1
    assert result.unanswerable == 1


@pytest.mark.parametrize("row", [{"image": "gone.png", "key": "a"}, {"image": 7, "key": "a"}, {"key": "a"}])
def test_a_judgment_without_a_query_that_can_be_had_is_named(
    deps: Deps, tmp_path: Path, row: dict[str, object]
):
    with pytest.raises(BadJudgments, match=r"clicks\.jsonl, line 1"):
        of_judgments(deps, a_manifest(tmp_path / "clicks.jsonl", [row]))


def test_the_figures_are_kept_with_what_they_were_measured_on(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)

    measured(deps, settings, replace(everything(deps, keys=["a", "b"]), name="held-out.txt"), ["blind"])

    with deps.sessions() as session:
        kept = session.scalars(select(EvaluationRow)).all()
    assert len(kept) == 12
    [row] = [row for row in kept if (row.direction, row.metric) == ("text_to_image", "recall@1")]
    assert (row.dataset, row.model, row.collection, row.value, row.gallery, row.queries) == (
        "held-out.txt",
        "blind1",
        None,
        0.5,
        2,
        2,
    )
    assert (row.low, row.high) == (0, 1)


@pytest.mark.parametrize("asked", [{"keys": ["nobody"]}, {"langs": ["xx"]}])
def test_nothing_to_evaluate_is_an_error_not_a_zero(
    deps: Deps, settings: Settings, tmp_path: Path, asked: dict
):
    ingest(deps, settings, tmp_path, {"a": ("red", ["red"])})

    with pytest.raises(NothingToEvaluate, match="check --keys and --langs"):
        measured(deps, settings, everything(deps, **asked))


def test_a_plot_is_a_picture_with_a_panel_for_each_direction(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, RED_GREEN_BLUE)

    write_plot(measured(deps, settings, everything(deps), ["colour", "blind"]), tmp_path / "recall.png")

    with Image.open(tmp_path / "recall.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1.5 * picture.height


def test_ranks_do_not_depend_on_how_many_queries_are_asked_at_once(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((40, 8)).astype(np.float32)
    two_answers = Direction(
        "text_to_image",
        "texts",
        np.arange(20),
        "images",
        np.arange(40),
        np.arange(0, 40, 2),
        np.repeat(np.arange(20), 2),
        np.array([answer for query in range(20) for answer in (query, (query + 5) % 20)]),
        np.ones(40),
        np.arange(20),
    )
    whole = rank_answers(two_answers, {"texts": rows, "images": rows})

    monkeypatch.setattr("embedding.evaluation.ranks.QUERIES_AT_ONCE", 7)
    chunked = rank_answers(two_answers, {"texts": rows, "images": rows})

    assert (whole.ranks == chunked.ranks).all()
    assert whole.ranks.max() > 1
