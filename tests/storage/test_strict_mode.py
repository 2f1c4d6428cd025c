"""Requests stay within the limits that strict mode sets.

The embedded index has no strict mode: a stand-in before it reports limits, and rejects requests beyond them
in the words of a server. It was not tried on a server.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.encoders.sentence_encoder import unit_rows
from storage import qdrant
from storage.qdrant import Point
from storage.qdrant.limits import Limits, limits_within
from storage.qdrant.search import NOTHING, _condition
from storage.qdrant.snapshots import load_points, make_collection, save_points, shape_of
from storage.records import Digest
from tests.support.builders import an_item

STRICT = {
    "enabled": True,
    "max_query_limit": 3,
    "upsert_max_batchsize": 2,
    "condition_max_size": 4,
    "search_max_batchsize": 2,
    "unindexed_filtering_retrieve": False,
}
MANY = 9
X, *_ = unit_rows(np.eye(3))


def test_a_collection_without_strict_mode_has_our_sizes():
    off = models.StrictModeConfigOutput(enabled=False, max_query_limit=3)

    assert limits_within(None) == limits_within(off) == Limits(1000, 64, 100_000, 1000)


def test_sizes_are_the_least_of_ours_and_the_servers():
    assert limits_within(models.StrictModeConfigOutput(**STRICT)) == Limits(3, 2, 4, 2)
    assert limits_within(models.StrictModeConfigOutput(enabled=True, max_query_limit=5000)).page == 1000


@pytest.mark.parametrize(
    ("indexed", "value", "kept"),
    [
        (None, "7", [("match", "7"), ("match", 7), ("range", 7)]),
        ({"metadata.year": "integer"}, "7", [("match", 7), ("range", 7)]),
        ({"metadata.year": "float"}, "7", [("range", 7)]),
        ({"metadata.year": "keyword"}, "7", [("match", "7")]),
        ({"metadata.year": "bool"}, "true", [("match", True)]),
        ({"metadata.other": "keyword"}, "7", [("match", "7"), ("match", 7), ("range", 7)]),
    ],
)
def test_a_filter_reads_a_value_as_the_index_of_its_field_does(
    indexed: dict[str, str] | None, value: str, kept: list[tuple[str, object]]
):
    ways = _condition("year", value, indexed).should

    assert [("match", way.match.value) if way.match else ("range", way.range.gte) for way in ways] == kept


def test_a_value_that_the_index_cannot_hold_matches_nothing_not_everything():
    assert _condition("year", "spring", {"metadata.year": "integer"}).should == [NOTHING]


def beyond(path: str, body: dict[str, object]) -> str | None:
    """Return why strict mode rejects a request."""
    has_id = [len(one["has_id"]) for one in (body.get("filter") or {}).get("must") or [] if "has_id" in one]
    sizes = {
        "max_query_limit": body.get("limit") or len(body.get("ids") or []),
        "upsert_max_batchsize": len(body.get("points") or body.get("operations") or []),
        "search_max_batchsize": len(body.get("searches") or []),
        "condition_max_size": max(has_id, default=0),
    }
    if path.endswith("/delete"):  # counts by no limit
        return None
    over = [
        f"Limit exceeded {size} > {STRICT[name]} for {name}"
        for name, size in sizes.items()
        if size > STRICT[name]
    ]
    return f"Bad request: {over[0]}. Help: Reduce it." if over else None


@pytest.fixture
def strict(embedded: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantClient]:
    send = httpx.Client.send

    def limited(self: httpx.Client, request: httpx.Request, **options: object) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        if "/points" in path and isinstance(body, dict) and (why := beyond(path, body)):
            return httpx.Response(400, json={"status": {"error": why}}, request=request)
        response = send(self, request, **options)
        if request.method == "GET" and path.count("/") == 2 and path.startswith("/collections/"):
            answer = response.json()
            if "result" in answer:
                answer["result"]["config"]["strict_mode_config"] = STRICT
            return httpx.Response(response.status_code, json=answer, request=request)
        return response

    monkeypatch.setattr(httpx.Client, "send", limited)
    yield embedded
    monkeypatch.undo()
    for name in qdrant.list_collections(embedded):
        embedded.delete_collection(name)


def test_points_are_written_read_compared_saved_and_deleted_within_the_limits(
    strict: QdrantClient, tmp_path: Path
):
    points = [
        Point(
            an_item(f"{n}", texts=(), sha256="0" * 64), Digest(f"c{n}", "r"), X, np.empty((0, 3), np.float32)
        )
        for n in range(MANY)
    ]
    ids = sorted(point.item.id for point in points)
    name = qdrant.create_collection(
        strict, model="m", fingerprint="strict", dim=3, filter_fields={"year": "integer"}
    )
    collection = qdrant.describe(strict, name)

    qdrant.upsert(strict, collection, points)
    with pytest.raises(UnexpectedResponse, match="max_query_limit"):
        strict.scroll(name, limit=MANY)
    qdrant.overwrite_payloads(strict, name, {point.item.id: (point.item, point.digest) for point in points})

    assert [entry.id for entry in qdrant.scroll_entries(strict, name)] == ids
    assert [id for id, _ in qdrant.scroll_digests(strict, name, ids[::-1])] == ids
    assert len(dict(qdrant.scroll_image_vectors(strict, name))) == MANY
    assert len(qdrant.image_vectors_of(strict, name, {p.item.id: p.digest.content for p in points})) == MANY
    assert len(qdrant.nearest_images(strict, collection, np.stack([X] * 5), 2)) == 5
    assert qdrant.sampled_recall(strict, name, ids, 2) is not None
    found = qdrant.search_points(
        strict, collection, X, using="image", limit=3, where={"year": "7", "source": "x"}
    )
    assert found == []

    assert save_points(strict, name, tmp_path / "points") == MANY
    make_collection(strict, f"{name}2", shape_of(strict, name))
    assert load_points(strict, f"{name}2", tmp_path / "points") == MANY
    assert qdrant.delete_everywhere(strict, ids).keys() == set(ids)


def test_the_fields_that_we_filter_by_have_an_index(strict: QdrantClient):
    name = qdrant.create_collection(
        strict, model="m", fingerprint="strict", dim=3, filter_fields={"year": "integer"}
    )

    assert qdrant.describe(strict, name).indexed_only == {
        "source": "keyword",
        "key": "keyword",
        "metadata.year": "integer",
    }
