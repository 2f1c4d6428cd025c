"""Compute retrieval metrics per query from ranks, without model or store."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
Scores = NDArray[np.float64]
"""One number for each query."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Store the ranks of relevant answers, at least one per query."""

    queries: NDArray[np.int64]
    """Shape (answers,): the query of each answer, rising from 0 without a gap."""

    ranks: Ranks
    """Shape (answers,), from 1; distinct within a query."""

    gains: Scores
    """Shape (answers,), above 0: the gain of each answer, used by nDCG alone."""

    def __post_init__(self) -> None:
        if not len(self.ranks) == len(self.queries) == len(self.gains):
            raise ValueError(f"{len(self.ranks)} ranks and {len(self.gains)} gains of {len(self.queries)}")
        steps = np.diff(self.queries, prepend=-1)
        if not np.isin(steps, (0, 1)).all():
            raise ValueError("queries must rise from 0 without a gap: leave out those without an answer")

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of answers of each query, shape (queries,)."""
        if len(self.queries) == 0:
            raise ValueError("no queries: nothing to average; count them as left out")
        return np.bincount(self.queries)


def single_answers(ranks: Ranks) -> Answers:
    """Return the answers of queries with one answer each, at these ranks."""
    return Answers(np.arange(len(ranks)), ranks, np.ones(len(ranks)))


def target_ranks(scores: NDArray[np.floating], targets: Sequence[int]) -> Ranks:
    """Return the rank, from 1, of one relevant answer in each row.

    Args:
        scores: shape (rows, gallery), higher is closer. Columns are in the order of the items' ids:
            of equal scores the column that comes first wins, so that a rank is never a matter of chance.
        targets: for each row the column of its relevant answer.

    Raises:
        ValueError: there is not one target for each row, or a score is NaN.

    >>> target_ranks(np.array([[0.9, 0.1, 0.9]]), [2]).tolist()
    [2]
    """
    if len(targets) != len(scores):
        raise ValueError(f"{len(targets)} targets for {len(scores)} queries")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, so nothing can be ranked by it")
    columns = np.asarray(targets, np.int64)[:, None]
    own = np.take_along_axis(scores, columns, axis=1)
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < columns))
    return np.asarray(ahead.sum(axis=1) + 1, np.int64)


def recall_at(answers: Answers, k: int) -> Scores:
    """Return the share of answers in the first `k`, per query.

    Raises:
        ValueError: there are no queries, or `k` is below 1.

    >>> recall_at(single_answers(np.array([1, 7])), k=5).tolist()
    [1.0, 0.0]
    """
    return _mean_of_each(answers, answers.ranks <= _checked(k))


def reciprocal_rank(answers: Answers) -> Scores:
    """Return 1 / the rank of the first answer, per query.

    Their mean is MRR (Voorhees, 1999).

    >>> reciprocal_rank(single_answers(np.array([1, 4]))).tolist()
    [1.0, 0.25]
    """
    counts = answers.counts
    return np.asarray(1 / np.minimum.reduceat(answers.ranks, np.cumsum(counts) - counts))


def average_precision(answers: Answers) -> Scores:
    """Return the mean precision at the ranks of answers, per query.

    Their mean is mAP, in (0, 1] (Buckley and Voorhees, 2000). With one answer it is the reciprocal rank.
    """
    order = np.lexsort((answers.ranks, answers.queries))
    return _mean_of_each(answers, _places(answers) / answers.ranks[order])


def ndcg_at(answers: Answers, k: int) -> Scores:
    """Return nDCG@k of each query, in [0, 1].

    The sum of gain / log2(1 + rank), over that of the best ranking (Järvelin and Kekäläinen, 2002).

    >>> ndcg_at(single_answers(np.array([1, 3, 11])), k=10).tolist()
    [1.0, 0.5, 0.0]
    """
    best = answers.gains[np.lexsort((-answers.gains, answers.queries))]
    reached = _discounted(answers, answers.gains, answers.ranks, _checked(k))
    return reached / _discounted(answers, best, _places(answers), k)


def retrieval_scores(answers: Answers) -> dict[str, Scores]:
    """Return recall@1, @5 and @10, MRR, mAP and nDCG@10 of each query."""
    recalls = {f"recall@{k}": recall_at(answers, k) for k in (1, 5, 10)}
    return recalls | {
        "mrr": reciprocal_rank(answers),
        "map": average_precision(answers),
        "ndcg@10": ndcg_at(answers, 10),
    }


def retrieval_figures(answers: Answers) -> dict[str, float]:
    """Return the means of `retrieval_scores`, the figures of papers."""
    return {name: float(scores.mean()) for name, scores in retrieval_scores(answers).items()}


def best_of_groups(scores: NDArray[np.floating], starts: Sequence[int]) -> NDArray[np.floating]:
    """Return the highest score of each group of neighbouring columns.

    Args:
        scores: shape (queries, captions).
        starts: the first column of each group, rising from 0; no group is empty.

    Returns:
        Shape (queries, groups).
    """
    best: NDArray[np.floating] = np.maximum.reduceat(scores, np.asarray(starts, np.int64), axis=1)
    return best


def _places(answers: Answers) -> NDArray[np.int64]:
    """Return 1, 2, … for the answers of each query."""
    counts = answers.counts
    return np.arange(len(answers.queries)) - (np.cumsum(counts) - counts)[answers.queries] + 1


def _mean_of_each(answers: Answers, values: NDArray[np.generic]) -> Scores:
    """Return the mean of the values of each query."""
    counts = answers.counts
    return np.asarray(np.bincount(answers.queries, weights=values) / counts, np.float64)


def _discounted(answers: Answers, gains: Scores, ranks: Ranks, k: int) -> Scores:
    gained = np.where(ranks <= k, gains / np.log2(1 + ranks), 0.0)
    return np.bincount(answers.queries, weights=gained).astype(np.float64)


def _checked(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k
