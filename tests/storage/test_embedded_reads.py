"""Reading, grouping and comparing points of the embedded index."""

from collections.abc import Callable, Iterator
from math import hypot
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
import qdrant_edge as edge
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.embedded.qdrant.engine.bindings import EnginePanic, engine_errors
from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol import long_results, reads, responses
from storage.embedded.qdrant.protocol.average_vector import average
from storage.embedded.qdrant.protocol.distance_matrix import matrix_offsets, matrix_pairs
from storage.embedded.qdrant.protocol.errors import NotFound, NotSupported, RequestError, TooLarge
from storage.embedded.qdrant.protocol.groups import query_groups
from storage.embedded.qdrant.protocol.named_vectors import UNNAMED, Spaces
from storage.embedded.qdrant.protocol.query import query_points
from storage.embedded.qdrant.protocol.reads import count, facet, retrieve, scroll
from storage.embedded.qdrant.protocol.vectors import point_id, to_engine
from tests.support.embedded_points import (
    DIM,
    FIRST,
    POINTS,
    SECOND,
    SOME,
    SPACES,
    SPARSE,
    WITHOUT_MULTI,
    Both,
    N,
    V,
    W,
    ids,
    opened,
)

RRF = models.FusionQuery(fusion=models.Fusion.RRF)
NOTHING = models.Filter(must=[models.HasIdCondition(has_id=[])])
NUMBERS_FIRST = sorted((point.id for point in POINTS), key=lambda id: (isinstance(id, str), id))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with opened(tmp_path_factory.mktemp("edge"), indexed=True) as both:
        yield both


PAYLOADS: list[models.WithPayloadInterface | None] = [
    None,
    True,
    False,
    ["n", "deep.er"],
    ["rows[].x"],
    models.PayloadSelectorInclude(include=["tag", '"a.b"']),
    models.PayloadSelectorExclude(exclude=["deep.er.value", "mixed"]),
]


@pytest.mark.parametrize("with_payload", PAYLOADS)
@pytest.mark.parametrize("with_vector", [None, False, ["cos"], ["multi", "sparse"]])
def test_points_are_retrieved_with_what_is_asked_of_them(both: Both, with_payload: Any, with_vector: Any):
    wanted = [SECOND, 10**9, FIRST, WITHOUT_MULTI, FIRST]
    request = models.PointRequest(ids=wanted, with_payload=with_payload, with_vector=with_vector)

    found = retrieve(request, both.target)

    payload = True if with_payload is None else with_payload
    asked = {"with_payload": payload, "with_vectors": with_vector or False}
    expected = both.local.retrieve("points", [SECOND, FIRST, WITHOUT_MULTI], **asked)
    assert [(point.id, point.payload) for point in found] == [(point.id, point.payload) for point in expected]
    assert [shape(point.vector) for point in found] == [shape(point.vector) for point in expected]


def shape(vectors: Any) -> Any:
    """Vectors with rounded numbers, independent of the order of names and indices."""
    if isinstance(vectors, dict):
        return {name: shape(vector) for name, vector in vectors.items()}
    if isinstance(vectors, models.SparseVector):
        return sorted(zip(vectors.indices, [round(value, 4) for value in vectors.values], strict=True))
    if isinstance(vectors, list):
        return [shape(part) for part in vectors]
    return round(vectors, 4) if isinstance(vectors, float) else vectors


def test_an_unnamed_vector_is_a_plain_list_all_the_way(tmp_path: Path):
    spaces = Spaces({UNNAMED: models.VectorParams(size=2, distance=models.Distance.DOT)}, {})
    shard = edge.EdgeShard.create(str(tmp_path), edge.EdgeConfig(edge.EdgeVectorParams(2, edge.Distance.Dot)))
    made = [edge.Point(1, to_engine([3.0, 4.0], spaces)), edge.Point(2, to_engine({}, spaces))]
    shard.update(edge.UpdateOperation.upsert_points(made))
    target = Target(shard, spaces)

    full, bare = retrieve(models.PointRequest(ids=[1, 2], with_vector=True), target)
    [hit] = query_points(models.QueryRequest(query=[1.0, 1.0], with_vector=True), target, both_none)

    assert full.vector == hit.vector == [3.0, 4.0]
    assert bare.vector == {}
    assert hit.score == 7.0
    assert hit.payload is None
    shard.close()


def both_none(name: str) -> Target:
    raise NotFound(name)


@pytest.mark.parametrize("filter", [None, SOME])
def test_pages_go_through_all_points_in_the_order_of_ids(both: Both, filter: models.Filter | None):
    seen: list[Any] = []
    offset = None
    while True:
        page = scroll(models.ScrollRequest(filter=filter, limit=17, offset=offset), both.target)
        seen += ids(page.points)
        offset = page.next_page_offset
        if offset is None:
            break

    having = {point.id for point in POINTS if filter is None or point.payload.get("ok")}
    assert seen == [id for id in NUMBERS_FIRST if id in having]


def test_a_page_in_the_order_of_a_field_starts_from_a_value_and_has_no_next(both: Both):
    order = models.OrderBy(key="unique", direction=models.Direction.DESC, start_from=30)

    page = scroll(models.ScrollRequest(order_by=order, limit=5, with_payload=["unique"]), both.target)

    assert page.next_page_offset is None
    values = [point.payload["unique"] for point in page.points]
    assert (
        values
        == sorted((p.payload["unique"] for p in POINTS if p.payload.get("unique", 99) <= 30), reverse=True)[
            :5
        ]
    )
    assert [point.order_value for point in page.points] == values


@pytest.mark.parametrize("exact", [None, True])
@pytest.mark.parametrize("filter", [None, SOME, models.Filter(must_not=SOME)])
def test_counts_are_exact(both: Both, filter: models.Filter | None, exact: bool | None):
    counted = count(models.CountRequest(filter=filter, exact=exact), both.target).count

    assert counted == both.local.count("points", filter).count


def test_the_count_of_all_follows_repeated_writes_and_deletes(tmp_path: Path):
    spaces = Spaces({UNNAMED: models.VectorParams(size=2, distance=models.Distance.DOT)}, {})
    optimizers = edge.EdgeOptimizersConfig(indexing_threshold=1)
    params = edge.EdgeVectorParams(2, edge.Distance.Dot)
    shard = edge.EdgeShard.create(str(tmp_path), edge.EdgeConfig(params, optimizers=optimizers))
    points = [edge.Point(i, [float(i), 1.0], {}) for i in range(500)]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.update(edge.UpdateOperation.upsert_points(points[:50]))
    shard.update(edge.UpdateOperation.delete_points(list(range(40, 80))))

    assert count(models.CountRequest(), Target(shard, spaces)).count == 460
    assert shard.count(edge.CountRequest(exact=True)) == 460
    shard.close()


@pytest.mark.parametrize("key", ["tag", "n", "ok"])
@pytest.mark.parametrize("filter", [None, SOME])
def test_a_facet_counts_the_points_of_each_value(both: Both, key: str, filter: models.Filter | None):
    request = models.FacetRequest(key=key, filter=filter, limit=100, exact=True)

    hits = facet(request, both.target).hits

    expected = both.local.facet("points", key, facet_filter=filter, limit=100, exact=True).hits
    assert {(hit.value, hit.count) for hit in hits} == {(hit.value, hit.count) for hit in expected}
    assert [hit.count for hit in hits] == sorted((hit.count for hit in hits), reverse=True)
    assert {type(hit.value) for hit in hits} == {type(hit.value) for hit in expected}


GROUPINGS: dict[str, dict[str, Any]] = {
    "by keyword": {"query": V, "using": "cos", "group_by": "tag"},
    "by number": {"query": V, "using": "l2", "group_by": "n", "limit": 4, "group_size": 5},
    "by values of both kinds": {"query": V, "using": "dot", "group_by": "key", "limit": 8, "group_size": 4},
    "by a nested value": {"query": V, "using": "cos", "group_by": "deep.er.value", "group_size": 50},
    "by values in an array": {"query": V, "using": "cos", "group_by": "rows[].x", "limit": 3},
    "by brackets": {"query": V, "using": "cos", "group_by": "tag[]"},
    "by a mixed field": {"query": V, "using": "cos", "group_by": "mixed"},
    "more groups than there are": {
        "query": V,
        "using": "cos",
        "group_by": "tag",
        "limit": 50,
        "group_size": 100,
    },
    "one of a group": {"query": V, "using": "cos", "group_by": "unique", "limit": 30, "group_size": 1},
    "by no field": {"query": V, "using": "cos", "group_by": "nowhere"},
    "of an example": {"query": FIRST, "using": "cos", "group_by": "n", "filter": SOME},
    "over a threshold": {"query": V, "using": "cos", "group_by": "n", "score_threshold": 0.5},
    "of a prefetch": {
        "prefetch": models.Prefetch(query=W, using="dot", limit=N),
        "query": V,
        "using": "cos",
        "group_by": "n",
    },
    "with vectors": {
        "query": V,
        "using": "cos",
        "group_by": "tag",
        "with_vector": ["sparse"],
        "with_payload": ["n"],
    },
}


@pytest.mark.parametrize("limit", [1, 3, 7, 40, N])
def test_values_of_equal_count_are_in_their_order(both: Both, limit: int):
    for key in ("unique", "tag", "n"):
        hits = facet(models.FacetRequest(key=key, limit=limit, exact=True), both.target).hits

        expected = both.local.facet("points", key, limit=limit, exact=True).hits
        assert [(hit.value, hit.count) for hit in hits] == [(hit.value, hit.count) for hit in expected]


@pytest.mark.parametrize("name", GROUPINGS)
def test_groups_are_the_best_and_hold_their_best(both: Both, name: str):
    asked = GROUPINGS[name]

    groups = query_groups(models.QueryGroupsRequest(**asked), both.target, both.find).groups

    renamed = {"filter": "query_filter", "with_vector": "with_vectors"}
    given = {"with_payload": False} | {renamed.get(key, key): value for key, value in asked.items()}
    expected = both.local.query_points_groups("points", **given).groups
    assert [described(group) for group in groups] == [described(group) for group in expected]
    assert all(type(ours.id) is type(theirs.id) for ours, theirs in zip(groups, expected, strict=True))


def described(group: models.PointGroup) -> Any:
    return group.id, [(hit.id, round(hit.score, 4), hit.payload, shape(hit.vector)) for hit in group.hits]


@given(
    key=st.sampled_from(["tag", "n", "key", "mixed", "rows[].x", "words"]),
    limit=st.integers(1, 12),
    size=st.integers(1, 9),
    query=st.lists(st.sampled_from([-1.7, -0.6, 0.1, 0.9, 1.3]), min_size=DIM, max_size=DIM),
)
@settings(max_examples=80, deadline=None)
def test_groups_follow_from_the_whole_ranking(
    both: Both, key: str, limit: int, size: int, query: list[float]
):
    asked: dict[str, Any] = {"query": query, "using": "l2"}
    request = models.QueryGroupsRequest(**asked, group_by=key, limit=limit, group_size=size)

    groups = query_groups(request, both.target, both.find).groups

    ranking = query_points(models.QueryRequest(**asked, limit=N, with_payload=True), both.target, both.find)
    expected: dict[Any, list[Any]] = {}
    for hit in ranking:
        for value in keys_by_definition(hit.payload, key):
            expected.setdefault(value, []).append(hit.score)
    best = [scores[:size] for scores in list(expected.values())[:limit]]
    assert [[hit.score for hit in group.hits] for group in groups] == best


def keys_by_definition(payload: dict[str, Any], key: str) -> list[Any]:
    rows = [row["x"] for row in payload.get("rows", [])] if key == "rows[].x" else payload.get(key, [])
    values = rows if isinstance(rows, list) else [rows]
    if any(type(value) not in (int, str) for value in values):
        return []
    return list(dict.fromkeys(values))


@pytest.mark.parametrize(
    "lookup", ["other", models.WithLookup(collection="other", with_payload=["n"], with_vectors=["cos"])]
)
def test_a_group_brings_the_point_that_its_value_names(both: Both, lookup: Any):
    request = models.QueryGroupsRequest(query=V, using="cos", group_by="n", limit=30, with_lookup=lookup)

    groups = query_groups(request, both.target, both.find).groups

    found = {group.id: group.lookup for group in groups}
    named = {id for id in found if id > 0 and id % 3}
    assert {id for id, record in found.items() if record is not None} == named
    assert all(found[id].id == id and "n" in {"n", *found[id].payload} for id in named)
    assert all((record.vector is None) == isinstance(lookup, str) for id in named if (record := found[id]))


def test_a_matrix_holds_the_closest_within_the_sample(both: Both):
    request = models.SearchMatrixRequest(using="l2", sample=N, limit=4, filter=SOME)

    offsets = matrix_offsets(request, both.target)

    vectors = {point.id: point.vector["l2"] for point in POINTS if point.payload.get("ok")}
    assert offsets.ids == [id for id in NUMBERS_FIRST if id in vectors]
    for row, id in enumerate(offsets.ids):
        others = sorted(distance(vectors[id], vectors[other]) for other in vectors if other != id)
        mine = [s for r, s in zip(offsets.offsets_row, offsets.scores, strict=True) if r == row]
        assert mine == pytest.approx(others[:4], abs=1e-4)


def distance(a: list[float], b: list[float]) -> float:
    return hypot(*(x - y for x, y in zip(a, b, strict=True)))


def test_pairs_of_a_matrix_are_different_points_that_have_the_vector(both: Both):
    pairs = matrix_pairs(models.SearchMatrixRequest(using="multi", sample=20, limit=3), both.target).pairs

    assert len(pairs) == 60
    assert len({pair.a for pair in pairs}) == 20
    having = {point.id for point in POINTS if "multi" in point.vector}
    assert all(pair.a != pair.b and {pair.a, pair.b} <= having for pair in pairs)


def test_a_matrix_of_one_point_is_empty(both: Both):
    alone = models.Filter(must=models.HasIdCondition(has_id=[FIRST]))

    assert matrix_offsets(models.SearchMatrixRequest(using="cos", filter=alone), both.target).ids == []


@pytest.mark.parametrize(
    "id",
    [
        "5C56C793-69F3-4FBF-87E6-C4BF54C28C26",
        "5c56c79369f34fbf87e6c4bf54c28c26",
        "urn:uuid:5c56c793-69f3-4fbf-87e6-c4bf54c28c26",
    ],
)
def test_all_forms_of_a_uuid_are_one_id(id: str):
    assert point_id(id) == point_id(UUID(id)) == "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"


@pytest.mark.parametrize("id", [-1, 2**64, "", "x", "12", "5c56c793"])
def test_what_is_no_id_is_refused(id: int | str):
    with pytest.raises(RequestError, match="is not a point id"):
        point_id(id)


BAD_VECTORS: dict[str, tuple[Any, str]] = {
    "unknown": ({"nope": V}, "'nope'"),
    "unnamed": (V, "Not existing vector name error: ''"),
    "short": ({"cos": V[:2]}, "6 dimensions, got 2"),
    "ragged": ({"multi": [[1.0, 2.0, 3.0], [1.0]]}, "3 dimensions, got 1"),
    "no rows": ({"multi": []}, "3 dimensions, got 0"),
    "an empty row": ({"multi": [[]]}, "3 dimensions, got 0"),
    "rows where one": ({"cos": [V]}, "one list of numbers"),
    "infinite": ({"cos": [float("inf"), *V[1:]]}, "the norm inf"),
    "nan in a row": ({"multi": [[1.0, 2.0, 3.0], [1.0, float("nan"), 2.0]]}, "the norm nan"),
    "too large": ({"cos": [-1.1e18, *V[1:]]}, "scores overflow"),
    "nan in sparse": ({"sparse": models.SparseVector(indices=[1], values=[float("nan")])}, "the norm nan"),
    "twice the index": ({"sparse": models.SparseVector(indices=[1, 1], values=[1, 2])}, "unique"),
    "uneven sparse": ({"sparse": models.SparseVector(indices=[1, 2], values=[1])}, "2 indices but 1 values"),
    "negative index": ({"sparse": models.SparseVector(indices=[-1], values=[1])}, "index outside"),
    "too large an index": ({"sparse": models.SparseVector(indices=[2**32], values=[1])}, "index outside"),
    "sparse where dense": ({"cos": SPARSE}, "not sparse"),
    "dense where sparse": ({"sparse": V}, "not dense"),
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_a_bad_vector_is_refused_before_the_engine_sees_it(name: str):
    vector, sentence = BAD_VECTORS[name]

    with pytest.raises(RequestError) as refusal:
        to_engine(vector, SPACES)

    assert sentence in str(refusal.value)


def test_a_vector_of_the_largest_norm_still_has_finite_scores(both: Both):
    largest = [1e18, *[0.0] * (DIM - 1)]

    hits = query_points(models.QueryRequest(query=largest, using="l2"), both.target, both.find)

    assert [hit.score for hit in hits] == pytest.approx([1e18] * 10)


@pytest.mark.parametrize(
    "vector", [models.Document(text="a", model="b"), {"cos": models.Image(image="a", model="b")}]
)
def test_what_is_to_be_embedded_is_not_supported(vector: Any):
    with pytest.raises(NotSupported, match="embed texts and images on the client"):
        to_engine(vector, SPACES)


def test_the_average_moves_away_from_what_is_disliked():
    assert average([[1.0, 2.0], [3.0, 4.0]], []) == [2.0, 3.0]
    assert average([[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [3.0, 1.0]]) == [2.0, 5.0]
    assert average([[[1.0, 2.0]], [[3.0, 4.0]]], [[[5.0, 6.0]]]) == [[1.0, 2.0], [3.0, 4.0], [-5.0, -6.0]]
    sparse = average(
        [edge.SparseVector([1, 2], [2.0, 4.0]), edge.SparseVector([2], [2.0])],
        [edge.SparseVector([3], [1.0])],
    )
    assert (sparse.indices, sparse.values) == ([1, 2, 3], [2.0, 6.0, -1.0])


READS: dict[str, tuple[Callable[[Both], Any], type[RequestError], str]] = {
    "both an order and an offset": (
        lambda both: scroll(models.ScrollRequest(order_by="n", offset=3), both.target),
        RequestError,
        "start_from",
    ),
    "order without an index": (
        lambda both: scroll(models.ScrollRequest(order_by="key"), both.target),
        RequestError,
        "No range index for `order_by` key",
    ),
    "facet without an index": (
        lambda both: facet(models.FacetRequest(key="key"), both.target),
        RequestError,
        "Please create one",
    ),
    "an empty page": (
        lambda both: scroll(models.ScrollRequest(limit=0), both.target),
        RequestError,
        "limit value 0",
    ),
    "an unknown vector": (
        lambda both: retrieve(models.PointRequest(ids=[1], with_vector=["no"]), both.target),
        RequestError,
        "'no'",
    ),
    "a shard key": (
        lambda both: count(models.CountRequest(shard_key="a"), both.target),
        NotSupported,
        "shard_key",
    ),
    "groups of none": (lambda both: grouped(both, group_size=0), RequestError, "limit value 0"),
    "groups by a bad path": (lambda both: grouped(both, group_by="n["), RequestError, "JSON path"),
    "groups with a lookup nowhere": (lambda both: grouped(both, with_lookup="nope"), NotFound, "nope"),
    "a matrix of one": (
        lambda both: matrix_pairs(models.SearchMatrixRequest(using="cos", sample=1), both.target),
        RequestError,
        "must be 2 or larger",
    ),
    "a matrix of nothing": (
        lambda both: matrix_pairs(models.SearchMatrixRequest(), both.target),
        RequestError,
        "Not existing vector name error: ''",
    ),
}


ALL = 10**6
UNBOUNDED: dict[str, Callable[[Both, int], int]] = {
    "a page": lambda both, most: len(scroll(models.ScrollRequest(limit=most), both.target).points),
    "an order": lambda both, most: len(
        scroll(models.ScrollRequest(limit=most, order_by="n"), both.target).points
    ),
    "a query": lambda both, most: queried(both, limit=most),
    "a query from an offset": lambda both, most: 2 + queried(both, limit=most, offset=2),
    "a prefetch": lambda both, most: queried(
        both, prefetch=[{"query": V, "using": "cos", "limit": most}], query=RRF, using=None, limit=most
    ),
    "groups": lambda both, most: len(
        {hit.id for group in grouped(both, limit=most, group_size=most).groups for hit in group.hits}
    ),
    "a matrix": lambda both, most: len(
        matrix_offsets(models.SearchMatrixRequest(using="cos", sample=most, limit=1), both.target).ids
    ),
    "a facet": lambda both, most: len(facet(models.FacetRequest(key="tag", limit=most), both.target).hits),
}


def queried(both: Both, **given: Any) -> int:
    request = models.QueryRequest(**({"query": V, "using": "cos"} | given))
    return len(query_points(request, both.target, both.find))


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_limit_over_all_there_is_means_all(both: Both, name: str):
    read = UNBOUNDED[name]

    assert read(both, ALL) == read(both, 2**64) == read(both, N) > 2


@pytest.mark.parametrize("name", UNBOUNDED)
def test_more_results_than_a_response_may_hold_are_refused(
    both: Both, name: str, monkeypatch: pytest.MonkeyPatch
):
    for module in (responses, reads):
        monkeypatch.setattr(module, "MAX_RESULTS", 2)

    with pytest.raises(TooLarge, match=r"page by page|request fewer"):
        UNBOUNDED[name](both, ALL)


def test_an_offset_over_all_there_is_leaves_none(both: Both):
    assert queried(both, offset=ALL) == queried(both, offset=2**64) == 0


def parts(result: Any) -> tuple[list[bytes], Any]:
    """The parts of a long result, and the value of their JSON."""
    given = list(result)
    return given, orjson.loads(b"".join(given))


@pytest.mark.parametrize("filter", [None, SOME, NOTHING])
def test_a_long_page_is_written_in_parts(
    both: Both, filter: models.Filter | None, monkeypatch: pytest.MonkeyPatch
):
    wanted = models.ScrollRequest(filter=filter, limit=30, with_vector=["cos"])
    whole = scroll(wanted, both.target)
    monkeypatch.setattr(long_results, "PAGE_NUMBERS", 7 * DIM)

    given, written = parts(long_results.scroll_any(wanted, lambda: both.target))

    assert written == orjson.loads(whole.model_dump_json())
    assert len(given) == 1 + max(1, -(-len(whole.points) // 7))


def test_many_points_by_id_are_written_in_parts(both: Both, monkeypatch: pytest.MonkeyPatch):
    absent = range(10**9, 10**9 + 9)
    wanted = models.PointRequest(
        ids=[*absent, SECOND, FIRST, *absent, WITHOUT_MULTI, FIRST], with_vector=["cos"]
    )
    whole = retrieve(wanted, both.target)
    monkeypatch.setattr(long_results, "PAGE_POINTS", 4)

    given, written = parts(long_results.retrieve_any(wanted, lambda: both.target))

    assert written == orjson.loads(to_json(whole))
    assert [point["id"] for point in written] == [SECOND, FIRST, WITHOUT_MULTI]
    assert len(given) == 4
    none = models.PointRequest(ids=list(absent))
    assert parts(long_results.retrieve_any(none, lambda: both.target))[1] == []


def test_a_long_page_goes_on_behind_points_that_are_deleted_meanwhile(
    both: Both, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(long_results, "PAGE_POINTS", N - 1)
    targets = iter([both.target, both.target, both.other])

    _, written = parts(long_results.scroll_any(models.ScrollRequest(limit=N), lambda: next(targets)))

    assert len(written["points"]) >= N - 1
    assert written["next_page_offset"] is None


def grouped(both: Both, **given: Any) -> models.GroupsResult:
    asked = {"query": V, "using": "cos", "group_by": "n"} | given
    return query_groups(models.QueryGroupsRequest(**asked), both.target, both.find)


@pytest.mark.parametrize("name", READS)
def test_a_read_that_cannot_be_answered_is_refused_with_a_sentence(both: Both, name: str):
    read, kind, sentence = READS[name]

    with pytest.raises(RequestError) as refusal:
        read(both)

    assert type(refusal.value) is kind
    assert sentence in str(refusal.value)


def test_vectors_that_would_hold_up_all_others_are_refused(both: Both, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(responses, "MAX_NUMBERS", 1000)

    def page(target: Target, limit: int, with_vector: bool | list[str]) -> int:
        asked = models.ScrollRequest(limit=limit, with_vector=with_vector)
        return len(scroll(asked, target).points)

    with pytest.raises(TooLarge, match="read 37 points at a time"):
        page(both.target, 100, with_vector=True)
    with pytest.raises(TooLarge, match="of 1,000 numbers a response"):
        query_points(models.QueryRequest(limit=100, with_vector=True), both.target, both.find)
    assert page(both.target, 37, with_vector=True) == 37
    assert page(both.target, 100, with_vector=["cos"]) == 100
    assert page(both.other, ALL, with_vector=True) == 20, "there are no more"


def test_a_panic_of_the_engine_is_not_taken_for_a_bad_request(tmp_path: Path):
    config = edge.EdgeConfig(
        {
            "m": edge.EdgeVectorParams(
                2,
                edge.Distance.Dot,
                multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            )
        }
    )
    shard = edge.EdgeShard.create(str(tmp_path), config)
    ragged = edge.UpdateOperation.upsert_points([edge.Point(1, {"m": [[]]}, {})])

    with pytest.raises(EnginePanic, match="panicked: chunk size must be non-zero"), engine_errors():
        shard.update(ragged)


SERVER_GROUPS = {
    "vector, one group": (1, 10, 5, [1.0, 0.5], {"b": [*range(99, 80, -2)]}),
    "vector, two groups": (
        2,
        10,
        5,
        [1.0, 0.5],
        {"b": [*range(99, 80, -2)], "a": [*range(98, 79, -2)]},
    ),
    "vector, small groups": (2, 3, 2, [1.0, 0.5], {"b": [99, 97, 95], "a": [98, 96, 94]}),
    "fusion, one group": (1, 10, 5, RRF, {"b": [99, 89, 97, 87, 95, 85, 93, 83, 91, 81]}),
    "fusion, many candidates": (1, 5, 10, RRF, {"b": [99, 93, 97, 91, 95]}),
}
"""Number of groups, their size, limit of the prefetch, query, and the answer by the requests of a server."""


@pytest.mark.parametrize("name", SERVER_GROUPS)
def test_groups_over_a_prefetch_are_those_of_a_server(served: QdrantClient, name: str):
    limit, size, candidates, query, expected = SERVER_GROUPS[name]
    served.create_collection("c", vectors_config=models.VectorParams(size=2, distance="Dot"))
    points = [
        models.PointStruct(id=i, vector=[1.0, float(i)], payload={"g": "ab"[i % 2]}) for i in range(100)
    ]
    served.upsert("c", points)
    prefetch = models.Prefetch(query=[0.0, 1.0], limit=candidates)

    groups = served.query_points_groups(
        "c", group_by="g", limit=limit, group_size=size, prefetch=prefetch, query=query
    ).groups

    assert {group.id: [hit.id for hit in group.hits] for group in groups} == expected


def test_long_results_are_whole_by_http(served: QdrantClient):
    served.create_collection("long", vectors_config=models.VectorParams(size=2, distance="Dot"))
    served.upsert("long", [models.PointStruct(id=i, vector=[1.0, float(i)]) for i in (1, 15_000, 100_000)])

    found = served.retrieve("long", range(100_001), with_vectors=True)
    page, offset = served.scroll("long", limit=10**6, with_vectors=True)

    assert found == page
    assert [point.vector for point in page] == [[1.0, 1.0], [1.0, 15_000.0], [1.0, 100_000.0]]
    assert offset is None
    with pytest.raises(UnexpectedResponse, match="Not existing vector name"):
        served.scroll("long", limit=10**6, with_vectors=["no"])
    with pytest.raises(UnexpectedResponse, match="not a point id"):
        served.retrieve("long", [*range(20_000), "no"])


def test_discovery_without_pairs_ranks_by_the_target(both: Both):
    target = models.DiscoverQuery(discover=models.DiscoverInput(target=V, context=[]))

    assert queried(both, query=target, limit=3) == 3
