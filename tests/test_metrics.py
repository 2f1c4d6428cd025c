import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from embedding.metrics import (
    best_of_groups,
    mean_reciprocal_rank,
    ndcg_at,
    recall_at,
    retrieval_figures,
    target_ranks,
)

NO_RANKS = np.empty(0, np.int64)
some_ranks = st.lists(st.integers(1, 50), min_size=1, max_size=20).map(np.array)
cuts = st.integers(1, 50)
# Few different scores, so that ties are common.
some_scores = arrays(np.float32, (4, 7), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]))
some_targets = st.lists(st.integers(0, 6), min_size=4, max_size=4)


@pytest.mark.parametrize(
    ("scores", "target", "rank"),
    [
        pytest.param([0.9, 0.5, 0.1], 0, 1, id="the closest is right"),
        pytest.param([0.9, 0.5, 0.1], 2, 3, id="the farthest is right"),
        pytest.param([-0.9, -0.5, -0.1], 2, 1, id="scores below zero"),
        pytest.param([0.5], 0, 1, id="a gallery of one"),
    ],
)
def test_a_rank_counts_from_one_by_falling_score(scores: list[float], target: int, rank: int):
    assert target_ranks(np.array([scores]), [target]).tolist() == [rank]


def test_of_equal_scores_the_first_column_wins():
    all_equal = np.full((3, 3), 0.5)

    assert target_ranks(all_equal, [0, 1, 2]).tolist() == [1, 2, 3]


def test_each_query_has_its_own_target():
    scores = np.array([[0.9, 0.1], [0.9, 0.1]])

    assert target_ranks(scores, [0, 1]).tolist() == [1, 2]


@given(some_scores, some_targets)
def test_ranks_agree_with_sorting_by_score_and_then_by_column(
    scores: NDArray[np.float32], targets: list[int]
):
    ranks = target_ranks(scores, targets)

    for row, target, rank in zip(scores, targets, ranks, strict=True):
        ranking = sorted(range(len(row)), key=lambda column: (-row[column], column))
        assert ranking[rank - 1] == target


@pytest.mark.parametrize(
    ("scores", "targets", "says"),
    [
        ([[0.5, 0.1]], [0, 1], "2 targets for 1 queries"),
        ([[0.5, 0.1], [0.5, 0.1]], [0], "1 targets for 2 queries"),
        ([[0.5, np.nan]], [0], "a score is NaN"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(scores: list[list[float]], targets: list[int], says: str):
    with pytest.raises(ValueError, match=says):
        target_ranks(np.array(scores), targets)


@pytest.mark.parametrize(
    ("ranks", "k", "recall"),
    [
        pytest.param([1], 1, 1.0, id="the first is right"),
        pytest.param([5], 5, 1.0, id="the last above the cut is right"),
        pytest.param([6], 5, 0.0, id="the first below the cut is right"),
        pytest.param([1, 2, 9, 10], 2, 0.5, id="half are above the cut"),
    ],
)
def test_recall(ranks: list[int], k: int, recall: float):
    assert recall_at(np.array(ranks), k) == recall


@given(some_ranks, cuts)
def test_recall_never_falls_as_the_cut_moves_down(ranks: NDArray[np.int64], k: int):
    assert 0 <= recall_at(ranks, k) <= recall_at(ranks, k + 1) <= 1


@given(some_ranks)
def test_recall_is_whole_when_nothing_is_cut(ranks: NDArray[np.int64]):
    assert recall_at(ranks, int(ranks.max())) == 1


def test_the_mean_reciprocal_rank_is_the_mean_of_one_over_rank():
    assert mean_reciprocal_rank(np.array([1, 2, 4])) == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)


@pytest.mark.parametrize(
    ("ranks", "k", "ndcg"),
    [
        pytest.param([1], 1, 1.0, id="the first is right"),
        pytest.param([2], 10, 0.6309297535714575, id="the second is right: 1 / log2(3)"),
        pytest.param([10], 10, 0.2890648263178879, id="the last above the cut: 1 / log2(11)"),
        pytest.param([11], 10, 0.0, id="the first below the cut"),
        pytest.param([1, 3], 10, 0.75, id="the mean of two queries"),
    ],
)
def test_ndcg(ranks: list[int], k: int, ndcg: float):
    assert ndcg_at(np.array(ranks), k) == pytest.approx(ndcg)


@given(some_ranks, cuts)
def test_ndcg_lies_between_zero_and_recall(ranks: NDArray[np.int64], k: int):
    assert 0 <= ndcg_at(ranks, k) <= recall_at(ranks, k)


@given(some_ranks)
def test_a_worse_rank_never_improves_a_figure(ranks: NDArray[np.int64]):
    before, after = retrieval_figures(ranks), retrieval_figures(ranks + 1)

    assert all(after[name] <= before[name] for name in before)


def test_the_figures_that_papers_print():
    figures = retrieval_figures(np.array([1, 3, 7, 20]))

    assert figures == pytest.approx(
        {
            "recall@1": 1 / 4,
            "recall@5": 2 / 4,
            "recall@10": 3 / 4,
            "mrr": (1 + 1 / 3 + 1 / 7 + 1 / 20) / 4,
            "ndcg@10": (1 + 1 / 2 + 1 / 3) / 4,
        }
    )


def test_an_item_is_as_close_as_its_best_caption():
    scores = np.array([[0.1, 0.9, 0.3, 0.2, 0.4], [0.5, 0.4, 0.7, 0.9, 0.8]])

    assert best_of_groups(scores, [0, 2, 3]).tolist() == [[0.9, 0.3, 0.4], [0.5, 0.7, 0.9]]


@given(some_scores)
def test_groups_of_one_leave_the_scores_as_they_are(scores: NDArray[np.float32]):
    assert (best_of_groups(scores, range(7)) == scores).all()


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(lambda ranks: recall_at(ranks, 1), id="recall"),
        pytest.param(lambda ranks: ndcg_at(ranks, 1), id="nDCG"),
        pytest.param(mean_reciprocal_rank, id="MRR"),
        pytest.param(retrieval_figures, id="all figures"),
    ],
)
def test_no_queries_are_refused_not_averaged(figure):
    with pytest.raises(ValueError, match="no queries: nothing to average"):
        figure(NO_RANKS)


@pytest.mark.parametrize("figure", [recall_at, ndcg_at])
@pytest.mark.parametrize("k", [0, -1])
def test_a_cut_above_the_first_place_is_refused(figure, k: int):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        figure(np.array([1]), k)
