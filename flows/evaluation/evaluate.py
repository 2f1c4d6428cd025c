"""Evaluate text-image retrieval by one or several models on the same queries."""

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

MAX_CURVE_K = 100


@dataclass(frozen=True, slots=True)
class DirectionMetrics:
    """Hold the metrics of one model in one direction."""

    direction: str
    part: str | None
    """Subset of the queries, such as `lang=de`; None for all of them."""

    queries: int
    gallery: int
    figures: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Hold all metrics of one model."""

    model: str
    fingerprint: str
    dim: int
    collection: str | None
    """Source of the image vectors; None if all were encoded for the evaluation."""

    measured: tuple[DirectionMetrics, ...]
    curves: dict[str, tuple[float, ...]]
    """By direction, recall@k for k = 1, 2, …"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Hold the metric differences between a model and the first one."""

    model: str
    over: str
    measured: tuple[DirectionMetrics, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Hold the outcome of an evaluation.

    Text to image counts each caption as a query. Image to text ranks items by their best caption, so that
    its recall is the hit rate over items, not the share of captions found.
    """

    dataset: str
    left_out: int
    """Images that a model could not encode."""

    unanswerable: int
    """Queries without a relevant item in the gallery; they are not evaluated."""

    models: tuple[ModelFigures, ...]
    comparisons: tuple[Comparison, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class DirectionScores:
    """Hold the answers of one model in one direction, with their scores."""

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
    """Evaluate models on a test set, and record the metrics.

    Queries are encoded anew, as those of a user are. Image vectors are taken from the collection of the
    model; an image without one is encoded. All models get the same queries over the same galleries: an image
    that one of them cannot encode is left out for all.

    Args:
        names: models or collections; the others are compared with the first. Default: the active model.
        by: metadata fields; metrics are broken down by their values, and by language.
        load: opens a model by its name.

    Raises:
        NothingToEvaluate: no query has a relevant item.
        ModelUnavailable: there is no such model.
        ModelMismatch: a collection was made by another version of its model.
    """
    encoders = (
        open_model_of(stores.vectors, stores.sessions, settings, name, load) for name in names or (None,)
    )
    embedded, scored = score_models(stores, settings, encoders, test_set, by=by, progress=progress)
    models = tuple(map(_figures, embedded, scored))
    first = embedded[0].model
    result = Evaluation(
        test_set.name,
        int((~images_of_all(embedded)).sum()),
        test_set.possible_queries - sum(len(one.direction.queries) for one in scored[0]),
        models,
        tuple(
            Comparison(one.model, first, tuple(score_differences(scored[0], own)))
            for one, own in zip(embedded[1:], scored[1:], strict=True)
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
    """Embed the test set with each model, and score each direction."""
    embedded = [embed_test_set(stores, settings, encoder, test_set, progress) for encoder in encoders]
    directions = directions_of(test_set, images_of_all(embedded), by)
    scored = []
    for one in embedded:
        answers = [rank_answers(direction, one.rows) for direction in directions]
        pairs = zip(directions, answers, strict=True)
        scored.append(
            [DirectionScores(direction, found, retrieval_scores(found)) for direction, found in pairs]
        )
    return embedded, scored


def images_of_all(embedded: Sequence[EmbeddedTestSet]) -> NDArray[np.bool_]:
    """Return the mask of the images that all models encoded."""
    return np.asarray(np.logical_and.reduce([one.present for one in embedded]))


def score_differences(
    first: Sequence[DirectionScores], second: Sequence[DirectionScores]
) -> Iterator[DirectionMetrics]:
    """Yield the metric differences, second minus first, by direction and part."""
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


def _figures(one: EmbeddedTestSet, scored: Sequence[DirectionScores]) -> ModelFigures:
    measured = [part for own in scored for part in _measured(own.direction, own.scores)]
    curves = {own.direction.name: _curve(own) for own in scored}
    return ModelFigures(one.model, one.fingerprint, one.dim, one.collection, tuple(measured), curves)


def _measured(direction: Direction, scores: Mapping[str, Scores]) -> Iterator[DirectionMetrics]:
    everything: dict[str | None, NDArray[np.bool_]] = {None: np.ones(len(direction.queries), bool)}
    for part, own in (everything | dict(direction.parts)).items():
        figures = {
            name: bootstrap_mean([Sample(values[own], direction.records[own])])
            for name, values in scores.items()
        }
        yield DirectionMetrics(direction.name, part, int(own.sum()), len(direction.starts), figures)


def _curve(scored: DirectionScores) -> tuple[float, ...]:
    max_k = min(MAX_CURVE_K, len(scored.direction.starts))
    return tuple(float(recall_at(scored.answers, k).mean()) for k in range(1, max_k + 1))
