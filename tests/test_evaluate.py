from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import select

from flows.deps import Deps
from flows.evaluate import NothingToEvaluate, evaluate
from flows.intake import Request, ingest_source
from flows.settings import Settings
from storage.schema import EvaluationRow
from tests.builders import a_folder, a_manifest, png


def ingest(
    deps: Deps, settings: Settings, folder: Path, items: dict[str, tuple[str, Sequence[object]]]
) -> None:
    """Take in items, each a colour to paint its picture with and its texts."""
    for key, (colour, _) in items.items():
        a_folder(folder, {f"{key}.png": png(colour)})
    rows = [{"key": key, "image": f"{key}.png", "texts": list(texts)} for key, (_, texts) in items.items()]
    ingest_source(deps, settings, Request(a_manifest(folder / "set.jsonl", rows)))


def test_captions_that_name_their_pictures_find_them_first(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(
        deps, settings, tmp_path, {"a": ("red", ["red"]), "b": ("green", ["green"]), "c": ("blue", ["blue"])}
    )

    result = evaluate(deps)

    assert result.text_to_image.figures["recall@1"] == result.image_to_text.figures["recall@1"] == 1
    assert result.text_to_image.figures["mrr"] == result.image_to_text.figures["ndcg@10"] == 1


def test_every_caption_is_a_query_and_an_item_ranks_by_its_best_caption(
    deps: Deps, settings: Settings, tmp_path: Path
):
    ingest(deps, settings, tmp_path, {"a": ("red", ["red", "green"]), "b": ("green", ["green"])})

    result = evaluate(deps)

    assert (result.text_to_image.queries, result.image_to_text.queries) == (3, 2)
    assert result.text_to_image.figures["recall@1"] == pytest.approx(2 / 3)
    # The green picture is as close to a's second caption as to its own: the smaller id wins the tie.
    assert result.image_to_text.figures["mrr"] in (1, 0.75)


def test_the_figures_come_with_the_sizes_of_their_galleries(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, {"a": ("red", ["red"]), "b": ("green", ["green"]), "c": ("blue", [])})

    document = evaluate(deps).as_json()

    assert (document["gallery"], document["queries"], document["left_out"]) == (3, 2, 1)
    assert (document["text_to_image"]["gallery"], document["image_to_text"]["gallery"]) == (3, 2)
    assert document["text_to_image"].keys() >= {"recall@1", "recall@5", "recall@10", "mrr", "ndcg@10"}


def test_a_list_of_keys_shrinks_queries_and_gallery(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, {"a": ("red", ["blue"]), "b": ("blue", ["blue"])})

    assert evaluate(deps).text_to_image.figures["recall@1"] == 0.5
    assert evaluate(deps, keys=["a"]).text_to_image.figures["recall@1"] == 1
    assert evaluate(deps, keys=["a"]).text_to_image.gallery == 1


def test_a_language_that_is_not_embedded_can_be_judged_as_well(
    deps: Deps, settings: Settings, tmp_path: Path
):
    german = {"text": "green", "lang": "de"}
    ingest(deps, settings, tmp_path, {"a": ("red", ["red", german]), "b": ("green", ["green"])})

    result = evaluate(deps, lang="de")

    assert (result.text_to_image.queries, result.text_to_image.gallery) == (1, 2)
    assert result.text_to_image.figures["recall@1"] == 0


def test_the_figures_are_kept_with_what_they_were_measured_on(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, tmp_path, {"a": ("red", ["red"])})

    evaluate(deps, keys=["a"], dataset="held-out.txt")

    with deps.sessions() as session:
        kept = session.scalars(select(EvaluationRow)).all()
    assert len(kept) == 10
    assert {(row.dataset, row.value, row.gallery, row.queries) for row in kept} >= {
        ("held-out.txt", 1.0, 1, 1)
    }


@pytest.mark.parametrize("asked", [{"keys": ["nobody"]}, {"lang": "xx"}])
def test_nothing_to_evaluate_is_an_error_not_a_zero(
    deps: Deps, settings: Settings, tmp_path: Path, asked: dict
):
    ingest(deps, settings, tmp_path, {"a": ("red", ["red"])})

    with pytest.raises(NothingToEvaluate, match="check --keys and --lang"):
        evaluate(deps, **asked)
