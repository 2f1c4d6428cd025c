from collections.abc import Sequence
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.encoders.sentence_encoder import unit_rows
from storage import qdrant, transfer
from storage.qdrant import AliasNotMoved, Point
from storage.records import Digest, Item
from tests.support.builders import an_item

NOTHING = np.empty((0, 3), np.float32)
X, Y, Z = unit_rows(np.eye(3))
DIGEST = Digest("content", "record")


@pytest.fixture
def vectors(any_index: QdrantClient) -> QdrantClient:
    """Return an empty local mode, embedded index or server."""
    return any_index


def a_collection(client: QdrantClient, points: list[Point], fingerprint: str = "f1") -> str:
    name = qdrant.create_collection(client, model="colour", fingerprint=fingerprint, dim=3, filter_fields={})
    qdrant.upsert(client, qdrant.describe(client, name), points)
    qdrant.activate(client, name)
    return name


def pictured(key: str, image: NDArray[np.float32], **metadata: object) -> Point:
    return Point(an_item(key, texts=(), sha256="0" * 64, metadata=metadata), DIGEST, image, NOTHING)


def found(client: QdrantClient, query: NDArray[np.float32], using: qdrant.Space = "image", **rest: object):
    return [
        hit.id
        for hit in qdrant.search_points(
            client, qdrant.active_collection(client), query, using=using, limit=10, **rest
        )
    ]


def test_the_collection_says_which_model_made_it(vectors: QdrantClient):
    name = a_collection(vectors, [pictured("a", X)])

    assert qdrant.active_collection(vectors) == qdrant.Collection(name, "colour", "f1", dim=3)
    assert qdrant.count(vectors, name) == 1


def test_before_the_first_ingest_there_is_no_collection_and_the_error_says_what_to_run(vectors: QdrantClient):
    assert qdrant.active_collection(vectors) is None
    with pytest.raises(qdrant.NoCollection, match="sightline ingest SOURCE"):
        qdrant.require_collection(vectors, "f1", "colour")


def test_a_query_by_another_model_is_an_error_never_a_wrong_ranking(vectors: QdrantClient):
    a_collection(vectors, [pictured("a", X)])

    with pytest.raises(qdrant.ModelMismatch, match=r"'colour' \(f1\), not of 'clip' \(f2\)"):
        qdrant.require_collection(vectors, "f2", "clip")


def test_the_closest_comes_first_and_equals_are_in_the_order_of_their_ids(vectors: QdrantClient):
    points = [pictured(key, Y) for key in "abcd"] + [pictured("best", X)]
    a_collection(vectors, points)

    equals = sorted(point.item.id for point in points[:-1])
    assert found(vectors, X) == [points[-1].item.id, *equals]


def test_an_item_is_as_close_as_its_best_text_and_the_hit_says_which_that_is(vectors: QdrantClient):
    item = an_item("a", texts=("x", "y", "z"))
    a_collection(vectors, [Point(item, DIGEST, None, np.stack([X, Y, Z]))])

    [hit] = qdrant.search_points(vectors, qdrant.active_collection(vectors), Z, using="text", limit=1)

    assert hit.score == pytest.approx(1)
    assert hit.best_text == 2


def test_an_item_without_a_picture_is_not_found_as_one(vectors: QdrantClient):
    text_only = Point(an_item("t", texts=("x",)), DIGEST, None, X[None])
    a_collection(vectors, [text_only, pictured("p", Y)])

    assert found(vectors, X, "image") == [an_item("p").id]
    assert found(vectors, X, "text") == [an_item("t").id]


def test_a_point_that_lost_its_text_is_no_longer_found_by_it(vectors: QdrantClient):
    name = a_collection(vectors, [Point(an_item("a", texts=("x",)), DIGEST, Y, X[None])])

    qdrant.upsert(vectors, qdrant.describe(vectors, name), [pictured("a", Y)])

    assert found(vectors, X, "text") == []
    assert found(vectors, Y, "image") == [an_item("a").id]


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("kind", "fruit", {"kind": "fruit"}),
        ("year", 2020, {"year": "2020"}),
        ("year", "2020", {"year": "2020"}),
        ("price", 2.5, {"price": "2.5"}),
        ("sold", True, {"sold": "true"}),
        ("tags", ["a", "b"], {"tags": "b"}),
        ("two words", "x", {"two words": "x"}),
        ("kind", "fruit", {"metadata.kind": "fruit", "source": "test", "key": "hit"}),
    ],
)
def test_metadata_narrows_a_search(vectors: QdrantClient, field: str, value: object, where: dict[str, str]):
    a_collection(vectors, [pictured("hit", Y, **{field: value}), pictured("miss", X, **{field: "other"})])

    assert found(vectors, X, where=where) == [an_item("hit").id]


def test_conditions_must_all_hold_and_several_values_of_a_field_mean_either(vectors: QdrantClient):
    a_collection(vectors, [pictured("a", X, kind="fruit", year=1), pictured("b", X, kind="fruit", year=2)])

    assert found(vectors, X, where={"kind": "fruit", "year": "2"}) == [an_item("b").id]
    assert len(found(vectors, X, where={"kind": ("fruit", "nut"), "year": ("1", "2")})) == 2
    assert found(vectors, X, where={"kind": ("fruit", "nut"), "year": ("2", "3")}) == [an_item("b").id]


def test_hits_below_the_least_score_are_left_out(vectors: QdrantClient):
    a_collection(vectors, [pictured("near", X), pictured("far", Y)])

    assert found(vectors, X, min_score=0.5) == [an_item("near").id]


def test_a_new_payload_leaves_the_vectors_alone(vectors: QdrantClient):
    name = a_collection(vectors, [pictured("a", X, price=1)])

    item = an_item("a", texts=(), metadata={"price": 2})
    qdrant.overwrite_payloads(vectors, name, {item.id: (item, DIGEST)})

    assert found(vectors, X, where={"price": "2"}) == [an_item("a").id]
    assert found(vectors, X, where={"price": "1"}) == []


def test_a_delete_reaches_every_collection_of_ours_and_no_other(vectors: QdrantClient):
    old = a_collection(vectors, [pictured("a", X), pictured("b", Y)], "f1")
    new = a_collection(vectors, [pictured("a", X)], "f2")
    dot = models.VectorParams(size=1, distance=models.Distance.DOT)
    vectors.create_collection("theirs", vectors_config=dot)
    vectors.upsert("theirs", [models.PointStruct(id=str(an_item("a").id), vector=[1.0])])

    qdrant.delete_everywhere(vectors, [an_item("a").id])

    assert [vectors.count(name).count for name in (old, new, "theirs")] == [1, 0, 1]


def test_a_search_by_alias_sees_the_old_collection_until_the_switch(vectors: QdrantClient):
    old = a_collection(vectors, [pictured("old", X)], "f1")
    a_collection(vectors, [pictured("new", X)], "f2")
    assert found(vectors, X) == [an_item("new").id]

    qdrant.activate(vectors, old)

    assert found(vectors, X) == [an_item("old").id]


def test_an_alias_stays_where_it_is_when_the_collection_it_should_lead_to_is_absent(vectors: QdrantClient):
    a_collection(vectors, [pictured("old", X)])

    with pytest.raises(AliasNotMoved, match="no collection items__f2"):
        qdrant.activate(vectors, "items__f2")

    assert found(vectors, X) == [an_item("old").id]


class StepByStep:
    """Apply the steps of an alias change one by one, as servers do.

    Args:
        fault: what becomes of the first creation of the alias that is searched: it is refused, refused when
            the old alias is gone already, or accepted and forgotten.
    """

    def __init__(self, real: Any, fault: str | None) -> None:
        self._real, self._fault = real, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def update_collection_aliases(self, change_aliases_operations: Sequence[Any], **named: Any) -> bool:
        for step in change_aliases_operations:
            fault = None
            if isinstance(step, models.CreateAliasOperation) and step.create_alias.alias_name == qdrant.ALIAS:
                fault, self._fault = self._fault, None
            if fault == "lost":
                gone = models.DeleteAlias(alias_name=step.create_alias.alias_name)
                self._real.update_collection_aliases([models.DeleteAliasOperation(delete_alias=gone)])
            if fault in ("refused", "lost"):
                raise UnexpectedResponse(500, "Service internal error", b"", httpx.Headers())
            if fault is None:
                self._real.update_collection_aliases([step], **named)
        return True


def a_server(fault: str | None = None) -> QdrantClient:
    client = QdrantClient(":memory:")
    client._client = StepByStep(client._client, fault)
    return client


def two_collections(client: QdrantClient) -> tuple[str, str]:
    """Make two collections, of which the first is searched."""
    old = a_collection(client, [pictured("old", X)], "f1")
    new = qdrant.create_collection(client, model="colour", fingerprint="f2", dim=3, filter_fields={})
    return old, new


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("refused", UnexpectedResponse, "500"),
        ("lost", AliasNotMoved, "all lead where they led before"),
        ("forgotten", AliasNotMoved, "all lead where they led before"),
    ],
)
def test_searches_go_on_where_a_server_fails_in_the_middle_of_a_switch(
    fault: str, error: type[Exception], says: str
):
    server = a_server()
    _, new = two_collections(server)
    server._client._fault = fault

    with pytest.raises(error, match=says):
        qdrant.activate(server, new)

    assert found(server, X) == [an_item("old").id]


def test_searches_go_on_where_a_server_lacks_the_collection_of_a_switch():
    server = a_server()
    two_collections(server)

    with pytest.raises(AliasNotMoved):
        qdrant.activate(server, "items__f3")

    assert found(server, X) == [an_item("old").id]


@pytest.mark.parametrize("fault", [None, "refused", "lost", "forgotten"])
def test_copied_aliases_are_all_copied_or_all_as_before(fault: str | None):
    source, server = a_server(), a_server()
    for client in (source, server):
        old, new = two_collections(client)
    qdrant.set_aliases(source, {"ours": old, qdrant.ALIAS: new})
    server._client._fault = fault

    if fault is None:
        transfer.copy_aliases(source, server)
    else:
        with pytest.raises((AliasNotMoved, UnexpectedResponse)):
            transfer.copy_aliases(source, server)

    aliases = {one.alias_name: one.collection_name for one in server.get_aliases().aliases}
    assert aliases == ({qdrant.ALIAS: old} if fault else {"ours": old, qdrant.ALIAS: new})


@pytest.mark.parametrize(
    ("point", "error", "says"),
    [
        (
            pictured("cat", np.ones(4, np.float32)),
            qdrant.DimensionMismatch,
            "length 4, but the collection holds 3",
        ),
        (pictured("cat", np.array([np.nan, 0, 1], np.float32)), ValueError, "cat: a vector holds NaN"),
        (
            Point(an_item("cat", texts=("a", "b")), DIGEST, None, X[None]),
            ValueError,
            "cat: 1 rows for 2 texts",
        ),
    ],
)
def test_a_bad_point_is_named_and_the_whole_batch_stays_out(
    vectors: QdrantClient, point: Point, error: type[Exception], says: str
):
    name = a_collection(vectors, [])

    with pytest.raises(error, match=says):
        qdrant.upsert(vectors, qdrant.describe(vectors, name), [pictured("good", X), point])

    assert vectors.count(name).count == 0


def test_every_picture_vector_can_be_read_back_over_several_pages(vectors: QdrantClient):
    points = [pictured(f"{number}", X) for number in range(1001)]
    points.append(Point(an_item("text only", texts=("x",)), DIGEST, None, Y[None]))
    name = a_collection(vectors, points)

    read = dict(qdrant.scroll_image_vectors(vectors, name))

    assert read.keys() == {point.item.id for point in points[:-1]}
    assert all((row == X).all() for row in read.values())


def test_the_payload_holds_what_people_filter_on(vectors: QdrantClient):
    item: Item = an_item("a", texts=("a cat",), metadata={"price": 2})
    name = a_collection(vectors, [Point(item, DIGEST, None, X[None])])

    [record] = vectors.retrieve(name, [str(item.id)])

    assert record.payload == {
        "source": "test",
        "key": "a",
        "text": "a cat",
        "metadata": {"price": 2},
        "content_hash": "content",
        "record_hash": "record",
    }


SIX = np.eye(6, dtype=np.float32)


@pytest.mark.parametrize("quantization", get_args(qdrant.Quantization))
@pytest.mark.parametrize("short_dim", [None, 3])
def test_packed_and_shortened_vectors_find_candidates_and_whole_ones_give_the_scores(
    served: QdrantClient, quantization: qdrant.Quantization, short_dim: int | None
):
    name = qdrant.create_collection(
        served,
        model="m",
        fingerprint="f",
        dim=6,
        filter_fields={},
        quantization=quantization,
        short_dim=short_dim,
    )
    qdrant.activate(served, name)
    collection = qdrant.active_collection(served)
    assert collection == qdrant.Collection(name, "m", "f", 6, quantization, short_dim)
    rows = [unit_rows(SIX[:1] + share * SIX[4:5])[0] for share in (0.0, 0.2, 0.4, 0.8)]
    points = [
        Point(an_item(f"{n}", texts=["a"], sha256="0" * 64), DIGEST, row, row[None])
        for n, row in enumerate(rows)
    ]
    qdrant.upsert(served, collection, points)
    query = unit_rows(SIX[:1] + 0.4 * SIX[4:5])[0]

    for using in ("image", "text"):
        hits = qdrant.search_points(served, collection, query, using=using, limit=1, oversampling=4)
        assert [hit.id for hit in hits] == [points[2].item.id]  # by their beginnings alone all four are equal
        assert hits[0].score == pytest.approx(1, abs=1e-6)


def test_a_collection_can_be_packed_in_another_way_at_any_time(served: QdrantClient):
    qdrant.create_collection(served, model="m", fingerprint="f", dim=3, filter_fields={})
    name = qdrant.collection_name("f")

    for wanted in ("int8", "turbo", "product", "binary", "none", "none"):
        qdrant.quantize(served, qdrant.describe(served, name), wanted)
        assert qdrant.describe(served, name).quantization == wanted
