"""Qdrant's REST API: the embedded index responds like a server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.embedded.qdrant.process.client import start
from storage.embedded.qdrant.process.discovery import Access
from storage.embedded.qdrant.protocol.http import MAX_BODY_BYTES
from tests.support.embedded_points import value_is
from tests.support.servers import is_server

COSINE = models.VectorParams(size=3, distance=models.Distance.COSINE)
X, Y, Z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
NAME = "pictures"


def a_point(id: int | str, vector: Any = X, **payload: Any) -> models.PointStruct:
    return models.PointStruct(id=id, vector=vector, payload=payload)


@pytest.fixture
def pictures(served: QdrantClient) -> QdrantClient:
    """A client, and a collection with three points."""
    served.create_collection(NAME, vectors_config=COSINE)
    points = [a_point(1, X, kind="cat", n=1), a_point(2, Y, kind="cat", n=2), a_point(3, Z, kind="dog", n=3)]
    served.upsert(NAME, points)
    return served


def payloads(client: QdrantClient, name: str = NAME) -> dict[Any, Any]:
    return {point.id: point.payload for point in client.scroll(name, limit=100)[0]}


def kind_is(kind: str) -> models.Filter:
    return models.Filter(must=[value_is("kind", kind)])


def refused(status: int) -> Any:
    return pytest.raises(UnexpectedResponse, match=f"Unexpected Response: {status} ")


# --- collections


def test_a_collection_is_described_as_it_was_made(served: QdrantClient):
    vectors = {
        "image": models.VectorParams(
            size=4,
            distance=models.Distance.DOT,
            on_disk=True,
            datatype=models.Datatype.FLOAT16,
            hnsw_config=models.HnswConfigDiff(m=8),
        ),
        "text": models.VectorParams(
            size=3,
            distance=models.Distance.MANHATTAN,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        ),
    }
    sparse = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}
    scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99)

    served.create_collection(
        NAME,
        vectors_config=vectors,
        sparse_vectors_config=sparse,
        hnsw_config=models.HnswConfigDiff(ef_construct=64),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=123),
        quantization_config=models.ScalarQuantization(scalar=scalar),
        metadata={"model": "clip", "Größe": [1, None]},
    )

    info = served.get_collection(NAME)
    assert (info.status, info.points_count, info.indexed_vectors_count) == ("green", 0, 0)
    assert info.config.params.vectors == vectors
    assert info.config.params.sparse_vectors == sparse
    assert info.config.metadata == {"model": "clip", "Größe": [1, None]}
    assert (info.config.hnsw_config.ef_construct, info.config.hnsw_config.m) == (64, 16)
    assert info.config.optimizer_config.indexing_threshold == 123
    assert info.config.quantization_config == models.ScalarQuantization(scalar=scalar)


@pytest.mark.parametrize(
    "quantization",
    [
        models.ProductQuantization(
            product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X4)
        ),
        models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    ],
)
def test_a_quantised_collection_finds_the_nearest(served: QdrantClient, quantization: Any):
    served.create_collection(NAME, vectors_config=COSINE, quantization_config=quantization)
    served.upsert(NAME, [a_point(1, X), a_point(2, Y)])
    rescored = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True, oversampling=2))

    [nearest] = served.query_points(NAME, Y, limit=1, search_params=rescored).points

    assert (nearest.id, nearest.score) == (2, pytest.approx(1))


def test_collections_are_listed_found_and_deleted(served: QdrantClient):
    names = ["b", "a", "two words", "ключ", "100%"]
    for name in names:
        served.create_collection(name, vectors_config=COSINE)

    listed = [one.name for one in served.get_collections().collections]
    assert sorted(listed) == sorted(names)
    assert served.delete_collection("a")
    assert [served.collection_exists(name) for name in ("a", "two words", "ключ")] == [False, True, True]
    assert not served.delete_collection("a")


def test_a_collection_that_is_there_is_not_made_again_and_keeps_its_points(pictures: QdrantClient):
    with refused(409):
        pictures.create_collection(NAME, vectors_config=COSINE)

    assert pictures.count(NAME).count == 3


@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.get_collection("none"),
        lambda client: client.count("none"),
        lambda client: client.query_points("none", X),
        lambda client: client.upsert("none", [a_point(1)]),
        lambda client: client.delete("none", [1]),
        lambda client: client.create_payload_index("none", "n", "integer"),
    ],
)
def test_what_is_not_there_is_not_found(served: QdrantClient, use: Callable[[QdrantClient], object]):
    with refused(404):
        use(served)


def test_an_update_changes_what_it_names(pictures: QdrantClient):
    pictures.update_collection(
        NAME, hnsw_config=models.HnswConfigDiff(ef_construct=50), metadata={"model": "b"}
    )
    pictures.update_collection(NAME, metadata={"dim": 3})

    config = pictures.get_collection(NAME).config
    assert (config.hnsw_config.ef_construct, config.metadata) == (50, {"model": "b", "dim": 3})


def test_named_vectors_come_and_go_while_the_collection_lives(served: QdrantClient):
    served.create_collection(NAME, vectors_config={"image": COSINE})
    served.upsert(NAME, [a_point(1, {"image": X})])

    dense = models.DenseVectorNameConfig(dense=models.DenseVectorConfig(size=2, distance=models.Distance.DOT))
    served.create_vector_name(NAME, "text", dense)
    served.update_vectors(NAME, [models.PointVectors(id=1, vector={"text": [1.0, 2.0]})])
    served.delete_vector_name(NAME, "image")

    [point] = served.retrieve(NAME, [1], with_vectors=True)
    assert point.vector == {"text": [1.0, 2.0]}
    assert served.get_collection(NAME).config.params.vectors.keys() == {"text"}


# --- aliases


def aliases(client: QdrantClient) -> dict[str, str]:
    return {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}


def create_alias(alias: str, collection: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(alias_name=alias, collection_name=collection)
    )


def delete_alias(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def test_several_aliases_change_in_one_step(pictures: QdrantClient):
    pictures.create_collection("new", vectors_config=COSINE)
    pictures.update_collection_aliases([create_alias("items", NAME), create_alias("old", NAME)])

    rename = models.RenameAliasOperation(
        rename_alias=models.RenameAlias(old_alias_name="old", new_alias_name="before")
    )
    pictures.update_collection_aliases([delete_alias("items"), create_alias("items", "new"), rename])

    assert aliases(pictures) == {"items": "new", "before": NAME}
    assert [alias.alias_name for alias in pictures.get_collection_aliases(NAME).aliases] == ["before"]
    assert (pictures.count("items").count, pictures.count("before").count) == (0, 3)


def test_a_change_of_aliases_that_fails_changes_none_and_on_a_server_the_steps_before_the_fault(
    pictures: QdrantClient,
):
    pictures.update_collection_aliases([create_alias("items", NAME)])

    with refused(404):
        pictures.update_collection_aliases([delete_alias("items"), create_alias("items", "none")])

    assert aliases(pictures) == ({} if is_server(pictures) else {"items": NAME})


def test_writes_reach_a_collection_by_its_alias_and_it_takes_its_aliases_along(pictures: QdrantClient):
    pictures.update_collection_aliases([create_alias("items", NAME)])

    pictures.upsert("items", [a_point(4)])
    assert pictures.count(NAME).count == 4

    pictures.delete_collection(NAME)
    assert aliases(pictures) == {}


# --- points


def test_unicode_nulls_and_nesting_come_back_as_they_went(pictures: QdrantClient):
    payload = {
        "Ключ": "\U0001f408 “猫”\n\x00\u2028",
        "null": None,
        "deep": [{"a": [1, 2.5, True, None]}, []],
        "": 0,
    }
    pictures.upsert(NAME, [models.PointStruct(id=9, vector=X, payload=payload)])

    assert payloads(pictures)[9] == payload


def test_ids_are_numbers_or_uuids_in_any_writing(pictures: QdrantClient):
    id = UUID(int=7)
    pictures.upsert(NAME, [a_point(id.hex, X), a_point(2**64 - 1, X)])

    found = {point.id for point in pictures.retrieve(NAME, [id.urn, 2**64 - 1])}
    assert found == {str(id), 2**64 - 1}


def test_columns_are_written_like_points(pictures: QdrantClient):
    columns = models.Batch(ids=[3, 4], vectors=[Y, Z], payloads=[{"n": 30}, {"n": 40}])
    pictures.upsert(NAME, columns)

    found = payloads(pictures)
    assert (found[3], found[4]) == ({"n": 30}, {"n": 40})


def test_an_upsert_may_only_insert_or_only_update(pictures: QdrantClient):
    both = [a_point(3, X, n="changed"), a_point(4, X, n="new")]

    pictures.upsert(NAME, both, update_mode=models.UpdateMode.INSERT_ONLY)
    assert (payloads(pictures)[3]["n"], payloads(pictures)[4]["n"]) == (3, "new")

    pictures.upsert(NAME, [a_point(3, X, n=30), a_point(5, X)], update_mode=models.UpdateMode.UPDATE_ONLY)
    assert payloads(pictures)[3] == {"n": 30}
    assert 5 not in payloads(pictures)


def test_an_upsert_with_a_filter_leaves_alone_what_it_does_not_match(pictures: QdrantClient):
    changed = [a_point(1, X, n=10), a_point(3, X, n=30)]

    pictures.upsert(NAME, changed, update_filter=kind_is("dog"))

    assert [payloads(pictures)[id]["n"] for id in (1, 3)] == [1, 30]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.set_payload(NAME, {"n": 5}, [1]), {"kind": "cat", "n": 5}),
        (lambda c: c.set_payload(NAME, {"n": 5}, kind_is("cat")), {"kind": "cat", "n": 5}),
        (lambda c: c.set_payload(NAME, {"b": 1}, [1], key="a"), {"kind": "cat", "n": 1, "a": {"b": 1}}),
        (lambda c: c.overwrite_payload(NAME, {"n": 5}, [1]), {"n": 5}),
        (lambda c: c.overwrite_payload(NAME, {"n": 5}, kind_is("cat")), {"n": 5}),
        (lambda c: c.delete_payload(NAME, ["n"], [1]), {"kind": "cat"}),
        (lambda c: c.delete_payload(NAME, ["n"], kind_is("cat")), {"kind": "cat"}),
        (lambda c: c.clear_payload(NAME, [1]), {}),
        (lambda c: c.clear_payload(NAME, kind_is("cat")), {}),
    ],
)
def test_payloads_change_by_id_and_by_filter(
    pictures: QdrantClient, change: Callable[[QdrantClient], object], expected: dict[str, Any]
):
    change(pictures)

    assert payloads(pictures)[1] == expected
    assert payloads(pictures)[3] == {"kind": "dog", "n": 3}


def test_points_are_deleted_by_id_and_by_filter(pictures: QdrantClient):
    pictures.delete(NAME, [1, 77])
    assert payloads(pictures).keys() == {2, 3}

    pictures.delete(NAME, models.FilterSelector(filter=kind_is("cat")))
    assert payloads(pictures).keys() == {3}


def test_vectors_are_replaced_and_deleted_one_by_one(served: QdrantClient):
    served.create_collection(NAME, vectors_config={"image": COSINE, "text": COSINE})
    served.upsert(NAME, [a_point(1, {"image": X, "text": X})])

    served.update_vectors(NAME, [models.PointVectors(id=1, vector={"image": Y})])
    served.delete_vectors(NAME, ["text"], [1])

    [point] = served.retrieve(NAME, [1], with_vectors=True)
    assert point.vector == {"image": Y}
    assert served.query_points(NAME, X, using="text").points == []


def test_a_batch_does_all_its_operations_in_order(pictures: QdrantClient):
    answers = pictures.batch_update_points(
        NAME,
        [
            models.UpsertOperation(upsert=models.PointsList(points=[a_point(4, X, n=4)])),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"kind": "bird"}, points=[4])),
            models.DeleteOperation(delete=models.PointIdsList(points=[1, 2])),
            models.UpdateVectorsOperation(
                update_vectors=models.UpdateVectors(points=[models.PointVectors(id=3, vector=X)])
            ),
            models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[3])),
        ],
    )

    assert [answer.status for answer in answers] == ["completed"] * 5
    assert payloads(pictures) == {3: {}, 4: {"n": 4, "kind": "bird"}}
    assert pictures.retrieve(NAME, [3], with_vectors=True)[0].vector == X


BAD = [
    pytest.param({"id": 8, "vector": [1.0, 2.0]}, id="another length"),
    pytest.param({"id": 8, "vector": {"image": X}}, id="an unknown name"),
    pytest.param({"id": 8, "vector": [1.0, None, 0.0]}, id="a null"),
    pytest.param({"id": 8, "vector": ["a", "b", "c"]}, id="words"),
    pytest.param({"id": 8, "vector": [X, Y]}, id="rows"),
    pytest.param({"id": -1, "vector": X}, id="a negative id"),
    pytest.param({"id": "a.png", "vector": X}, id="an id that is a name"),
    pytest.param({"id": 8}, id="no vector at all"),
]


def raw(client: QdrantClient, method: str, path: str, **more: Any) -> httpx.Response:
    """Send a request that qdrant-client itself would not."""
    return client._client.openapi_client.client._client.request(
        method, f"{client._client.rest_uri}{path}", **more
    )


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_point_keeps_the_whole_batch_out_and_on_a_server_itself_at_least(
    pictures: QdrantClient, bad: dict[str, Any]
):
    good = {"id": 7, "vector": X}

    answer = raw(pictures, "PUT", f"/collections/{NAME}/points?wait=true", json={"points": [good, bad]})

    assert 400 <= answer.status_code < 500
    assert answer.json()["status"]["error"]
    kept = payloads(pictures).keys() - {7} if is_server(pictures) else payloads(pictures).keys()
    assert kept == {1, 2, 3}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1e30"])
def test_a_number_that_is_none_or_overflows_keeps_the_whole_batch_out(
    embedded_pictures: QdrantClient, number: str
):
    body = f'{{"points": [{{"id": 7, "vector": [1, 0, 0]}}, {{"id": 8, "vector": [0, 0, {number}]}}]}}'

    answer = raw(embedded_pictures, "PUT", f"/collections/{NAME}/points?wait=true", content=body)

    assert answer.status_code == 400
    assert payloads(embedded_pictures).keys() == {1, 2, 3}


@pytest.fixture
def embedded_pictures(embedded: QdrantClient) -> Iterator[QdrantClient]:
    """A client of the embedded index alone, for its own promises."""
    embedded.create_collection(NAME, vectors_config=COSINE)
    embedded.upsert(NAME, [a_point(1, X), a_point(2, Y), a_point(3, Z)])
    yield embedded
    embedded.delete_collection(NAME)


@pytest.mark.parametrize(
    "last",
    [
        models.UpsertOperation(upsert=models.PointsList(points=[a_point(8, [1.0])])),
        models.SetPayloadOperation(set_payload=models.SetPayload(payload={"n": 1}, points=[99])),
        models.DeleteVectorsOperation(delete_vectors=models.DeleteVectors(points=[1], vector=["none"])),
    ],
)
def test_a_batch_with_one_bad_operation_does_none_of_them(embedded_pictures: QdrantClient, last: Any):
    first = models.DeleteOperation(delete=models.PointIdsList(points=[1]))

    with pytest.raises(UnexpectedResponse):
        embedded_pictures.batch_update_points(NAME, [first, last])

    assert payloads(embedded_pictures).keys() == {1, 2, 3}


def test_several_processes_upload_at_once(embedded_pictures: QdrantClient, index_home: Path):
    access = start(index_home)
    client = QdrantClient(access.url, headers={"api-key": access.key}, check_compatibility=False)

    client.upload_points(NAME, (a_point(id, X) for id in range(1000)), batch_size=50, parallel=2, wait=True)

    assert embedded_pictures.count(NAME).count == 1000
    client.close()


# --- what is asked


def near(id: int, **more: Any) -> models.QueryRequest:
    return models.QueryRequest(query=[X, Y, Z][id - 1], limit=1, **more)


def test_a_query_brings_what_is_asked_for(pictures: QdrantClient):
    [hit] = pictures.query_points(NAME, Y, limit=1, with_payload=["n"], with_vectors=True).points

    assert (hit.id, hit.score, hit.payload, hit.vector) == (2, pytest.approx(1), {"n": 2}, Y)


def test_several_queries_are_answered_in_their_order(pictures: QdrantClient):
    answers = pictures.query_batch_points(NAME, [near(3), near(1), near(2, filter=kind_is("dog"))])

    assert [[hit.id for hit in answer.points] for answer in answers] == [[3], [1], [3]]


def test_groups_hold_their_nearest(pictures: QdrantClient):
    groups = pictures.query_points_groups(NAME, "kind", Y, limit=2, group_size=1).groups

    assert [(group.id, [hit.id for hit in group.hits]) for group in groups] == [("cat", [2]), ("dog", [3])]


def test_a_matrix_has_every_pair_of_the_sample(pictures: QdrantClient):
    pairs = pictures.search_matrix_pairs(NAME, sample=3, limit=2).pairs
    offsets = pictures.search_matrix_offsets(NAME, sample=3, limit=2)

    everyone = {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}
    assert {(pair.a, pair.b) for pair in pairs} == everyone
    rows = zip(offsets.offsets_row, offsets.offsets_col, strict=True)
    assert {(offsets.ids[row], offsets.ids[column]) for row, column in rows} == everyone


def test_points_are_counted_and_faceted(pictures: QdrantClient):
    pictures.create_payload_index(NAME, "kind", models.PayloadSchemaType.KEYWORD)

    assert pictures.count(NAME, kind_is("cat")).count == 2
    assert [(hit.value, hit.count) for hit in pictures.facet(NAME, "kind").hits] == [("cat", 2), ("dog", 1)]


def test_a_scroll_goes_through_all_pages_and_in_the_order_of_a_field(pictures: QdrantClient):
    first, following = pictures.scroll(NAME, limit=2)
    second, end = pictures.scroll(NAME, limit=2, offset=following)
    assert [point.id for point in first + second] == [1, 2, 3]
    assert end is None

    pictures.create_payload_index(NAME, "n", models.PayloadSchemaType.INTEGER)
    falling = models.OrderBy(key="n", direction=models.Direction.DESC)
    assert [point.id for point in pictures.scroll(NAME, order_by=falling)[0]] == [3, 2, 1]


def test_a_payload_index_is_described_with_the_points_it_holds(pictures: QdrantClient):
    pictures.create_payload_index(NAME, "n", models.PayloadSchemaType.INTEGER)
    words = models.TextIndexParams(type=models.TextIndexType.TEXT, lowercase=True)
    pictures.create_payload_index(NAME, "kind", words)

    schema = pictures.get_collection(NAME).payload_schema
    assert (schema["n"].data_type, schema["n"].points) == ("integer", 3)
    described = words.model_copy(update={"tokenizer": models.TokenizerType.WORD})
    assert (schema["kind"].data_type, schema["kind"].params) == ("text", described)

    pictures.delete_payload_index(NAME, "n")
    assert pictures.get_collection(NAME).payload_schema.keys() == {"kind"}


def test_the_client_copies_a_collection_elsewhere(pictures: QdrantClient):
    elsewhere = QdrantClient(":memory:")

    pictures.migrate(elsewhere, [NAME])

    assert payloads(elsewhere) == payloads(pictures)
    assert elsewhere.get_collection(NAME).config.params.vectors == COSINE
    elsewhere.close()


# --- snapshots


@pytest.fixture
def access(index_home: Path) -> Access:
    return start(index_home)


@pytest.fixture
def http(access: Access) -> Iterator[httpx.Client]:
    """Plain HTTP with the key, for requests that qdrant-client lacks."""
    with httpx.Client(base_url=access.url, headers={"api-key": access.key}, timeout=60) as http:
        yield http


def test_a_snapshot_brings_a_collection_back_as_it_was(embedded_pictures: QdrantClient, index_home: Path):
    embedded_pictures.create_payload_index(NAME, "n", models.PayloadSchemaType.INTEGER)
    made = embedded_pictures.create_snapshot(NAME)
    before = payloads(embedded_pictures)
    embedded_pictures.delete(NAME, [1, 2])

    location = index_home / "qdrant" / "snapshots" / NAME / made.name
    embedded_pictures.recover_snapshot(NAME, location.as_uri(), checksum=made.checksum)

    assert payloads(embedded_pictures) == before
    assert embedded_pictures.get_collection(NAME).payload_schema.keys() == {"n"}
    assert [hit.id for hit in embedded_pictures.query_points(NAME, Y, limit=1).points] == [2]
    assert [one.name for one in embedded_pictures.list_snapshots(NAME)] == [made.name]
    assert embedded_pictures.delete_snapshot(NAME, made.name)
    assert embedded_pictures.list_snapshots(NAME) == []


def test_a_snapshot_is_downloaded_and_recovered_from_what_was_downloaded(
    embedded_pictures: QdrantClient, http: httpx.Client
):
    made = embedded_pictures.create_snapshot(NAME)

    downloaded = http.get(f"/collections/{NAME}/snapshots/{made.name}").content
    sent = upload(http, "copy", downloaded, checksum=made.checksum)

    assert (sent.status_code, len(downloaded)) == (200, made.size)
    assert payloads(embedded_pictures, "copy") == payloads(embedded_pictures)
    embedded_pictures.delete_collection("copy")


def upload(http: httpx.Client, name: str, content: bytes, **parameters: str) -> httpx.Response:
    path = f"/collections/{name}/snapshots/upload"
    return http.post(path, files={"snapshot": content}, params=parameters)


@pytest.mark.parametrize("content", [b"", b"not a tar file", b"\0" * 20_000])
def test_what_is_no_snapshot_is_refused_and_changes_nothing(
    embedded_pictures: QdrantClient, http: httpx.Client, index_home: Path, content: bytes
):
    assert upload(http, NAME, content).status_code == 400
    with refused(400):
        embedded_pictures.recover_snapshot(NAME, str(index_home / "qdrant/snapshots" / NAME / "no.snapshot"))

    assert payloads(embedded_pictures).keys() == {1, 2, 3}
    assert not list(index_home.glob("qdrant/recover-*"))


def test_a_snapshot_with_another_checksum_is_refused(embedded_pictures: QdrantClient, index_home: Path):
    made = embedded_pictures.create_snapshot(NAME)
    path = index_home / "qdrant" / "snapshots" / NAME / made.name

    with pytest.raises(UnexpectedResponse, match=f"SHA-256 is {made.checksum}"):
        embedded_pictures.recover_snapshot(NAME, str(path), checksum="0" * 64)


@pytest.mark.usefixtures("embedded_pictures")
@pytest.mark.parametrize(
    "name", ["none.snapshot", "collections.json", "%2e%2e", "..%2F..%2Fcollections.json"]
)
def test_only_snapshots_are_handed_out(http: httpx.Client, name: str):
    assert http.get(f"/collections/{NAME}/snapshots/{name}").status_code in (404, 501)


# --- the door


def test_whoever_has_no_key_learns_only_that_it_lives(access: Access):
    with httpx.Client(base_url=access.url) as stranger:
        for path in ("/healthz", "/livez", "/readyz"):
            assert stranger.get(path).text == f"{path[1:]} check passed"
        for path in ("/", "/metrics", "/collections", "/collections/x/exists", "/nothing"):
            answer = stranger.get(path)
            assert answer.status_code == 401
            assert "qdrant.json" in answer.json()["status"]["error"]
        wrong = stranger.get("/collections", headers={"api-key": "ключ".encode()})
        assert wrong.status_code == 401
        bearer = stranger.get("/collections", headers={"authorization": f"Bearer {access.key}"})
        assert bearer.status_code == 200


def test_nobody_reaches_it_from_another_machine(access: Access):
    assert access.url.startswith("http://127.0.0.1:")


def test_it_says_which_version_it_speaks(embedded: QdrantClient, http: httpx.Client):
    assert embedded.info().title.startswith("sightline embedded index")
    assert http.get("/").json()["version"].startswith("1.")


@pytest.mark.usefixtures("embedded_pictures")
def test_metrics_are_in_prometheus_form(http: httpx.Client):
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}

    [points] = [one for one in families["collection_points"].samples if one.labels["id"] == NAME]
    assert points.value == 3
    upserts = [
        one
        for one in families["rest_responses"].samples
        if one.labels == {"method": "PUT", "endpoint": "/collections/{name}/points", "status": "200"}
    ]
    assert upserts
    assert "rest_responses_duration_seconds" in families


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_over_the_limit_is_refused(http: httpx.Client, chunked: bool):
    body = b"[" + b" " * MAX_BODY_BYTES + b"]"

    answer = http.put("/collections/x/points", content=iter([body]) if chunked else body)

    assert answer.status_code == 413
    assert "send smaller batches" in answer.json()["status"]["error"]
    assert http.get("/collections").status_code == 200


@pytest.mark.usefixtures("embedded_pictures")
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"points": [1]}', b'"\xff"', b"[" * 100_000])
def test_a_malformed_request_is_refused_with_a_sentence(http: httpx.Client, body: bytes):
    answer = http.put(f"/collections/{NAME}/points", content=body)

    assert answer.status_code == 400
    assert answer.json()["status"]["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/cluster"),
        ("GET", "/telemetry"),
        ("GET", "/snapshots"),
        ("POST", "/collections/x/cluster"),
        ("POST", "/collections/x/points/search"),
        ("PUT", "/collections/x/shards"),
        ("GET", "/none"),
    ],
)
def test_what_it_does_not_speak_it_says_so(http: httpx.Client, method: str, path: str):
    answer = http.request(method, path)

    assert answer.status_code == 501
    assert "SIGHTLINE_QDRANT__URL" in answer.json()["status"]["error"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"vectors_config": COSINE, "shard_number": 2}, "shard_number"),
        ({"vectors_config": COSINE, "replication_factor": 2}, "replication_factor"),
        ({"vectors_config": COSINE, "sharding_method": models.ShardingMethod.CUSTOM}, "sharding_method"),
        (
            {"vectors_config": COSINE, "strict_mode_config": models.StrictModeConfig(enabled=True)},
            "strict mode",
        ),
    ],
)
def test_a_collection_it_cannot_keep_its_word_on_is_not_made(
    embedded: QdrantClient, wanted: dict[str, Any], says: str
):
    with pytest.raises(UnexpectedResponse, match=f"501 (.|\n)*{says}"):
        embedded.create_collection("impossible", **wanted)

    assert not embedded.collection_exists("impossible")


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", "", "x" * 256, 'a"b'])
def test_a_collection_needs_a_name_that_a_folder_could_have(http: httpx.Client, name: str):
    vectors = {"vectors": {"size": 3, "distance": "Cosine"}}
    answer = http.put(f"/collections/{quote(name, safe='')}", json=vectors)

    assert answer.status_code in (400, 501)
    assert http.get("/collections").json()["result"]["collections"] == []
