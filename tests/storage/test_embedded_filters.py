"""Every kind of filter, compared with Qdrant's in-memory client."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.filters import OUTER_LEVEL, to_filter
from storage.embedded.qdrant.protocol.json_depth import MAX_LEVELS
from storage.embedded.qdrant.protocol.named_vectors import Fields
from storage.embedded.qdrant.protocol.reads import count, scroll
from tests.support.embedded_points import POINTS, SECOND, SOME, Both, Id, field_is, ids, opened, value_is


@pytest.fixture(scope="module", params=["indexed", "not indexed"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with opened(tmp_path_factory.mktemp("edge"), indexed=request.param == "indexed") as both:
        yield both


def match(key: str, **kind: Any) -> models.FieldCondition:
    (name,) = kind
    kinds = {
        "any": models.MatchAny,
        "except": models.MatchExcept,
        "text": models.MatchText,
        "text_any": models.MatchTextAny,
        "phrase": models.MatchPhrase,
        "prefix": models.MatchPrefix,
    }
    return field_is(key, match=kinds[name](**kind))


def between(key: str, **bounds: Any) -> models.FieldCondition:
    return field_is(key, range=models.Range(**bounds))


def nested(key: str, **filter: Any) -> models.NestedCondition:
    return models.NestedCondition(nested=models.Nested(key=key, filter=models.Filter(**filter)))


def line(*corners: tuple[float, float]) -> models.GeoLineString:
    return models.GeoLineString(points=[models.GeoPoint(lon=lon, lat=lat) for lon, lat in corners])


def corner(lon: float, lat: float) -> models.GeoPoint:
    return models.GeoPoint(lon=lon, lat=lat)


def is_empty(key: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=key))


def is_null(key: str) -> models.IsNullCondition:
    return models.IsNullCondition(is_null=models.PayloadField(key=key))


SQUARE = line((-15, -15), (15, -15), (15, 15), (-15, 15), (-15, -15))
HOLE = line((-5, -5), (5, -5), (5, 5), (-5, 5), (-5, -5))
BOX = models.GeoBoundingBox(top_left=corner(-10, 10), bottom_right=corner(10, -10))
PLAIN_KEYS = ("tag", "rows", "rows[].x", "deep.er", "deep.er.value", '"a.b"."c d"', "mixed[0]", "nowhere")
KEYS = (*PLAIN_KEYS, "mixed")

CONDITIONS: dict[str, models.Condition] = {
    **{
        f"{key} is {value!r}": value_is(key, value)
        for key in ("mixed", "n")
        for value in (1, True, False, "1", "x")
    },
    "a keyword": value_is("tag", "a"),
    "a bool": value_is("ok", True),
    "another bool": value_is("ok", False),
    "a nested value": value_is("deep.er.value", 3),
    "a value in objects of an array": value_is("rows[].x", 2),
    "a quoted key": value_is('"a.b"."c d"', 1),
    "the first of an array": value_is("mixed[0]", 1),
    "any text": match("tag", any=["a", "c"]),
    "any number": match("n", any=[1, 2, 3]),
    "any of none": match("n", any=[]),
    "except texts": match("tag", **{"except": ["a", "c"]}),
    "except numbers": match("mixed", **{"except": [1]}),
    "except none": match("mixed", **{"except": []}),
    "prefix": match("tag", prefix="a"),
    "range": between("n", gte=3, lt=7),
    "range, open": between("f", gt=0.5, lte=1.0),
    "range of a mixed field": between("mixed", gte=1),
    "datetimes": field_is("when", range=models.DatetimeRange(gte="2024-03-01T12:00:00", lt=date(2024, 9, 1))),
    "a zoned datetime": field_is("when", range=models.DatetimeRange(lte="2024-06-01T00:00:00+05:00")),
    "box": field_is("place", geo_bounding_box=BOX),
    "radius": field_is("place", geo_radius=models.GeoRadius(center=corner(0, 0), radius=1_000_000)),
    "polygon": field_is("place", geo_polygon=models.GeoPolygon(exterior=SQUARE)),
    "polygon with a hole": field_is(
        "place", geo_polygon=models.GeoPolygon(exterior=SQUARE, interiors=[HOLE])
    ),
    "count of values": field_is("tag", values_count=models.ValuesCount(gte=2)),
    "count of none": field_is("mixed", values_count=models.ValuesCount(lt=1)),
    **{f"{key} is empty": is_empty(key) for key in KEYS},
    **{f"{key} is null": is_null(key) for key in PLAIN_KEYS},
    **{f"{key} is empty: {yes}": field_is(key, is_empty=yes) for key in KEYS for yes in (True, False)},
    **{f"{key} is null: {yes}": field_is(key, is_null=yes) for key in PLAIN_KEYS for yes in (True, False)},
    "ids": models.HasIdCondition(has_id=[1, 2, SECOND, 10**9]),
    "no ids": models.HasIdCondition(has_id=[]),
    "a vector": models.HasVectorCondition(has_vector="multi"),
    "a sparse vector": models.HasVectorCondition(has_vector="sparse"),
    "nested": nested("rows", must=[value_is("x", 1), value_is("y", 1)]),
    "nested, none": nested("rows", must_not=[value_is("x", 1)]),
    "nested by brackets": nested("rows[]", must=[between("x", gte=2), value_is("y", 0)]),
    "a filter": SOME,
    "an empty filter": models.Filter(),
    "a slice": models.SliceCondition(slice=models.Slice(total=3, index=1)),
}


OF_A_TEXT_INDEX: dict[str, models.Condition] = {
    "text": match("words", text="red house"),
    "any word": match("words", text_any="red house"),
    "phrase": match("words", phrase="red"),
}


def found(both: Both, filter: models.Filter) -> set[Id]:
    return set(ids(scroll(models.ScrollRequest(filter=filter, limit=1000), both.target).points))


def expected(both: Both, filter: models.Filter) -> set[Id]:
    return set(ids(both.local.scroll("points", scroll_filter=filter, limit=1000)[0]))


@pytest.mark.parametrize("clause", ["must", "must_not"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_matches_the_same_points(both: Both, name: str, clause: str):
    filter = models.Filter(**{clause: CONDITIONS[name]})

    assert found(both, filter) == expected(both, filter)


@pytest.mark.parametrize("both", ["indexed"], indirect=True)
@pytest.mark.parametrize("name", OF_A_TEXT_INDEX)
def test_with_a_text_index_words_match(both: Both, name: str):
    filter = models.Filter(must=OF_A_TEXT_INDEX[name])

    assert found(both, filter) == expected(both, filter)


@pytest.mark.parametrize("clause", ["must", "should", "must_not"])
def test_an_empty_clause_asks_nothing(both: Both, clause: str):
    assert found(both, models.Filter(**{clause: []})) == {point.id for point in POINTS}


conditions = st.sampled_from([name for name in CONDITIONS if "is empty: " not in name]).map(
    lambda name: CONDITIONS[name]
)
clauses = st.none() | st.lists(conditions, max_size=3) | conditions
filters = st.recursive(
    st.builds(models.Filter, must=clauses, should=clauses, must_not=clauses),
    lambda inner: st.builds(
        models.Filter,
        must=st.none() | st.lists(inner | conditions, max_size=2),
        should=st.none() | st.lists(inner, min_size=1, max_size=2),
        must_not=st.none() | inner,
        min_should=st.none()
        | st.builds(
            models.MinShould,
            conditions=st.lists(inner | conditions, min_size=1, max_size=4),
            min_count=st.integers(1, 3),
        ),
    ),
    max_leaves=6,
)


@given(filter=filters)
@settings(max_examples=150, deadline=None)
def test_any_nesting_of_filters_matches_the_same_points(both: Both, filter: models.Filter):
    matching = found(both, filter)

    assert matching == expected(both, filter)
    assert count(models.CountRequest(filter=filter), both.target).count == len(matching)


def deep(levels: int) -> models.Filter:
    filter = models.Filter()
    for _ in range(levels - 1):
        filter = models.Filter(must=[filter])
    return filter


DEEPEST = 1 + (MAX_LEVELS - OUTER_LEVEL) // 2
"""A filter in another is two levels below it: an object in an array."""


def test_the_deepest_filter_that_is_taken_is_answered(both: Both):
    assert len(found(both, deep(DEEPEST))) == len(POINTS)


REFUSED: dict[str, tuple[models.Condition, str]] = {
    "empty": (field_is("n"), "is empty"),
    "path": (value_is("n[", 1), "JSON path"),
    "id": (models.HasIdCondition(has_id=["x"]), "'x' is not a point id"),
    "number": (value_is("n", 2**63), "64-bit"),
    "number among many": (match("n", any=[1, -(2**63) - 1]), "64-bit"),
    "number to leave out": (match("n", **{"except": [2**64]}), "64-bit"),
    "nan": (between("n", gte=float("nan")), "finite"),
    "infinity": (between("n", lt=float("inf")), "finite"),
    "longitude": (field_is("place", geo_radius=models.GeoRadius(center=corner(200, 0), radius=1)), "200"),
    "radius": (
        field_is("place", geo_radius=models.GeoRadius(center=corner(0, 0), radius=float("nan"))),
        "radius",
    ),
    "open line": (
        field_is("place", geo_polygon=models.GeoPolygon(exterior=line((0, 0), (1, 1), (0, 1)))),
        "polygon",
    ),
    "negative count": (field_is("tag", values_count=models.ValuesCount(gte=-1)), "from 0 up"),
    "minimum of none": (
        models.Filter(min_should=models.MinShould(conditions=[SOME], min_count=0)),
        "min_count must be a number from 1 up",
    ),
    "substring": (
        field_is("t", match=models.MatchSubstring(substring="ed")),
        "has no MatchSubstring, as Qdrant 1.19 has none",
    ),
    "slice": (models.SliceCondition(slice=models.Slice(total=2, index=2)), "slice 2 of 2"),
    "deep": (deep(DEEPEST), "has 128 levels of JSON, the limit is 127"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_condition_that_means_nothing_is_refused_with_a_sentence(name: str):
    condition, sentence = REFUSED[name]

    with pytest.raises(RequestError) as refusal:
        to_filter(models.Filter(must=[condition]), Fields({}))

    assert sentence in str(refusal.value)


TEXTS = ["Red apple", "red apples on a table", "Pineapple", "apple red"]
BY_CHARACTERS: dict[str, tuple[models.Match, list[int]]] = {
    "a word": (models.MatchText(text="apple"), [0, 1, 2, 3]),
    "two words, in their order": (models.MatchText(text="red apple"), [1]),
    "case counts": (models.MatchText(text="Red"), [0]),
    "a part of a word": (models.MatchText(text="app"), [0, 1, 2, 3]),
    "a phrase across words": (models.MatchPhrase(phrase="ed app"), [0, 1]),
    "any of the words": (models.MatchTextAny(text_any="pine Pine"), [2]),
    "any of no words": (models.MatchTextAny(text_any=" "), []),
}
"""Answers of a Qdrant server 1.19.0 on a field without a text index."""


@pytest.mark.parametrize("place", ["t", "in.t", "list[].t"])
@pytest.mark.parametrize("name", BY_CHARACTERS)
def test_without_a_text_index_characters_match_as_on_a_server(served: QdrantClient, name: str, place: str):
    match, expected = BY_CHARACTERS[name]
    make(served, [{"t": text, "in": {"t": text}, "list": [{"t": "-"}, {"t": text}]} for text in TEXTS])
    condition = models.FieldCondition(key=place, match=match)

    assert answered(served, condition) == expected

    served.delete("c", models.Filter(must=[condition]))
    assert sorted(point.id for point in served.scroll("c")[0]) == sorted({0, 1, 2, 3} - set(expected))


def test_a_text_index_changes_what_a_text_filter_means_at_once(served: QdrantClient):
    make(served, [{"t": text} for text in TEXTS])
    condition = models.FieldCondition(key="t", match=models.MatchText(text="RED"))

    assert answered(served, condition) == []
    served.create_payload_index("c", "t", models.TextIndexParams(type="text"))
    assert answered(served, condition) == [0, 1, 3]
    served.delete_payload_index("c", "t")
    assert answered(served, condition) == []


def test_a_text_filter_in_a_nested_one_knows_its_index(served: QdrantClient):
    make(served, [{"list": [{"t": text}]} for text in TEXTS])
    condition = nested("list", must=[models.FieldCondition(key="t", match=models.MatchText(text="RED"))])

    assert answered(served, condition) == []
    served.create_payload_index("c", "list[].t", models.TextIndexParams(type="text"))
    assert answered(served, condition) == [0, 1, 3]


def test_other_parts_of_a_condition_hold_beside_a_text(served: QdrantClient):
    make(served, [{"t": ["red", "red"]}, {"t": "red"}])
    two = models.ValuesCount(gte=2)

    assert answered(served, field_is("t", match=models.MatchText(text="red"), values_count=two)) == [0]


@pytest.mark.parametrize("kind", ["condition", "attribute"])
def test_an_array_with_a_null_is_null_where_its_field_has_an_index(served: QdrantClient, kind: str):
    make(served, [{"k": value} for value in (None, [None], ["a", None], [], "a")])
    null = is_null("k") if kind == "condition" else field_is("k", is_null=True)

    assert answered(served, null) == [0]
    served.create_payload_index("c", "k", "keyword")
    assert answered(served, null) == [0, 1, 2]  # as on a server, which does not agree with itself


def test_a_delete_by_a_minimum_of_no_conditions_deletes_nothing(served: QdrantClient):
    make(served, [{"n": 1}])
    everything = models.Filter(min_should=models.MinShould(conditions=[value_is("n", 9)], min_count=0))

    with pytest.raises(UnexpectedResponse) as refusal:
        served.delete("c", everything)

    assert refusal.value.status_code == 422
    assert served.count("c").count == 1


def make(client: QdrantClient, payloads: list[dict[str, Any]]) -> None:
    client.create_collection("c", vectors_config=models.VectorParams(size=1, distance="Dot"))
    client.upsert(
        "c", [models.PointStruct(id=i, vector=[1.0], payload=payload) for i, payload in enumerate(payloads)]
    )


def answered(client: QdrantClient, condition: models.Condition) -> list[Any]:
    return [point.id for point in client.scroll("c", scroll_filter=models.Filter(must=[condition]))[0]]


@pytest.mark.parametrize(
    "condition",
    [
        models.IsNullCondition(is_null=models.PayloadField(key="a")),
        models.FieldCondition(key="a", is_null=True, match=models.MatchTextAny(text_any="a b")),
    ],
)
def test_a_condition_that_is_replaced_counts_with_the_levels_of_its_replacement(condition: models.Condition):
    deep = models.Filter(must=[condition])
    for _ in range(60):
        deep = models.Filter(must=[deep])

    assert to_filter(deep, Fields({"a": models.PayloadSchemaType.TEXT})) is not None
    with pytest.raises(RequestError, match="limit is 127"):
        to_filter(deep.model_copy(deep=True), Fields({}))
