"""Creation, settings and writes: the index accepts and rejects what a server does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.embedded.qdrant.process.client import index_client
from storage.embedded.qdrant.protocol.config_changes import apply_update
from storage.embedded.qdrant.protocol.config_limits import require_index_use, require_supported
from storage.embedded.qdrant.protocol.errors import Invalid
from tests.storage.test_embedded_life import kill
from tests.support.embedded_points import value_is

NAME = "images"
TWO = models.VectorParams(size=2, distance=models.Distance.DOT)
DENSE = models.DenseVectorNameConfig(dense=models.DenseVectorConfig(size=2, distance=models.Distance.DOT))
SPARSE = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
Hnsw, Optimizers = models.HnswConfigDiff, models.OptimizersConfigDiff


def refused(status: int, sentence: str = "") -> Any:
    return pytest.raises(UnexpectedResponse, match=rf"Unexpected Response: {status} (.|\n)*{sentence}")


@pytest.fixture
def images(served: QdrantClient) -> QdrantClient:
    """A client, and a collection with two points."""
    served.create_collection(NAME, vectors_config={"a": TWO})
    points = [
        models.PointStruct(id=id, vector={"a": [1.0, id]}, payload={"i": id, "o": {"p": id}}) for id in (1, 2)
    ]
    served.upsert(NAME, points)
    return served


def payloads(client: QdrantClient) -> dict[Any, Any]:
    return {point.id: point.payload for point in client.scroll(NAME)[0]}


# --- settings: values that a server rejects, at creation and in an update

BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "hnsw_config.ef_construct is 3, must be 4 or larger": {"hnsw_config": Hnsw(ef_construct=3)},
    "full_scan_threshold is 9": {"hnsw_config": Hnsw(full_scan_threshold=9)},
    "deleted_threshold is 1.5, must be 0 to 1": {"optimizers_config": Optimizers(deleted_threshold=1.5)},
    "deleted_threshold is -0.1": {"optimizers_config": Optimizers(deleted_threshold=-0.1)},
    "vacuum_min_vector_number is 99": {"optimizers_config": Optimizers(vacuum_min_vector_number=99)},
    "max_segment_size is 0": {"optimizers_config": Optimizers(max_segment_size=0)},
    "quantization_config.scalar.quantile is 0.4, must be 0.5 to 1": {
        "quantization_config": models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.4)
        )
    },
}


@pytest.mark.parametrize("says", BAD_SETTINGS)
def test_a_setting_outside_its_range_is_refused_at_creation_and_in_an_update(says: str):
    settings = BAD_SETTINGS[says]

    with pytest.raises(Invalid, match=says):
        require_supported(models.CreateCollection(vectors=TWO, **settings))
    with pytest.raises(Invalid, match=says):
        apply_update(models.CreateCollection(vectors=TWO), models.UpdateCollection(**settings))


@pytest.mark.parametrize(
    ("says", "config"),
    [
        (
            "vectors.a.hnsw_config.ef_construct",
            {"vectors": {"a": TWO.model_copy(update={"hnsw_config": Hnsw(ef_construct=2)})}},
        ),
        ("vectors.size is 65537, must be 1 to 65536", {"vectors": TWO.model_copy(update={"size": 65_537})}),
        (
            "wal_config.wal_capacity_mb is 0",
            {"vectors": TWO, "wal_config": models.WalConfigDiff(wal_capacity_mb=0)},
        ),
    ],
)
def test_a_setting_that_only_creation_has_is_checked_as_deep_as_it_is(says: str, config: dict[str, Any]):
    with pytest.raises(Invalid, match=says):
        require_supported(models.CreateCollection(**config))


def test_settings_at_their_limits_are_taken():
    require_supported(
        models.CreateCollection(
            vectors=TWO,
            hnsw_config=Hnsw(ef_construct=4, full_scan_threshold=10),
            optimizers_config=Optimizers(
                deleted_threshold=1, vacuum_min_vector_number=100, max_segment_size=1
            ),
            metadata={"hnsw_config": {"ef_construct": 1}},
        )
    )


def test_an_integer_index_that_answers_no_condition_is_refused():
    with pytest.raises(Invalid, match="needs lookup or range"):
        require_index_use(models.IntegerIndexParams(type="integer", lookup=False, range=False))
    require_index_use(models.IntegerIndexParams(type="integer", lookup=False, range=True))


@pytest.mark.services
def test_a_rejected_setting_is_422_and_leaves_the_collection_as_it_was(images: QdrantClient):
    with refused(422):
        images.update_collection(NAME, hnsw_config=Hnsw(ef_construct=3))
    with refused(422):
        images.create_collection("other", vectors_config=TWO, hnsw_config=Hnsw(ef_construct=3))

    assert images.get_collection(NAME).config.hnsw_config.ef_construct == 100
    assert not images.collection_exists("other")


@pytest.mark.services
def test_automatic_threads_are_stored_as_unset(images: QdrantClient):
    automatic = Optimizers(max_optimization_threads=models.MaxOptimizationThreadsSetting.AUTO)

    for setting, shown in ((Optimizers(max_optimization_threads=2), 2), (automatic, None)):
        images.update_collection(NAME, optimizers_config=setting)
        assert images.get_collection(NAME).config.optimizer_config.max_optimization_threads == shown


@pytest.mark.services
def test_the_description_has_the_default_tokenizer_and_a_strict_mode_that_is_off(served: QdrantClient):
    strict = models.StrictModeConfig(enabled=False, max_query_limit=3)
    served.create_collection(NAME, sparse_vectors_config={"s": {}}, strict_mode_config=strict)
    served.create_payload_index(NAME, "t", models.TextIndexParams(type="text"))
    served.update_collection(NAME, strict_mode_config=models.StrictModeConfig(max_timeout=9))

    info = served.get_collection(NAME)

    assert info.payload_schema["t"].params.tokenizer == "word"
    assert info.config.params.vectors == {}
    assert info.config.strict_mode_config.max_query_limit == 3
    assert info.config.strict_mode_config.max_timeout == 9


# --- vectors


@pytest.mark.services
def test_an_update_sets_the_modifier_of_a_sparse_vector_and_keeps_its_other_settings(served: QdrantClient):
    index = models.SparseIndexParams(full_scan_threshold=10, on_disk=True)
    served.create_collection(NAME, sparse_vectors_config={"s": models.SparseVectorParams(index=index)})
    rows = [models.SparseVector(indices=[1, id + 5], values=[1, 1]) for id in range(5)]
    served.upsert(NAME, [models.PointStruct(id=id, vector={"s": row}) for id, row in enumerate(rows)])

    def best() -> tuple[Any, float]:
        query = models.SparseVector(indices=[1, 6], values=[1, 1])
        [hit] = served.query_points(NAME, query, using="s", limit=1).points
        return hit.id, round(hit.score, 3)

    assert best() == (1, 2.0)
    idf = models.SparseVectorParams(modifier=models.Modifier.IDF)
    served.update_collection(NAME, sparse_vectors_config={"s": idf})

    assert best() == (1, 1.473)
    shown = served.get_collection(NAME).config.params.sparse_vectors["s"]
    assert (shown.modifier, shown.index.full_scan_threshold, shown.index.on_disk) == ("idf", 10, True)
    assert served.count(NAME).count == 5


@pytest.mark.services
def test_vectors_come_to_a_collection_without_any_and_go_again(served: QdrantClient):
    served.create_collection(NAME, vectors_config={})
    served.upsert(NAME, [models.PointStruct(id=1, vector={}, payload={"x": 1})])

    served.create_vector_name(NAME, "a", DENSE)
    served.upsert(NAME, [models.PointStruct(id=2, vector={"a": [1.0, 2.0]})])
    assert [hit.id for hit in served.query_points(NAME, [1.0, 1.0], using="a").points] == [2]
    served.delete_vector_name(NAME, "a")
    served.delete_vector_name(NAME, "absent")

    assert {
        point.id: (point.payload, point.vector) for point in served.scroll(NAME, with_vectors=True)[0]
    } == {
        1: ({"x": 1}, {}),
        2: ({}, {}),
    }
    assert served.get_collection(NAME).config.params.vectors == {}


@pytest.mark.services
def test_a_named_vector_comes_beside_an_unnamed_one(served: QdrantClient):
    served.create_collection(NAME, vectors_config=TWO)
    served.upsert(NAME, [models.PointStruct(id=1, vector=[1.0, 2.0])])

    served.create_vector_name(NAME, "b", DENSE)
    served.update_vectors(NAME, [models.PointVectors(id=1, vector={"b": [3.0, 4.0]})])

    assert served.retrieve(NAME, [1], with_vectors=True)[0].vector == {"": [1.0, 2.0], "b": [3.0, 4.0]}
    assert served.query_points(NAME, [1.0, 1.0]).points[0].score == 3
    assert served.query_points(NAME, [1.0, 1.0], using="b").points[0].score == 7
    served.delete_vector_name(NAME, "b")
    assert served.retrieve(NAME, [1], with_vectors=True)[0].vector == [1.0, 2.0]


@pytest.mark.services
def test_collections_without_vectors_and_with_added_ones_survive_a_kill_and_a_snapshot(home: Path):
    with index_client(home, timeout_s=60) as client:
        client.create_collection("none", vectors_config={})
        client.upsert("none", [models.PointStruct(id=1, vector={}, payload={"x": 1})])
        client.create_collection(NAME, vectors_config=TWO)
        client.create_vector_name(NAME, "s", SPARSE)
        client.create_vector_name(NAME, "b", DENSE)
        vectors = {"": [1.0, 2.0], "b": [3.0, 4.0], "s": models.SparseVector(indices=[1], values=[1.0])}
        client.upsert(NAME, [models.PointStruct(id=1, vector=vectors)])
        kill(home)

        for name, held in (("none", {}), (NAME, vectors)):
            snapshot = client.create_snapshot(name)
            path = home / "qdrant" / "snapshots" / name / snapshot.name
            client.delete(name, [1])
            client.recover_snapshot(name, str(path))
            assert client.retrieve(name, [1], with_vectors=True)[0].vector == held


# --- names


@pytest.mark.services
def test_names_that_a_server_takes_are_taken(images: QdrantClient):
    images.create_collection("a\nb\tc", vectors_config=TWO)
    for alias in ("a:b", "a\nb", "x" * 300):
        images.update_collection_aliases(
            [
                models.CreateAliasOperation(
                    create_alias=models.CreateAlias(collection_name=NAME, alias_name=alias)
                )
            ]
        )
        assert images.count(alias).count == 2

    assert images.get_collection("a\nb\tc").points_count == 0
    images.delete_collection("a\nb\tc")


# --- writes

ONE = models.Filter(must=[value_is("i", 2)])


def payload_change(**more: Any) -> models.SetPayload:
    return models.SetPayload(payload={"n": 1}, points=[1], **more)


BY_POINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "set": (
        models.SetPayloadOperation(set_payload=payload_change(filter=ONE)),
        {"i": 1, "o": {"p": 1}, "n": 1},
    ),
    "overwrite": (
        models.OverwritePayloadOperation(overwrite_payload=payload_change(filter=ONE)),
        {"n": 1},
    ),
    "overwrite below a key": (
        models.OverwritePayloadOperation(overwrite_payload=payload_change(key="o")),
        {"n": 1},
    ),
    "delete": (
        models.DeletePayloadOperation(
            delete_payload=models.DeletePayload(keys=["i"], points=[1], filter=ONE)
        ),
        {"o": {"p": 1}},
    ),
}


@pytest.mark.services
def test_of_points_and_a_filter_the_points_are_changed_alone_and_overwriting_ignores_a_key(
    images: QdrantClient,
):
    for operation, changed in BY_POINTS.values():
        images.batch_update_points(NAME, [operation])

        assert payloads(images) == {1: changed, 2: {"i": 2, "o": {"p": 2}}}
        images.overwrite_payload(NAME, {"i": 1, "o": {"p": 1}}, [1])


EMPTY_WRITES: dict[str, tuple[int, Callable[[QdrantClient], object]]] = {
    "upsert": (400, lambda client: client.upsert(NAME, [])),
    "delete": (400, lambda client: client.delete(NAME, [])),
    "set payload": (400, lambda client: client.set_payload(NAME, {"a": 1}, points=[])),
    "overwrite payload": (400, lambda client: client.overwrite_payload(NAME, {"a": 1}, points=[])),
    "delete payload": (400, lambda client: client.delete_payload(NAME, ["i"], points=[])),
    "clear payload": (400, lambda client: client.clear_payload(NAME, [])),
    "update vectors": (422, lambda client: client.update_vectors(NAME, [])),
    "delete vectors": (422, lambda client: client.delete_vectors(NAME, [], points=[1])),
}


@pytest.mark.services
def test_a_write_of_nothing_is_refused(images: QdrantClient):
    for status, write in EMPTY_WRITES.values():
        with refused(status):
            write(images)

    assert images.count(NAME).count == 2


@pytest.mark.services
def test_a_write_without_wait_is_acknowledged_and_changes_the_points_that_exist(images: QdrantClient):
    acknowledged = [
        images.set_payload(NAME, {"n": 1}, points=[1, 9], wait=False),
        images.update_vectors(
            NAME, [models.PointVectors(id=id, vector={"a": [5.0, 5.0]}) for id in (2, 9)], wait=False
        ),
        images.delete_payload(NAME, ["o"], points=[9], wait=False),
        images.upsert(NAME, [models.PointStruct(id=3, vector={})], wait=False),
    ]

    assert [result.status for result in acknowledged] == ["acknowledged"] * 4
    images.set_payload(NAME, {"n": 3}, points=[3])  # in turn, so after those before
    assert payloads(images) == {1: {"i": 1, "o": {"p": 1}, "n": 1}, 2: {"i": 2, "o": {"p": 2}}, 3: {"n": 3}}
    assert images.retrieve(NAME, [2], with_vectors=True)[0].vector == {"a": [5.0, 5.0]}
    with refused(404, "no point with id 9"):
        images.set_payload(NAME, {"n": 1}, points=[1, 9])


# --- answers


@pytest.mark.services
def test_an_error_names_no_path_of_the_data_directory(embedded: QdrantClient, index_home: Path):
    embedded.create_collection(NAME, vectors_config=TWO)
    snapshots = index_home / "qdrant" / "snapshots" / NAME
    for location in (str(snapshots / "gone.snapshot"), "http://127.0.0.1:9/x.snapshot"):
        with pytest.raises(UnexpectedResponse) as error:
            embedded.recover_snapshot(NAME, location)
        assert str(index_home) not in str(error.value)
    embedded.delete_collection(NAME)


@pytest.mark.services
def test_a_path_that_means_nothing_is_refused_and_the_connection_goes_on(images: QdrantClient):
    for path in ("a[", "a..b"):
        with refused(400):
            images.delete_payload_index(NAME, path)
    assert images.count(NAME).count == 2
