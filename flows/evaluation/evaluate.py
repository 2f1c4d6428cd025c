"""How well texts find images and images texts, by one model or by several on the same queries."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding.encoders.sentence_encoder import Encoder
from embedding.evaluation.bootstrap import Estimate, Sample, bootstrap_mean
from embedding.evaluation.metrics import Answers, Scores, recall_at, retrieval_scores
from embedding.evaluation.ranks import Direction, rank_answers
from flows.config.settings import Settings
from flows.datasets.test_sets import TestSet, directions_of
from flows.evaluation.embed_test_set import EmbeddedTestSet, embed_test_set
from flows.resources.connections import Stores
from flows.resources.model_loader import Load, open_model, open_model_of
from flows.tracking.progress import Progress, no_progress
from storage.postgres import model_registry

LONGEST_CURVE = 100


@dataclass(frozen=True, slots=True)
class DirectionMetrics:
    """The figures of one model in one direction, with the sizes without which they mean nothing."""

    direction: str
    part: str | None
    """Of the queries, such as `lang=de`; None for all of them."""

    queries: int
    gallery: int
    figures: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What one model came to."""

    model: str
    fingerprint: str
    dim: int
    collection: str | None
    """Where image vectors were taken from; None where all were made for the evaluation."""

    measured: tuple[DirectionMetrics, ...]
    curves: dict[str, tuple[float, ...]]
    """By direction, recall@k for k = 1, 2, …"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better a model is than the first, on the same queries: each figure's difference."""

    model: str
    over: str
    measured: tuple[DirectionMetrics, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was judged, and what came of it.

    Text to image counts each caption as a query. Image to text ranks items by their best caption, so that
    its recall is the hit rate over items, not the share of captions found.
    """

    dataset: str
    left_out: int
    """Pictures that could not be shown to every model."""

    unanswerable: int
    """Captions, images and judged queries without a right answer in the gallery; they were not asked."""

    models: tuple[ModelFigures, ...]
    comparisons: tuple[Comparison, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class DirectionScores:
    """How one model answered the queries of one direction."""

    direction: Direction
    answers: Answers
    scores: Mapping[str, Scores]


def evaluate(
    stores: Stores,
    settings: Settings,
    names: Sequence[str],
    test_set: TestSet,
    *,
    by: Sequence[str] = (),
    load: Load = open_model,
    progress: Progress = no_progress,
) -> Evaluation:
    """Rank the test set's galleries for all its queries, by each model, and keep the figures in Postgres.

    Queries are encoded anew, as a user's would be. Image vectors are those of the model's collection;
    where it has none, the image is shown to the model. All models are asked the same queries over the same
    galleries: an image that one of them could not be shown is left out for all.

    Args:
        names: models, or collections; the others are compared with the first. Without any, the active model.
        by: metadata fields by whose values figures are broken down, as they are by language.
        load: opens a model by its name.

    Raises:
        NothingToEvaluate: there is no query with a right answer.
        ModelUnavailable: there is no such model.
        ModelMismatch: the model of a collection is another one now.
    """
    encoders = (
        open_model_of(stores.vectors, stores.sessions, settings, name, load) for name in names or (None,)
    )
    seen, judged = score_models(stores, settings, encoders, test_set, by=by, progress=progress)
    models = tuple(map(_figures, seen, judged))
    first = seen[0].model
    result = Evaluation(
        test_set.name,
        int((~images_of_all(seen)).sum()),
        test_set.possible_queries - sum(len(one.direction.queries) for one in judged[0]),
        models,
        tuple(
            Comparison(one.model, first, tuple(score_differences(judged[0], own)))
            for one, own in zip(seen[1:], judged[1:], strict=True)
        ),
    )
    _record(stores, test_set, models)
    return result


def score_models(
    stores: Stores,
    settings: Settings,
    encoders: Iterable[Encoder],
    test_set: TestSet,
    *,
    by: Sequence[str] = (),
    progress: Progress = no_progress,
) -> tuple[list[EmbeddedTestSet], list[list[DirectionScores]]]:
    """Return what each model has seen, and how it answered, direction by direction; see `evaluate`."""
    seen = [embed_test_set(stores, settings, encoder, test_set, progress) for encoder in encoders]
    directions = directions_of(test_set, images_of_all(seen), by)
    judged = []
    for one in seen:
        answers = [rank_answers(direction, one.rows) for direction in directions]
        pairs = zip(directions, answers, strict=True)
        judged.append([DirectionScores(direction, found, retrieval_scores(found)) for direction, found in pairs])
    return seen, judged


def images_of_all(seen: Sequence[EmbeddedTestSet]) -> NDArray[np.bool_]:
    """Return which images every model has been shown."""
    return np.asarray(np.logical_and.reduce([one.present for one in seen]))


def score_differences(first: Sequence[DirectionScores], second: Sequence[DirectionScores]) -> Iterator[DirectionMetrics]:
    """Yield how much better the second model's answers are, by direction and part."""
    for ours, theirs in zip(second, first, strict=True):
        differences = {name: ours.scores[name] - theirs.scores[name] for name in ours.scores}
        yield from _measured(ours.direction, differences)


def _record(stores: Stores, test_set: TestSet, models: Sequence[ModelFigures]) -> None:
    with stores.sessions.begin() as session:
        for one in models:
            model_registry.save_model(session, fingerprint=one.fingerprint, name=one.model, dim=one.dim)
            session.flush()
            for measured in one.measured:
                model_registry.save_evaluation(
                    session,
                    model=one.fingerprint,
                    collection=one.collection,
                    dataset=test_set.name,
                    direction=measured.direction,
                    lang=test_set.langs,
                    part=measured.part,
                    figures={name: asdict(figure) for name, figure in measured.figures.items()},
                    queries=measured.queries,
                    gallery=measured.gallery,
                )


def _figures(one: EmbeddedTestSet, judged: Sequence[DirectionScores]) -> ModelFigures:
    measured = [part for own in judged for part in _measured(own.direction, own.scores)]
    curves = {own.direction.name: _curve(own) for own in judged}
    return ModelFigures(one.model, one.fingerprint, one.dim, one.collection, tuple(measured), curves)


def _measured(direction: Direction, scores: Mapping[str, Scores]) -> Iterator[DirectionMetrics]:
    everything: dict[str | None, NDArray[np.bool_]] = {None: np.ones(len(direction.queries), bool)}
    for part, own in (everything | dict(direction.parts)).items():
        figures = {
            name: bootstrap_mean([Sample(values[own], direction.records[own])])
            for name, values in scores.items()
        }
        yield DirectionMetrics(direction.name, part, int(own.sum()), len(direction.starts), figures)


def _curve(judged: DirectionScores) -> tuple[float, ...]:
    longest = min(LONGEST_CURVE, len(judged.direction.starts))
    return tuple(float(recall_at(judged.answers, k).mean()) for k in range(1, longest + 1))
