"""Retrieval metrics over ranks. Pure: no model, no store, no randomness."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]


def target_ranks(scores: NDArray[np.floating], targets: Sequence[int]) -> Ranks:
    """Return the rank, from 1, of each query's one right answer.

    Args:
        scores: shape (queries, gallery), higher is closer. Columns are in the order of the items' ids:
            of equal scores the column that comes first wins, so that a rank is never a matter of chance.
        targets: for each query the column of its right answer.

    Raises:
        ValueError: there is not one target for each query, or a score is NaN.

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


def recall_at(ranks: Ranks, k: int) -> float:
    """Return the share of queries whose one right answer is among the first `k`, in [0, 1].

    Raises:
        ValueError: there are no queries, or `k` is below 1.

    >>> recall_at(np.array([1, 7]), k=5)
    0.5
    """
    _refuse_empty(ranks)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return float((ranks <= k).mean())


def mean_reciprocal_rank(ranks: Ranks) -> float:
    """Return the mean of 1 / rank, in (0, 1] (Voorhees, 1999).

    >>> mean_reciprocal_rank(np.array([1, 4]))
    0.625
    """
    _refuse_empty(ranks)
    return float((1 / ranks).mean())


def ndcg_at(ranks: Ranks, k: int) -> float:
    """Return nDCG@k for queries with one right answer: 1 / log2(1 + rank), or 0 below the cut.

    Järvelin and Kekäläinen (2002); the ideal ranking has the one answer first, so its gain is 1.

    >>> ndcg_at(np.array([1, 3, 11]), k=10)
    0.5
    """
    _refuse_empty(ranks)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return float(np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0).mean())


def retrieval_figures(ranks: Ranks) -> dict[str, float]:
    """Return the figures that papers print: recall@1, @5, @10, MRR and nDCG@10."""
    recalls = {f"recall@{k}": recall_at(ranks, k) for k in (1, 5, 10)}
    return recalls | {"mrr": mean_reciprocal_rank(ranks), "ndcg@10": ndcg_at(ranks, 10)}


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


def _refuse_empty(ranks: Ranks) -> None:
    if len(ranks) == 0:
        raise ValueError("no queries: nothing to average; count them as left out")
