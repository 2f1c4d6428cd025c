"""Every kind of query, compared with Qdrant's in-memory client."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol.errors import Invalid, NotFound, NotSupported, RequestError
from storage.embedded.qdrant.protocol.named_vectors import Spaces
from storage.embedded.qdrant.protocol.query import query_points
from storage.embedded.qdrant.protocol.vectors import to_engine
from tests.conftest import SERVED
from tests.support.embedded_points import (
    COLLECTIONS,
    DIM,
    DISTANCES,
    FIRST,
    INDEXES,
    MULTI,
    POINTS,
    SECOND,
    SOME,
    SPARSE,
    THIRD,
    WITHOUT_MULTI,
    Both,
    Id,
    N,
    V,
    W,
    fill,
    ids,
    opened,
    value_is,
)
from tests.support.servers import is_server


@pytest.fixture(scope="module", params=["indexed", "not indexed"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with opened(tmp_path_factory.mktemp("edge"), indexed=request.param == "indexed") as both:
        yield both


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with opened(tmp_path_factory.mktemp("edge"), indexed=True) as both:
        yield both


def assert_same_ranking(ours: Sequence[models.ScoredPoint], theirs: Sequence[models.ScoredPoint]) -> None:
    """Same scores in the same order; equal scores in any order.

    At the end, any of the equals may be there.
    """
    assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], rel=1e-5, abs=1e-5)
    if not ours:
        return
    last = ours[-1].score

    def settled(hits: Sequence[models.ScoredPoint]) -> dict[Id, float]:
        return {hit.id: hit.score for hit in hits if hit.score != pytest.approx(last, rel=1e-5, abs=1e-5)}

    assert settled(ours) == pytest.approx(settled(theirs), rel=1e-5, abs=1e-5)


A_PAIR = models.ContextPair(positive=FIRST, negative=SECOND)
PAIRS = [A_PAIR, models.ContextPair(positive=V, negative=W)]


def prefetched(*usings: str, limit: int = 30, **rest: Any) -> list[models.Prefetch]:
    given = {"multi": MULTI, "sparse": SPARSE}
    return [models.Prefetch(query=given.get(using, V), using=using, limit=limit, **rest) for using in usings]


def recommend(positive: list[Any], negative: list[Any], strategy: str | None = None) -> models.RecommendQuery:
    kind = None if strategy is None else models.RecommendStrategy(strategy)
    return models.RecommendQuery(
        recommend=models.RecommendInput(positive=positive, negative=negative, strategy=kind)
    )


def formula(expression: Any, **defaults: Any) -> dict[str, Any]:
    return {
        "prefetch": prefetched("cos", limit=50),
        "query": models.FormulaQuery(formula=expression, defaults=defaults),
    }


def decay(kind: type, name: str) -> Any:
    params = models.DecayParamsExpression(x="n", target=3.0, scale=4.0, midpoint=0.4)
    return kind(**{name: params})


NAIVE = models.NaiveFeedbackStrategy(naive=models.NaiveFeedbackStrategyParams(a=0.8, b=0.5, c=0.3))


def feedback(*scores: float) -> models.RelevanceFeedbackQuery:
    items = [
        models.FeedbackItem(example=id, score=score)
        for id, score in zip((FIRST, SECOND), scores, strict=False)
    ]
    given = models.RelevanceFeedbackInput(target=V, feedback=items, strategy=NAIVE)
    return models.RelevanceFeedbackQuery(relevance_feedback=given)


LOOKUP = models.LookupLocation(collection="other")
ORIGIN = models.GeoPoint(lon=1, lat=2)
ABS_F = models.SumExpression(sum=[1.0, models.AbsExpression(abs="f")])

QUERIES: dict[str, dict[str, Any]] = {
    **{f"nearest by {name}": {"query": V, "using": name} for name in DISTANCES},
    **{f"nearest to a point by {name}": {"query": FIRST, "using": name} for name in DISTANCES},
    "nearest to a point with a uuid": {"query": SECOND, "using": "cos"},
    "nearest by an explicit query": {"query": models.NearestQuery(nearest=V), "using": "dot"},
    "nearest to a multivector": {"query": MULTI, "using": "multi"},
    "nearest to a point's multivector": {"query": FIRST, "using": "multi"},
    "nearest to a sparse vector": {"query": SPARSE, "using": "sparse"},
    "nearest to a point's sparse vector": {"query": FIRST, "using": "sparse"},
    "nearest to a zero vector": {"query": [0.0] * DIM, "using": "dot"},
    "filtered": {"query": V, "using": "cos", "filter": SOME},
    "filtered, by id": {
        "query": FIRST,
        "using": "cos",
        "filter": models.Filter(should=[value_is("n", 1), SOME]),
    },
    "a page": {"query": V, "using": "cos", "offset": 7, "limit": 5},
    "past the end": {"query": V, "using": "cos", "offset": 1000},
    "more than there are": {"query": MULTI, "using": "multi", "limit": 1000},
    "threshold, cosine": {"query": V, "using": "cos", "score_threshold": 0.3, "limit": 100},
    "threshold, euclid": {"query": V, "using": "l2", "score_threshold": 2.5, "limit": 100},
    "threshold, manhattan": {"query": V, "using": "l1", "score_threshold": 5.0, "limit": 100},
    "lookup": {"query": FIRST, "using": "cos", "lookup_from": LOOKUP},
    "lookup of another vector": {
        "query": FIRST,
        "using": "cos",
        "lookup_from": models.LookupLocation(collection="other", vector="dot"),
    },
    "recommend": {"query": recommend([FIRST, V], [SECOND]), "using": "dot"},
    "recommend, only liked": {"query": recommend([FIRST, THIRD], []), "using": "cos"},
    "recommend, sparse": {"query": recommend([FIRST, SPARSE], [THIRD]), "using": "sparse"},
    "recommend, multivectors": {"query": recommend([FIRST, MULTI], [THIRD]), "using": "multi"},
    "recommend, lookup": {"query": recommend([FIRST], [THIRD]), "using": "dot", "lookup_from": LOOKUP},
    **{
        f"recommend, {strategy} by {using}": {
            "query": recommend([FIRST, V], [SECOND, W], strategy),
            "using": using,
        }
        for strategy in ("best_score", "sum_scores")
        for using in ("cos", "l2")
    },
    "recommend, only disliked": {"query": recommend([], [FIRST, V], "best_score"), "using": "dot"},
    "recommend, best_score of sparse": {
        "query": recommend([FIRST], [SPARSE], "best_score"),
        "using": "sparse",
    },
    "recommend, sum_scores of multi": {"query": recommend([FIRST], [MULTI], "sum_scores"), "using": "multi"},
    "discover": {
        "query": models.DiscoverQuery(discover=models.DiscoverInput(target=V, context=PAIRS)),
        "using": "cos",
    },
    "discover, one pair": {
        "query": models.DiscoverQuery(discover=models.DiscoverInput(target=THIRD, context=A_PAIR)),
        "using": "dot",
    },
    "context": {"query": models.ContextQuery(context=PAIRS), "using": "cos"},
    "context, one pair": {"query": models.ContextQuery(context=A_PAIR), "using": "l2"},
    "feedback": {
        "query": feedback(0.9, 0.2),
        "using": "dot",
    },
    "mmr": {
        "query": models.NearestQuery(nearest=V, mmr=models.Mmr(diversity=0.3, candidates_limit=40)),
        "using": "cos",
    },
    "mmr of sparse vectors": {
        "query": models.NearestQuery(nearest=SPARSE, mmr=models.Mmr(diversity=0.6, candidates_limit=60)),
        "using": "sparse",
    },
    "mmr of a stored sparse vector": {
        "query": models.NearestQuery(nearest=FIRST, mmr=models.Mmr(candidates_limit=50)),
        "using": "sparse",
        "filter": SOME,
    },
    "mmr by default": {"query": models.NearestQuery(nearest=FIRST, mmr=models.Mmr()), "using": "cos"},
    "rrf": {
        "prefetch": prefetched("cos", "sparse", "l2"),
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
    },
    "rrf with k and weights": {
        "prefetch": prefetched("cos", "multi"),
        "query": models.RrfQuery(rrf=models.Rrf(k=7, weights=[3.0, 1.0])),
    },
    "dbsf": {"prefetch": prefetched("dot", "sparse"), "query": models.FusionQuery(fusion=models.Fusion.DBSF)},
    "fusion, filtered": {
        "prefetch": prefetched("cos", "l2", filter=models.Filter(must_not=value_is("n", 3))),
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
        "filter": SOME,
    },
    "fusion of examples": {
        "prefetch": [
            *prefetched("cos"),
            models.Prefetch(query=recommend([FIRST], []), using="cos", limit=30),
        ],
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
        "filter": models.Filter(must_not=models.HasIdCondition(has_id=[FIRST])),
    },
    "fusion with a threshold before": {
        "prefetch": prefetched("cos", "dot", score_threshold=0.2),
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
    },
    "prefetch by default finds ten": {
        "prefetch": models.Prefetch(query=V, using="cos"),
        "query": W,
        "using": "dot",
        "limit": 50,
    },
    "rescored": {"prefetch": prefetched("sparse")[0], "query": V, "using": "cos", "score_threshold": -0.2},
    "prefetch in prefetch": {
        "prefetch": models.Prefetch(
            prefetch=prefetched("sparse", "multi"), query=FIRST, using="cos", limit=20
        ),
        "query": MULTI,
        "using": "multi",
    },
    "fusion in fusion": {
        "prefetch": [
            models.Prefetch(
                prefetch=prefetched("cos", "dot"),
                query=models.FusionQuery(fusion=models.Fusion.DBSF),
                limit=20,
            ),
            *prefetched("l1"),
        ],
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
    },
    "prefetch looks up elsewhere": {
        "prefetch": models.Prefetch(query=FIRST, using="dot", lookup_from=LOOKUP, limit=15),
        "query": V,
        "using": "cos",
    },
    "formula of a score": formula("$score"),
    "formula with a default": formula(models.SumExpression(sum=["$score", "n"]), n=2.0),
    "formula of a missing value": formula(models.SumExpression(sum=["$score", "nowhere"]), nowhere=1.5),
    "formula of a condition": formula(
        models.SumExpression(sum=["$score", models.MultExpression(mult=[0.5, value_is("ok", True)])])
    ),
    "formula of a filter": formula(
        models.SumExpression(sum=["$score", models.Filter(must=[value_is("ok", True), value_is("tag", "a")])])
    ),
    "formula of all arithmetic": formula(
        models.SumExpression(
            sum=[
                models.NegExpression(neg=models.SqrtExpression(sqrt=ABS_F)),
                models.PowExpression(pow=models.PowParams(base=ABS_F, exponent=2.0)),
                models.ExpExpression(exp="$score"),
                models.LnExpression(ln=ABS_F),
                models.Log10Expression(log10=ABS_F),
                models.DivExpression(div=models.DivParams(left="$score", right="n", by_zero_default=0.0)),
            ]
        ),
        f=0.0,
        n=1.0,
    ),
    "formula of extremes": formula(
        models.SumExpression(
            sum=[
                models.MaxExpression(max=["$score", 0.1]),
                models.MinExpression(min=["f", 0.2]),
                models.AcoshExpression(acosh=ABS_F),
            ]
        ),
        f=0.0,
    ),
    "formula of a distance": formula(
        models.MultExpression(
            mult=[
                0.000001,
                models.GeoDistance(geo_distance=models.GeoDistanceParams(origin=ORIGIN, to="place")),
            ]
        ),
        place={"lon": 0.0, "lat": 0.0},
    ),
    "formula of a time": formula(
        models.ExpDecayExpression(
            exp_decay=models.DecayParamsExpression(
                x=models.DatetimeKeyExpression(datetime_key="when"),
                target=models.DatetimeExpression(datetime="2024-06-01T00:00:00Z"),
                scale=86400.0 * 90,
            )
        ),
        when="2024-01-01T00:00:00Z",
    ),
    "formula of a linear decay": formula(decay(models.LinDecayExpression, "lin_decay"), n=0.0),
    "formula of an exponential decay": formula(decay(models.ExpDecayExpression, "exp_decay"), n=0.0),
    "formula of a gauss decay": formula(decay(models.GaussDecayExpression, "gauss_decay"), n=0.0),
    "formula of two prefetches": {
        "prefetch": prefetched("cos", "dot"),
        "query": models.FormulaQuery(
            formula=models.SumExpression(sum=["$score[0]", "$score[1]"]),
            defaults={"$score[0]": 0.0, "$score[1]": 0.0},
        ),
    },
    "approximate parameters": {
        "query": V,
        "using": "cos",
        "params": models.SearchParams(
            hnsw_ef=64,
            exact=True,
            quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0),
            acorn=models.AcornSearchParams(enable=True, max_selectivity=0.4),
        ),
    },
}


@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
@pytest.mark.parametrize("name", QUERIES)
def test_a_query_finds_the_same_points_with_the_same_scores(both: Both, name: str):
    request = models.QueryRequest(**({"limit": 12} | QUERIES[name]))

    found = query_points(request, both.target, both.find)

    [expected] = both.local.query_batch_points("points", [request])
    assert_same_ranking(found, expected.points)


UNKNOWN_TO_SERVERS = ("formula of extremes",)
"""A server 1.19 cannot parse it."""


@pytest.fixture(scope="module", params=SERVED)
def by_http(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    client = request.getfixturevalue(request.param)
    fill(client)
    for field, schema in INDEXES.items():
        client.create_payload_index("points", field, schema)
    yield client
    for name in COLLECTIONS:
        client.delete_collection(name)


@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
@pytest.mark.parametrize("name", QUERIES)
def test_a_query_by_http_finds_the_same_points_with_the_same_scores(
    by_http: QdrantClient, indexed: Both, name: str
):
    request = models.QueryRequest(**({"limit": 12} | QUERIES[name]))
    if name in UNKNOWN_TO_SERVERS and is_server(by_http):
        with pytest.raises(UnexpectedResponse, match="400"):
            by_http.query_batch_points("points", [request])
        return

    [found] = by_http.query_batch_points("points", [request])

    [expected] = indexed.local.query_batch_points("points", [request])
    assert_same_ranking(found.points, expected.points)


def test_a_plain_list_asks_a_multivector_space_with_one_row(both: Both):
    plain = query_points(models.QueryRequest(query=MULTI[0], using="multi"), both.target, both.find)
    as_rows = query_points(models.QueryRequest(query=[MULTI[0]], using="multi"), both.target, both.find)

    assert ids(plain) == ids(as_rows)


def test_examples_of_any_stage_are_left_out_of_the_whole_result(both: Both):
    request = models.QueryRequest(
        prefetch=[*prefetched("cos", limit=300), models.Prefetch(query=FIRST, using="cos", limit=300)],
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        limit=300,
    )

    found = ids(query_points(request, both.target, both.find))

    assert len(found) == N - 1
    assert FIRST not in found


def test_an_example_from_another_collection_is_not_left_out(both: Both):
    request = models.QueryRequest(query=FIRST, using="cos", lookup_from=LOOKUP, limit=300)

    assert FIRST in ids(query_points(request, both.target, both.find))


def test_a_random_sample_is_of_the_size_asked_and_obeys_the_filter(both: Both):
    query = models.SampleQuery(sample=models.Sample.RANDOM)
    request = models.QueryRequest(query=query, filter=SOME, limit=20, offset=200, with_payload=True)

    found = query_points(request, both.target, both.find)

    assert len(set(ids(found))) == 20
    assert all(hit.payload["ok"] for hit in found)


@pytest.mark.parametrize("key", ["n", "f", "when"])
@pytest.mark.parametrize("direction", list(models.Direction))
def test_an_order_by_a_field_is_that_of_the_field(indexed: Both, key: str, direction: models.Direction):
    order = models.OrderByQuery(order_by=models.OrderBy(key=key, direction=direction))

    found = query_points(
        models.QueryRequest(query=order, limit=300, with_payload=[key]), indexed.target, indexed.find
    )

    values = [hit.payload[key] for hit in found]
    assert values == sorted(values, reverse=direction is models.Direction.DESC)
    assert set(ids(found)) == {point.id for point in POINTS if key in point.payload}
    assert all(hit.order_value is not None for hit in found)


def test_without_a_query_points_come_in_the_order_of_their_ids(both: Both):
    request = models.QueryRequest(filter=SOME, limit=15, offset=4)

    found = ids(query_points(request, both.target, both.find))

    numbers = [point.id for point in POINTS if isinstance(point.id, int) and point.payload.get("ok")]
    assert found == numbers[4:19]


@pytest.mark.parametrize(
    "idf",
    [None, models.IdfScope.GLOBAL, models.IdfCorpusParams(corpus=models.Filter(must=value_is("ok", True)))],
)
def test_rare_indices_weigh_more_by_the_corpus_that_is_asked(tmp_path: Path, idf: models.IdfParams | None):
    spaces = Spaces({}, {"bag": models.SparseVectorParams(modifier=models.Modifier.IDF)})
    points = [
        models.PointStruct(id=i, vector={"bag": vector}, payload={"ok": i % 3 == 0})
        for i, point in enumerate(POINTS)
        if (vector := point.vector.get("sparse"))
    ]
    local = QdrantClient(":memory:")
    local.create_collection("points", vectors_config={}, sparse_vectors_config=dict(spaces.sparse))
    local.upsert("points", points)
    config = edge.EdgeConfig(sparse_vectors={"bag": edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)})
    shard = edge.EdgeShard.create(str(tmp_path), config)
    made = [edge.Point(point.id, to_engine(point.vector, spaces), point.payload) for point in points]
    shard.update(edge.UpdateOperation.upsert_points(made))
    request = models.QueryRequest(query=SPARSE, using="bag", params=models.SearchParams(idf=idf))

    found = query_points(request, Target(shard, spaces), no_other)

    [expected] = local.query_batch_points("points", [request])
    assert_same_ranking(found, expected.points)
    shard.close()
    local.close()


def no_other(name: str) -> Target:
    raise NotFound(name)


def test_a_text_query_ranks_by_the_words_of_an_index_that_scores(tmp_path: Path):
    spaces = Spaces({"v": models.VectorParams(size=1, distance=models.Distance.DOT)}, {})
    shard = edge.EdgeShard.create(
        str(tmp_path), edge.EdgeConfig({"v": edge.EdgeVectorParams(1, edge.Distance.Dot)})
    )
    shard.update(edge.UpdateOperation.create_field_index("words", edge.TextIndexParams(scoring=True)))
    texts = ["red house", "red red house", "green tree", "red"]
    made = [edge.Point(i, {}, {"words": text}) for i, text in enumerate(texts)]
    shard.update(edge.UpdateOperation.upsert_points(made))
    params = models.Bm25Scoring(bm25=models.Bm25Params(k=1.2, b=0.75))

    for text in ("red tree", models.TextQueryInput(query="red tree", scoring=params)):
        request = models.QueryRequest(query=models.TextQuery(text=text), using="words")
        found = query_points(request, Target(shard, spaces), no_other)
        assert found[0].id == 2
        assert set(ids(found)) == {0, 1, 2, 3}
    shard.close()


def deep_prefetch(levels: int) -> models.Prefetch:
    prefetch = models.Prefetch(query=V, using="cos")
    for _ in range(levels):
        prefetch = models.Prefetch(prefetch=prefetch, query=V, using="cos")
    return prefetch


def deep_sum(levels: int) -> Any:
    expression: Any = 1.0
    for _ in range(levels):
        expression = models.SumExpression(sum=[expression])
    return expression


DOCUMENT = models.Document(text="a red house", model="any")


@pytest.mark.parametrize("using", ["cos", "sparse"])
@pytest.mark.parametrize("selected", [False, True, ["l2"]])
def test_diversity_returns_the_vectors_of_the_request_alone(both: Both, using: str, selected: Any):
    diverse = models.NearestQuery(nearest=FIRST, mmr=models.Mmr())
    request = {"query": diverse, "using": using, "limit": 3, "with_vector": selected}

    found = query_points(models.QueryRequest(**request), both.target, both.find)

    names = set(POINTS[0].vector) if selected is True else set(selected or [])
    assert len(found) == 3
    assert all(
        set(hit.vector or {}) <= names and set(hit.vector or {}) >= names - {"multi", "sparse"}
        for hit in found
    )


@pytest.mark.parametrize("using", ["cos", "sparse"])
@pytest.mark.parametrize("fusion", list(models.Fusion))
def test_a_fusion_gets_as_many_points_as_a_diverse_prefetch_may_give(
    both: Both, fusion: models.Fusion, using: str
):
    given = W if using == "cos" else SPARSE
    diverse = models.NearestQuery(nearest=given, mmr=models.Mmr(diversity=0.7, candidates_limit=40))
    prefetch = models.Prefetch(query=diverse, using=using, limit=5)
    alone = models.QueryRequest(query=diverse, using=using, limit=5, filter=SOME)
    fused = models.QueryRequest(
        prefetch=[prefetch], query=models.FusionQuery(fusion=fusion), limit=100, filter=SOME
    )

    found = query_points(fused, both.target, both.find)

    assert set(ids(found)) == set(ids(query_points(alone, both.target, both.find)))
    assert len(found) == 5


RRF = models.FusionQuery(fusion=models.Fusion.RRF)
ORDER = models.OrderByQuery(order_by="n")
MIXED = recommend([FIRST], [SPARSE])

REFUSED: dict[str, tuple[dict[str, Any], type[RequestError], str]] = {
    "unknown vector": ({"query": V, "using": "nope"}, RequestError, "'nope'; the collection has"),
    "no unnamed vector": ({"query": V}, RequestError, "Not existing vector name error: ''"),
    "wrong dimension": ({"query": V[:3], "using": "cos"}, RequestError, "6 dimensions, got 3"),
    "empty vector": ({"query": [], "using": "cos"}, RequestError, "6 dimensions, got 0"),
    "nan": ({"query": [float("nan"), *V[1:]], "using": "cos"}, RequestError, "the norm nan"),
    "too large a number": ({"query": [1e39, *V[1:]], "using": "cos"}, RequestError, "overflow"),
    "sparse where dense": ({"query": SPARSE, "using": "cos"}, RequestError, "not sparse"),
    "dense where sparse": ({"query": V, "using": "sparse"}, RequestError, "not dense"),
    "rows where one": ({"query": [V], "using": "cos"}, RequestError, "one list of numbers"),
    "to embed": ({"query": DOCUMENT, "using": "cos"}, NotSupported, "embed texts and images on the client"),
    "no such point": ({"query": 10**6, "using": "cos"}, NotFound, "No point with id 1000000"),
    "point without vector": ({"query": WITHOUT_MULTI, "using": "multi"}, NotFound, "'multi' for point 7"),
    "no id": ({"query": "seven", "using": "cos"}, RequestError, "'seven' is not a point id"),
    "negative id": ({"query": -1, "using": "cos"}, RequestError, "unsigned 64-bit"),
    "no such collection": (
        {"query": FIRST, "using": "cos", "lookup_from": models.LookupLocation(collection="nope")},
        NotFound,
        "nope",
    ),
    "lookup of another size": (
        {
            "query": FIRST,
            "using": "cos",
            "lookup_from": models.LookupLocation(collection="other", vector="multi"),
        },
        RequestError,
        "one list of numbers",
    ),
    "lookup of an unknown vector": (
        {
            "query": FIRST,
            "using": "cos",
            "lookup_from": models.LookupLocation(collection="other", vector="no"),
        },
        RequestError,
        "'no'",
    ),
    "lookup in a shard": (
        {
            "query": FIRST,
            "using": "cos",
            "lookup_from": models.LookupLocation(collection="other", shard_key="a"),
        },
        NotSupported,
        "shard_key",
    ),
    "shard key": ({"query": V, "using": "cos", "shard_key": "a"}, NotSupported, "shard_key"),
    "no results": ({"query": V, "using": "cos", "limit": 0}, RequestError, "limit value 0"),
    "negative offset": ({"query": V, "using": "cos", "offset": -1}, RequestError, "offset value -1"),
    "prefetch for nothing": ({"prefetch": prefetched("cos")}, RequestError, "merge the prefetches"),
    "threshold of nothing": ({"score_threshold": 0.5}, RequestError, "A query is needed"),
    "threshold of an order": ({"query": ORDER, "score_threshold": 0.5}, RequestError, "order_by"),
    "threshold of nan": (
        {"query": V, "using": "cos", "score_threshold": float("nan")},
        RequestError,
        "finite",
    ),
    "fusion with a vector": (
        {"prefetch": prefetched("cos"), "query": RRF, "using": "cos"},
        RequestError,
        "'using'",
    ),
    "fusion of nothing": ({"query": RRF}, RequestError, "without prefetches"),
    "weights too few": (
        {"prefetch": prefetched("cos", "l2"), "query": models.RrfQuery(rrf=models.Rrf(weights=[1.0]))},
        RequestError,
        "weights length",
    ),
    "rrf k": (
        {"prefetch": prefetched("cos"), "query": models.RrfQuery(rrf=models.Rrf(k=0))},
        RequestError,
        "rrf k",
    ),
    "nothing liked": (
        {"query": recommend([], [FIRST]), "using": "cos"},
        RequestError,
        "At least one positive",
    ),
    "no examples": ({"query": recommend([], [], "best_score"), "using": "cos"}, RequestError, "At least one"),
    "mixed examples": ({"query": MIXED, "using": "cos"}, RequestError, "not sparse"),
    "rows and lists": (
        {"query": recommend([MULTI], [MULTI[0]]), "using": "multi"},
        RequestError,
        "different types",
    ),
    "mmr diversity": (
        {"query": models.NearestQuery(nearest=V, mmr=models.Mmr(diversity=2.0)), "using": "cos"},
        RequestError,
        "diversity",
    ),
    "mmr candidates": (
        {
            "query": models.NearestQuery(nearest=SPARSE, mmr=models.Mmr(candidates_limit=20_000)),
            "using": "sparse",
        },
        RequestError,
        "candidates_limit",
    ),
    "feedback of nothing": ({"query": feedback(), "using": "dot"}, Invalid, "at least one item"),
    "feedback of nan": ({"query": feedback(float("nan")), "using": "dot"}, RequestError, "finite"),
    "weights of infinity": (
        {"prefetch": prefetched("cos"), "query": models.RrfQuery(rrf=models.Rrf(weights=[float("inf")]))},
        RequestError,
        "finite",
    ),
    "formula of too much": (formula(1e300), RequestError, ""),
    "text without index": ({"query": models.TextQuery(text="red"), "using": "deep"}, RequestError, "deep"),
    "text of no field": ({"query": models.TextQuery(text="red")}, RequestError, "payload field"),
    "order without index": ({"query": models.OrderByQuery(order_by="deep")}, RequestError, "No range index"),
    "formula of a missing value": (
        formula(models.SumExpression(sum=["$score", "nowhere"])),
        RequestError,
        "is missing there",
    ),
    "formula of nan": (formula(float("nan")), RequestError, "finite"),
    "deep formula": (formula(deep_sum(100)), RequestError, "nested deeper"),
    "deep prefetch": (
        {"prefetch": deep_prefetch(100), "query": V, "using": "cos"},
        RequestError,
        "nested deeper",
    ),
    "hnsw_ef": (
        {"query": V, "using": "cos", "params": models.SearchParams(hnsw_ef=0)},
        Invalid,
        "hnsw_ef",
    ),
    "unknown vector to return": ({"query": V, "using": "cos", "with_vector": ["no"]}, RequestError, "'no'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_sentence(both: Both, name: str):
    request, kind, sentence = REFUSED[name]

    with pytest.raises(RequestError) as refusal:
        query_points(models.QueryRequest(**request), both.target, both.find)

    assert type(refusal.value) is kind
    assert sentence in str(refusal.value)
