"""The embedded index reads back all that it accepts, and keeps unreadable records."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.embedded.qdrant.engine import write_ahead_log
from storage.embedded.qdrant.process.client import IndexUnavailable, find_index, index_client, start, stop
from storage.embedded.qdrant.protocol.errors import RequestError
from storage.embedded.qdrant.protocol.json_depth import MAX_LEVELS, require_shallow
from tests.storage.test_embedded_life import kill
from tests.support.embedded_points import value_is

pytestmark = pytest.mark.services

REPOSITORY = Path(__file__).parents[2]
NAME = "pictures"
TWO = models.VectorParams(size=2, distance=models.Distance.DOT)
LEAF = models.Filter(must=[value_is("a", 1)])


@pytest.fixture
def client(home: Path) -> Iterator[QdrantClient]:
    """A client of an index that the test may kill."""
    with index_client(home, timeout_s=60) as client:
        yield client


def payload(levels: int) -> Any:
    return {"k": payload(levels - 1)} if levels else 1


def lists(levels: int) -> Any:
    """A payload of an object, and lists in it."""
    inner: Any = 1
    for _ in range(levels - 1):
        inner = [inner]
    return {"k": inner}


def must(levels: int) -> models.Filter:
    return models.Filter(must=[must(levels - 1)]) if levels else LEAF


def min_should(levels: int) -> models.Filter:
    least = models.MinShould(conditions=[min_should(levels - 1)], min_count=1) if levels else None
    return models.Filter(min_should=least) if levels else LEAF


def nested(levels: int) -> models.Filter:
    if not levels:
        return LEAF
    inner = models.Nested(key="a", filter=nested(levels - 1))
    return models.Filter(must=[models.NestedCondition(nested=inner)])


def a_point(id: int, **payload: Any) -> models.PointStruct:
    return models.PointStruct(id=id, vector={"a": [1.0, float(id)]}, payload=payload)


def upsert(client: QdrantClient, payload: Any) -> object:
    return client.upsert(NAME, [models.PointStruct(id=7, vector={}, payload=payload)])


def by_columns(client: QdrantClient, payload: Any) -> object:
    return client.upsert(NAME, models.Batch(ids=[7], vectors={"a": [[1, 1]]}, payloads=[payload]))


def in_a_batch(client: QdrantClient, payload: Any) -> object:
    change = models.SetPayload(payload=payload, points=[1])
    return client.batch_update_points(NAME, [models.SetPayloadOperation(set_payload=change)])


def make(client: QdrantClient, name: str = NAME) -> None:
    client.create_collection(name, vectors_config={"a": TWO}, sparse_vectors_config={"s": {}})
    client.upsert(name, [a_point(id, a=id) for id in range(1, 4)])


def refused(status: int, sentence: str = "") -> Any:
    return pytest.raises(UnexpectedResponse, match=rf"Unexpected Response: {status} (.|\n)*{sentence}")


PAYLOAD_WRITES: dict[str, Callable[[QdrantClient, Any], object]] = {
    "upsert": upsert,
    "columns": by_columns,
    "set by ids": lambda client, payload: client.set_payload(NAME, payload, points=[1]),
    "set by filter": lambda client, payload: client.set_payload(NAME, payload, points=LEAF),
    "overwrite": lambda client, payload: client.overwrite_payload(NAME, payload, points=[1]),
    "batch": in_a_batch,
}

FILTER_WRITES: dict[str, Callable[[QdrantClient, models.Filter], object]] = {
    "delete": lambda client, where: client.delete(NAME, where),
    "clear": lambda client, where: client.clear_payload(NAME, where),
    "set": lambda client, where: client.set_payload(NAME, {"x": 1}, points=where),
    "overwrite": lambda client, where: client.overwrite_payload(NAME, {"x": 1}, points=where),
    "delete payload": lambda client, where: client.delete_payload(NAME, ["x"], points=where),
    "delete vectors": lambda client, where: client.delete_vectors(NAME, ["a"], points=where),
    "upsert": lambda client, where: client.upsert(NAME, [a_point(1)], update_filter=where),
    "update vectors": lambda client, where: client.update_vectors(
        NAME, [models.PointVectors(id=1, vector={"a": [2.0, 2.0]})], update_filter=where
    ),
}


def some(of: Iterable[str], *often: str) -> list[Any]:
    """All of a kind, of which `make test` tries some."""
    return [pytest.param(name, marks=() if name in often else pytest.mark.full) for name in of]


# --- what is taken can be read back


@pytest.mark.parametrize("shape", [payload, pytest.param(lists, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", some(PAYLOAD_WRITES, "upsert"))
def test_a_payload_as_deep_as_the_limit_survives_a_kill_and_a_deeper_one_is_refused(
    client: QdrantClient, home: Path, name: str, shape: Callable[[int], Any]
):
    make(client)
    write, levels = PAYLOAD_WRITES[name], 123

    write(client, shape(levels))
    for too_many in (levels + 1, levels + 4, 130, 200):
        with refused(400, "deep"):
            write(client, shape(too_many))
    kill(home)

    assert shape(levels)["k"] in [point.payload.get("k") for point in client.scroll(NAME)[0]]
    client.upsert(NAME, [a_point(8)])


@pytest.mark.parametrize(
    ("key", "levels"),
    [
        (".".join("k" * 122), 1),
        pytest.param("a[0].b", 120, marks=pytest.mark.full),
        pytest.param('"a.b.c"', 122, marks=pytest.mark.full),
        pytest.param("k", 122, marks=pytest.mark.full),
    ],
)
def test_a_path_counts_with_the_payload_below_it(client: QdrantClient, home: Path, key: str, levels: int):
    make(client)

    client.set_payload(NAME, payload(levels), points=[1], key=key)
    with refused(400, "limit of 123 levels"):
        client.set_payload(NAME, payload(levels + 1), points=[1], key=key)
    kill(home)

    assert len(client.scroll(NAME)[0]) == 3
    client.create_snapshot(NAME)


@pytest.mark.parametrize(
    ("deep", "of_delete", "of_others"),
    [
        pytest.param(must, 61, 60, marks=pytest.mark.full),
        (nested, 30, 30),
        pytest.param(min_should, 40, 40, marks=pytest.mark.full),
    ],
)
def test_a_filter_as_deep_as_the_limit_survives_a_kill_and_a_deeper_one_is_refused(
    client: QdrantClient,
    home: Path,
    deep: Callable[[int], models.Filter],
    of_delete: int,
    of_others: int,
):
    make(client)
    for name, write in FILTER_WRITES.items():
        levels = of_delete if name in ("delete", "clear") else of_others
        write(client, deep(levels))
        with refused(400, "limit is 127"):
            write(client, deep(levels + 1))
    kill(home)

    points, _ = client.scroll(NAME, scroll_filter=deep(of_others))
    assert len(points) <= 3
    client.upsert(NAME, [a_point(8)])


@pytest.mark.full
def test_the_deepest_condition_is_counted_with_its_own_levels(client: QdrantClient, home: Path):
    make(client)
    line = models.GeoLineString(
        points=[models.GeoPoint(lon=x, lat=y) for x, y in [(0, 0), (1, 0), (1, 1), (0, 0)]]
    )
    holes = models.GeoPolygon(exterior=line, interiors=[line])
    inner = models.Filter(must=[models.FieldCondition(key="a", geo_polygon=holes)])

    def nested_in(levels: int) -> models.Filter:
        return models.Filter(must=[nested_in(levels - 1)]) if levels else inner

    client.delete(NAME, nested_in(59))
    with refused(400, "limit is 127"):
        client.delete(NAME, nested_in(60))
    kill(home)

    assert len(client.scroll(NAME)[0]) == 3


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("d", 0),
        ("d", 65_537),
        ("d", 10**9),
        ("d", 2**40),
        ("d\0", 2),
        ("d" * 201, 2),
        ("d" * 256, 2),
        ("ü" * 101, 2),
        *((f"c{mark}d", 2) for mark in ':\\*"|<>?'),
    ],
)
def test_a_vector_that_the_engine_cannot_keep_is_refused_and_the_next_write_works(
    served: QdrantClient, name: str, size: int
):
    served.create_collection(NAME, vectors_config={"a": TWO})
    dense = models.DenseVectorNameConfig(dense=models.DenseVectorConfig(size=size, distance="Dot"))
    sparse = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
    kinds = [dense, sparse] if size == 2 else [dense]

    for config in kinds:
        with pytest.raises(UnexpectedResponse, match=r"Unexpected Response: (404|422)"):
            served.create_vector_name(NAME, name, config)

    assert served.upsert(NAME, [a_point(1)]).status == "completed"
    with pytest.raises(UnexpectedResponse, match=r"Unexpected Response: (400|422)"):
        served.create_collection(
            "other", vectors_config={name: models.VectorParams(size=size, distance="Dot")}
        )
    if size == 2:
        with pytest.raises(UnexpectedResponse, match=r"Unexpected Response: (400|422)"):
            served.create_collection("other", vectors_config={}, sparse_vectors_config={name: {}})


def test_a_vector_of_the_same_schema_stays_as_it_is_and_another_is_refused(served: QdrantClient):
    tuned = models.VectorParams(size=2, distance="Dot", on_disk=True, hnsw_config=models.HnswConfigDiff(m=8))
    served.create_collection(NAME, vectors_config={"a": tuned}, sparse_vectors_config={"s": {}})
    served.upsert(NAME, [a_point(1)])

    def add(name: str, size: int | None) -> object:
        dense = models.DenseVectorConfig(size=size or 0, distance="Dot")
        sparse = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
        return served.create_vector_name(
            NAME, name, models.DenseVectorNameConfig(dense=dense) if size else sparse
        )

    add("a", 2)
    add("s", None)
    assert served.get_collection(NAME).config.params.vectors["a"] == tuned
    for name, size, sentence in (("a", 3, ""), ("a", None, "dense vector"), ("s", 2, "sparse vector")):
        with pytest.raises(UnexpectedResponse, match=rf"Unexpected Response: (400|409) (.|\n)*{sentence}"):
            add(name, size)
    assert served.retrieve(NAME, [1], with_vectors=True)[0].vector == {"a": [1.0, 1.0]}


def test_the_list_of_collections_can_be_read_back_whatever_metadata_it_is_given(
    client: QdrantClient, home: Path
):
    client.create_collection(NAME, vectors_config=TWO, metadata=payload(120))
    for levels in (127, 150, 197, 240):
        with refused(400, "limit is 127"):
            client.create_collection("other", vectors_config=TWO, metadata=payload(levels))
        with refused(400, "limit is 127"):
            client.update_collection(NAME, metadata=payload(levels))
    kill(home)

    assert client.get_collection(NAME).config.metadata == payload(120)
    assert [one.name for one in client.get_collections().collections] == [NAME]


def test_writes_before_the_deletion_of_a_vector_are_not_lost_by_a_kill(client: QdrantClient, home: Path):
    make(client)
    dense = models.DenseVectorNameConfig(dense=models.DenseVectorConfig(size=2, distance="Dot"))
    client.create_vector_name(NAME, "d", dense)
    client.upsert(NAME, [models.PointStruct(id=9, vector={"d": [1.0, 1.0]}, payload={"n": 9})])

    client.delete_vector_name(NAME, "d")
    kill(home)

    assert client.retrieve(NAME, [9])[0].payload == {"n": 9}


@pytest.mark.parametrize(
    ("body", "levels"),
    [
        (b"[" * 127 + b"]" * 127, 127),
        (b"[" * 128 + b"]" * 128, 128),
        (b'{"a":' * 128 + b"1" + b"}" * 128, 128),
        (b'["' + b"[" * 500 + b'"]', 1),
        (b'["\\"' + b"[" * 500 + b'"]', 1),
        (b'["\\\\",' + b"[" * 200 + b"]" * 200 + b"]", 201),
        (b'["a\\n",' + b"[" * 200 + b"]" * 200 + b"]", 201),
        (b"[" + b"[]," * 500 + b"[]]", 2),
    ],
)
def test_the_depth_of_a_body_is_that_of_its_brackets_outside_of_strings(body: bytes, levels: int):
    if levels <= MAX_LEVELS:
        require_shallow(bytearray(body))
    else:
        with pytest.raises(RequestError, match=f"nested {levels} levels deep"):
            require_shallow(bytearray(body))


# --- what cannot be read


def written_by_an_older_release(home: Path, code: str) -> Path:
    """Write to the only shard with the engine alone, as before a kill."""
    stop(home)
    [shard] = (home / "qdrant" / "shards").iterdir()
    lines = f"""if True:
        import os, sys
        import qdrant_edge as edge
        from qdrant_edge import UpdateOperation as Op
        def deep(levels):
            return {{"k": deep(levels - 1)}} if levels else 1
        def point(id, payload):
            return edge.Point(id, {{"a": [1.0, 1.0]}}, payload)
        shard = edge.EdgeShard.load(sys.argv[1])
        try:
            {code}
        except BaseException:
            pass
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", lines, str(shard)], check=False, capture_output=True)
    return shard


BAD_RECORDS = {
    "payload": ("shard.update(Op.upsert_points([point(5, deep(124))]))", "upsert_points"),
    "path": ("shard.update(Op.set_payload([1], deep(100), '.'.join('k' * 100)))", "set_payload"),
    "size 0": ("shard.update(Op.create_dense_vector('d', 0, edge.Distance.Dot))", "create_vector_name"),
    "panic": ("shard.update(Op.create_dense_vector('d', 10**9, edge.Distance.Dot))", "create_vector_name"),
    "abort": ("shard.update(Op.create_dense_vector('d', 2**40, edge.Distance.Dot))", "create_vector_name"),
    "name": ("shard.update(Op.create_sparse_vector('d' * 256))", "create_vector_name"),
}


@pytest.mark.parametrize("record", some(BAD_RECORDS, "payload"))
def test_a_log_that_cannot_be_replayed_costs_only_what_comes_after_its_bad_record(
    client: QdrantClient, home: Path, record: str
):
    make(client)
    code, kind = BAD_RECORDS[record]
    shard = written_by_an_older_release(
        home, f"shard.update(Op.upsert_points([point(4, {{'before': 1}})])); {code}"
    )
    number = write_ahead_log.records(shard / "wal")[-1].number

    if record == "abort":
        with pytest.raises(Exception, match=r"disconnected|reset"):
            client.count(NAME)
    info = client.get_collection(NAME)

    assert {point.id for point in client.scroll(NAME, with_payload=False)[0]} >= {1, 2, 3, 4}
    assert client.retrieve(NAME, [4])[0].payload == {"before": 1}
    assert info.status == "red"
    sentence = info.optimizer_status.error
    assert f"record {number} ({kind})" in sentence
    assert "sightline reconcile --repair" in sentence
    [kept] = (home / "qdrant" / "aside").iterdir()
    assert str(kept.relative_to(home)) in sentence
    assert kind.encode() in kept.read_bytes()

    client.upsert(NAME, [a_point(4, after=1)])
    kill(home)
    assert client.get_collection(NAME).status == "red"
    assert client.retrieve(NAME, [4])[0].payload == {"after": 1}

    client.update_collection(NAME, metadata={"repaired": True})
    kill(home)
    assert client.get_collection(NAME).status == "green"
    assert client.get_collection(NAME).optimizer_status == "ok"
    assert kept.exists()


def test_a_log_whose_files_are_damaged_is_set_aside(client: QdrantClient, home: Path):
    make(client)
    stop(home)
    [shard] = (home / "qdrant" / "shards").iterdir()
    for file in (shard / "wal").glob("open-*"):
        file.write_bytes(b"damaged" + file.read_bytes()[7:])

    assert len(client.scroll(NAME)[0]) == 3
    assert client.get_collection(NAME).status == "red"
    client.upsert(NAME, [a_point(1, again=1)])
    kill(home)
    assert client.retrieve(NAME, [1])[0].payload == {"again": 1}


@pytest.mark.parametrize("place", [40, *(pytest.param(place, marks=pytest.mark.full) for place in (9, -5))])
def test_damage_to_a_record_is_told_and_what_comes_before_it_stays(
    client: QdrantClient, home: Path, place: int
):
    make(client)
    for id in (4, 5, 6):
        client.upsert(NAME, [a_point(id)])
    kill(home)
    [shard] = (home / "qdrant" / "shards").iterdir()
    damaged = write_ahead_log.records(shard / "wal")[2]
    at = (damaged.start if place > 0 else damaged.end) + place
    content = bytearray(damaged.file.read_bytes())
    content[at] ^= 0xFF
    damaged.file.write_bytes(content)

    info = client.get_collection(NAME)

    assert {point.id for point in client.scroll(NAME)[0]} >= {1, 2, 3, 4}
    assert info.status == "red"
    assert "record 2 " in info.optimizer_status.error
    [kept] = (home / "qdrant" / "aside").iterdir()
    assert kept.read_bytes() == bytes(content[damaged.start :]).rstrip(b"\0")
    client.upsert(NAME, [a_point(id, after=1) for id in (1, 5)])
    kill(home)
    assert [point.payload for point in client.retrieve(NAME, [1, 5])] == [{"after": 1}] * 2


def test_a_record_that_a_kill_left_unfinished_is_no_damage(client: QdrantClient, home: Path):
    make(client)
    client.upsert(NAME, [a_point(4, text="x" * 1000)])
    kill(home)
    [shard] = (home / "qdrant" / "shards").iterdir()
    last = write_ahead_log.records(shard / "wal")[-1]
    content = bytearray(last.file.read_bytes())
    content[last.end - 500 : last.end] = bytes(500)
    last.file.write_bytes(content)

    client.upsert(NAME, [a_point(5)])
    kill(home)

    assert {point.id for point in client.scroll(NAME)[0]} >= {1, 2, 3, 5}
    assert client.get_collection(NAME).status == "green"


@given(record=st.binary(min_size=8, max_size=300), seed=st.integers(0, 2**32 - 1))
def test_a_checksum_is_the_one_that_is_made_bit_by_bit(record: bytes, seed: int):
    assert write_ahead_log.checksum(record, seed) == bit_by_bit(record, seed)


def bit_by_bit(record: bytes, before: int) -> int:
    remainder = int(f"{before:032b}"[::-1], 2)
    for byte in record:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def test_a_segment_that_cannot_be_read_stops_its_collection_and_no_other(client: QdrantClient, home: Path):
    make(client)
    make(client, "other")
    stop(home)
    state = (home / "qdrant" / "collections.json").read_text()
    broken, _ = sorted((home / "qdrant" / "shards").iterdir(), key=lambda shard: state.index(shard.name))
    [segment] = broken.glob("segments/*/segment.json")
    segment.write_bytes(b"")

    for _ in range(2):
        with refused(500, "delete it and make it again with `sightline reindex`"):
            client.count(NAME)
    assert client.count("other").count == 3
    assert find_index(home).points == 3
    assert segment.read_bytes() == b""
    assert write_ahead_log.records(broken / "wal")
    assert not (home / "qdrant" / "aside").exists()
    assert client.delete_collection(NAME)
    make(client)
    assert client.count(NAME).count == 3


@pytest.mark.full
def test_a_shard_whose_segments_are_gone_is_not_taken_for_an_empty_one(client: QdrantClient, home: Path):
    make(client)
    stop(home)
    [shard] = (home / "qdrant" / "shards").iterdir()
    (shard / "segments").rename(home / "elsewhere")

    with refused(500, "cannot be opened"):
        client.count(NAME)

    (home / "elsewhere").rename(shard / "segments")
    assert client.count(NAME).count == 3


def test_without_the_list_of_collections_nothing_is_removed(client: QdrantClient, home: Path):
    make(client)
    stop(home)
    listed = home / "qdrant" / "collections.json"
    listed.rename(home / "saved")

    with pytest.raises(IndexUnavailable, match=r"collections.json is missing.*put back a copy of it"):
        start(home)

    (home / "saved").rename(listed)
    assert len(client.scroll(NAME)[0]) == 3


def test_a_new_index_writes_its_list_of_collections_at_once(home: Path):
    start(home)

    assert (home / "qdrant" / "collections.json").exists()


@pytest.mark.full
def test_an_older_list_of_collections_costs_no_folder(client: QdrantClient, home: Path):
    make(client)
    listed = home / "qdrant" / "collections.json"
    older = listed.read_text()
    client.delete_collection(NAME)
    make(client, "later")
    stop(home)
    newer = listed.read_text()
    listed.write_text(older)

    with refused(500, NAME):
        client.count(NAME)
    stop(home)
    listed.write_text(newer)

    assert client.count("later").count == 3


def test_a_panic_of_the_engine_leaves_the_collection_in_use(home: Path):
    code = """if True:
        import pathlib, sys
        import qdrant_edge as edge
        from qdrant_client import models
        from storage.embedded.qdrant.engine.bindings import EnginePanic
        from storage.embedded.qdrant.engine.store import Store
        store = Store(pathlib.Path(sys.argv[1]))
        config = {"a": models.VectorParams(size=2, distance="Dot")}
        store.create("c", models.CreateCollection(vectors=config))
        collection = store.get("c")
        point = edge.Point(1, {"a": [1.0, 1.0]}, {"n": 1})
        collection.alter(edge.UpdateOperation.upsert_points([point]))
        try:
            collection.alter(edge.UpdateOperation.create_dense_vector("d", 10**9, edge.Distance.Dot))
        except EnginePanic as error:
            print(error)
        collection.alter(edge.UpdateOperation.upsert_points([edge.Point(2, {"a": [1.0, 1.0]}, {})]))
        print(collection.points, collection.info().status.value)
        store.close()
        print(Store(pathlib.Path(sys.argv[1])).get("c").points)
    """
    home.mkdir(exist_ok=True)

    ran = subprocess.run(
        [sys.executable, "-c", code, str(home)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert ran.stdout.splitlines() == ["the engine panicked: attempt to divide by zero", "2 green", "2"]
