import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from embedding.evaluation.metrics import (
    Answers,
    average_precision,
    best_of_groups,
    ndcg_at,
    recall_at,
    reciprocal_rank,
    retrieval_figures,
    retrieval_scores,
    single_answers,
    target_ranks,
)

NO_QUERIES = single_answers(np.empty(0, np.int64))
some_ranks = st.lists(st.integers(1, 50), min_size=1, max_size=20).map(np.array)
cuts = st.integers(1, 50)
# Few different scores, so that ties are common.
some_scores = arrays(np.float32, (4, 7), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]))
some_targets = st.lists(st.integers(0, 6), min_size=4, max_size=4)


def answers(*queries: dict[int, float]) -> Answers:
    """Draw queries with the ranks and gains of their answers."""
    owners = [number for number, own in enumerate(queries) for _ in own]
    pairs = [pair for own in queries for pair in own.items()]
    return Answers(np.array(owners), np.array([rank for rank, _ in pairs]), np.array([g for _, g in pairs]))


some_answers = st.lists(
    st.dictionaries(st.integers(1, 30), st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
).map(lambda queries: answers(*queries))


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
def test_scores_that_cannot_be_ranked_are_rejected(scores: list[list[float]], targets: list[int], says: str):
    with pytest.raises(ValueError, match=says):
        target_ranks(np.array(scores), targets)


@pytest.mark.parametrize(
    ("found", "k", "recall"),
    [
        pytest.param([{1: 1}], 1, [1.0], id="the first is right"),
        pytest.param([{5: 1}], 5, [1.0], id="the last above the cut is right"),
        pytest.param([{6: 1}], 5, [0.0], id="the first below the cut is right"),
        pytest.param([{1: 1, 9: 1}, {2: 1}], 2, [0.5, 1.0], id="half of the first query's are above the cut"),
    ],
)
def test_recall(found: list[dict[int, float]], k: int, recall: list[float]):
    assert recall_at(answers(*found), k).tolist() == recall


@given(some_answers, cuts)
def test_recall_never_falls_as_the_cut_moves_down(found: Answers, k: int):
    higher, lower = recall_at(found, k), recall_at(found, k + 1)

    assert ((higher >= 0) & (higher <= lower) & (lower <= 1)).all()


@given(some_answers)
def test_recall_is_whole_when_nothing_is_cut(found: Answers):
    assert (recall_at(found, int(found.ranks.max())) == 1).all()


def test_the_reciprocal_rank_is_that_of_the_first_right_answer():
    assert reciprocal_rank(answers({4: 1, 2: 1}, {1: 1})).tolist() == [1 / 2, 1]


def test_average_precision_is_the_mean_precision_at_the_right_answers():
    # at ranks 1, 3 and 6 there are 1 of 1, 2 of 3 and 3 of 6 right: the example of Manning et al. (2008)
    found = average_precision(answers({3: 1, 6: 1, 1: 1}, {2: 1}))

    assert found == pytest.approx([(1 + 2 / 3 + 3 / 6) / 3, 1 / 2])


@given(some_ranks)
def test_with_one_right_answer_average_precision_is_the_reciprocal_rank(ranks: NDArray[np.int64]):
    assert (average_precision(single_answers(ranks)) == reciprocal_rank(single_answers(ranks))).all()


@pytest.mark.parametrize(
    ("found", "k", "ndcg"),
    [
        pytest.param([{1: 1}], 10, [1.0], id="the first is right"),
        pytest.param([{2: 1}], 10, [0.6309297535714575], id="the second is right: 1 / log2(3)"),
        pytest.param([{10: 1}], 10, [0.2890648263178879], id="the last above the cut: 1 / log2(11)"),
        pytest.param([{11: 1}], 10, [0.0], id="the first below the cut"),
        pytest.param([{1: 1}, {3: 1}], 10, [1.0, 0.5], id="two queries"),
        # reached are 1 + 2/2, at best were 2 + 1/log2(3)
        pytest.param([{1: 1, 3: 2}], 10, [2 / (2 + 0.6309297535714575)], id="the better one comes third"),
        pytest.param([{2: 2, 1: 1}], 1, [0.5], id="the ideal is cut as well"),
    ],
)
def test_ndcg(found: list[dict[int, float]], k: int, ndcg: list[float]):
    assert ndcg_at(answers(*found), k) == pytest.approx(ndcg)


@given(some_answers, cuts)
def test_ndcg_lies_between_zero_and_one(found: Answers, k: int):
    scores = ndcg_at(found, k)

    assert ((scores >= 0) & (scores <= 1 + 1e-12)).all()


@given(some_answers)
def test_the_best_ranking_is_worth_one_by_every_figure_that_is_not_cut(found: Answers):
    best = Answers(found.queries, *best_ranking(found))

    assert ndcg_at(best, 30) == pytest.approx(1)
    assert average_precision(best) == pytest.approx(1)


def best_ranking(found: Answers) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ranks, gains = found.ranks.copy(), found.gains.copy()
    for query in np.unique(found.queries):
        own = found.queries == query
        ranks[own], gains[own] = np.arange(1, own.sum() + 1), np.sort(gains[own])[::-1]
    return ranks, gains


@given(some_answers)
def test_a_worse_rank_never_improves_a_figure(found: Answers):
    worse = Answers(found.queries, found.ranks + 1, found.gains)

    before, after = retrieval_figures(found), retrieval_figures(worse)

    assert all(after[name] <= before[name] for name in before)


@given(some_answers)
def test_each_query_is_judged_by_itself(found: Answers):
    together = retrieval_scores(found)

    for query in range(int(found.queries.max()) + 1):
        own = found.queries == query
        alone = Answers(np.zeros(own.sum(), np.int64), found.ranks[own], found.gains[own])
        for name, scores in retrieval_scores(alone).items():
            assert scores == pytest.approx(together[name][query : query + 1])


def test_the_figures_that_papers_print():
    figures = retrieval_figures(single_answers(np.array([1, 3, 7, 20])))

    assert figures == pytest.approx(
        {
            "recall@1": 1 / 4,
            "recall@5": 2 / 4,
            "recall@10": 3 / 4,
            "mrr": (1 + 1 / 3 + 1 / 7 + 1 / 20) / 4,
            "map": (1 + 1 / 3 + 1 / 7 + 1 / 20) / 4,
            "ndcg@10": (1 + 1 / 2 + 1 / 3) / 4,
        }
    )


@pytest.mark.parametrize("queries", [[0, 2], [1, 1], [1, 0]])
def test_a_query_without_an_answer_is_rejected_not_averaged_away(queries: list[int]):
    with pytest.raises(ValueError, match="leave out those without an answer"):
        Answers(np.array(queries), np.array([1, 2]), np.ones(2))


def test_an_item_is_as_close_as_its_best_caption():
    scores = np.array([[0.1, 0.9, 0.3, 0.2, 0.4], [0.5, 0.4, 0.7, 0.9, 0.8]])

    assert best_of_groups(scores, [0, 2, 3]).tolist() == [[0.9, 0.3, 0.4], [0.5, 0.7, 0.9]]


@given(some_scores)
def test_groups_of_one_leave_the_scores_as_they_are(scores: NDArray[np.float32]):
    assert (best_of_groups(scores, range(7)) == scores).all()


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(lambda found: recall_at(found, 1), id="recall"),
        pytest.param(lambda found: ndcg_at(found, 1), id="nDCG"),
        pytest.param(reciprocal_rank, id="MRR"),
        pytest.param(average_precision, id="mAP"),
        pytest.param(retrieval_figures, id="all figures"),
    ],
)
def test_no_queries_are_rejected_not_averaged(figure):
    with pytest.raises(ValueError, match="no queries: nothing to average"):
        figure(NO_QUERIES)


@pytest.mark.parametrize("figure", [recall_at, ndcg_at])
@pytest.mark.parametrize("k", [0, -1])
def test_a_cut_above_the_first_place_is_rejected(figure, k: int):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        figure(single_answers(np.array([1])), k)
