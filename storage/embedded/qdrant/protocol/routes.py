"""Route the requests of Qdrant's REST API."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from qdrant_client import models
from qdrant_client.http.models import QueryResponse  # `models` has another one of this name, of fastembed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from storage.embedded.qdrant.engine import snapshots
from storage.embedded.qdrant.engine.bindings import EngineFault
from storage.embedded.qdrant.engine.graphs import Graphs, update_collection
from storage.embedded.qdrant.engine.store import Store
from storage.embedded.qdrant.engine.target import Target
from storage.embedded.qdrant.protocol import reads, writes
from storage.embedded.qdrant.protocol.distance_matrix import matrix_offsets, matrix_pairs
from storage.embedded.qdrant.protocol.errors import NotFound, NotSupported
from storage.embedded.qdrant.protocol.groups import query_groups
from storage.embedded.qdrant.protocol.http import Activity, Gateway
from storage.embedded.qdrant.protocol.long_results import retrieve_any, scroll_any
from storage.embedded.qdrant.protocol.query import query_points
from storage.embedded.qdrant.protocol.writes import Write

COLLECTION = "/collections/{name}"
POINTS = f"{COLLECTION}/points"
EVERY_METHOD = ("GET", "PUT", "POST", "PATCH", "DELETE")
DONE = models.UpdateResult(status=models.UpdateStatus.COMPLETED)
ACKNOWLEDGED = models.UpdateResult(status=models.UpdateStatus.ACKNOWLEDGED)
"""Response to a write without `wait`, which is applied and in the write-ahead log all the same."""

log = logging.getLogger("sightline.qdrant")

Translate = Callable[[Any, Any], list[Write]]


@dataclass(frozen=True, slots=True)
class IndexApp:
    """Represent the open index and its ASGI application."""

    store: Store
    graphs: Graphs
    activity: Activity
    asgi: Starlette
    key: str

    @classmethod
    @contextmanager
    def open(cls, folder: Path, key: str) -> Iterator["IndexApp"]:
        """Open the index, and sync and close it at the end.

        Clients authenticate with `key`.
        """
        store, activity = Store(folder), Activity()
        app = Starlette(routes=list(_routes(store, Gateway(key, activity, store.reopen, folder.parent))))
        try:
            yield cls(store, Graphs(store), activity, app, key)
        finally:
            store.close()


def _routes(store: Store, gateway: Gateway) -> Iterator[Route]:
    yield from _service_routes(store, gateway)
    yield from _collection_routes(store, gateway)
    yield from _write_routes(store, gateway)
    yield from _read_routes(store, gateway)
    yield from snapshots.routes(store, gateway)
    for method in EVERY_METHOD:
        yield gateway.route(method, "/{path:path}", _unsupported)


def _service_routes(store: Store, gateway: Gateway) -> Iterator[Route]:
    yield gateway.route("GET", "/", lambda *_: _version())
    for name in ("healthz", "livez", "readyz"):
        yield gateway.route(
            "GET", f"/{name}", lambda *_, name=name: PlainTextResponse(f"{name} check passed")
        )
    yield gateway.route("GET", "/metrics", lambda *_: _metrics(store, gateway.activity))


def _collection_routes(store: Store, gateway: Gateway) -> Iterator[Route]:
    def act(method: str, path: str, do: Callable[..., Any], body: Any = None) -> Route:
        """Route to `do`, with the names in the path and the body."""

        def with_names(request: Request, parsed: Any) -> Any:
            names = request.path_params.values()
            return do(*names) if body is None else do(*names, parsed)

        return gateway.route(method, path, with_names, body)

    vector = f"{COLLECTION}/vectors/{{vector}}"
    yield act("GET", "/collections", lambda: _list_collections(store))
    yield act("GET", COLLECTION, lambda name: store.get(name).info())
    yield act("GET", f"{COLLECTION}/exists", lambda name: {"exists": store.exists(name)})
    yield act("PUT", COLLECTION, _returning(store.create, True), models.CreateCollection)
    yield act("PATCH", COLLECTION, partial(update_collection, store), models.UpdateCollection)
    yield act("DELETE", COLLECTION, store.delete)
    yield act("GET", f"{COLLECTION}/aliases", lambda name: _aliases(store, name))
    yield act("GET", "/aliases", lambda: _aliases(store))
    aliases = _returning(store.change_aliases, True)
    yield act("POST", "/collections/aliases", aliases, models.ChangeAliasesOperation)
    yield act("PUT", f"{COLLECTION}/index", _returning(store.create_index, DONE), models.CreateFieldIndex)
    yield act("DELETE", f"{COLLECTION}/index/{{field:path}}", _returning(store.delete_index, DONE))
    yield act("PUT", vector, _returning(store.create_vector, DONE), models.VectorNameConfig)
    yield act("DELETE", vector, _returning(store.delete_vector, DONE))


def _returning(do: Callable[..., None], answer: Any) -> Callable[..., Any]:
    """Return a function that calls `do` and returns `answer`."""

    def act(*given: Any) -> Any:
        do(*given)
        return answer

    return act


def _write_routes(store: Store, gateway: Gateway) -> Iterator[Route]:
    def act(method: str, path: str, body: Any, check: Translate) -> Route:
        def write(request: Request, body: Any) -> models.UpdateResult:
            collection = store.get(request.path_params["name"])
            wait = _waits(request)
            collection.apply(check(body, collection.spaces), wait=wait)
            return DONE if wait else ACKNOWLEDGED

        return gateway.route(method, path, write, body)

    def batch(request: Request, body: models.UpdateOperations) -> list[models.UpdateResult]:
        collection = store.get(request.path_params["name"])
        steps = writes.batch(body, collection.spaces)
        wait = _waits(request)
        collection.apply(writes.flatten(steps), wait=wait)
        return [DONE if wait else ACKNOWLEDGED for _ in steps]

    yield act("PUT", POINTS, models.PointInsertOperations, writes.upsert)
    yield act("POST", f"{POINTS}/delete", models.PointsSelector, writes.delete)
    yield act("POST", f"{POINTS}/payload", models.SetPayload, writes.set_payload)
    yield act("PUT", f"{POINTS}/payload", models.SetPayload, writes.overwrite_payload)
    yield act("POST", f"{POINTS}/payload/delete", models.DeletePayload, writes.delete_payload)
    yield act("POST", f"{POINTS}/payload/clear", models.PointsSelector, writes.clear_payload)
    yield act("PUT", f"{POINTS}/vectors", models.UpdateVectors, writes.update_vectors)
    yield act("POST", f"{POINTS}/vectors/delete", models.DeleteVectors, writes.delete_vectors)
    yield gateway.route("POST", f"{POINTS}/batch", batch, models.UpdateOperations)


def _waits(request: Request) -> bool:
    return request.query_params.get("wait", "").lower() == "true"


def _read_routes(store: Store, gateway: Gateway) -> Iterator[Route]:
    def find(name: str) -> Target:
        collection = store.get(name)
        return Target(collection.shard, collection.spaces)

    def found(body: models.QueryRequest, target: Target) -> QueryResponse:
        return QueryResponse(points=query_points(body, target, find))

    def act(path: str, body: Any, read: Callable[[Any, Target], Any]) -> Route:
        return gateway.route(
            "POST", path, lambda request, body: read(body, find(request.path_params["name"])), body
        )

    def act_on_pages(path: str, body: Any, read: Callable[[Any, Callable[[], Target]], Any]) -> Route:
        def answer(request: Request, body: Any) -> Any:
            collection = store.get(request.path_params["name"])  # the alias may lead elsewhere later
            return read(body, lambda: find(collection.name))

        return gateway.route("POST", path, answer, body)

    yield act_on_pages(POINTS, models.PointRequest, retrieve_any)
    yield act_on_pages(f"{POINTS}/scroll", models.ScrollRequest, scroll_any)
    yield act(f"{POINTS}/count", models.CountRequest, reads.count)
    yield act(f"{COLLECTION}/facet", models.FacetRequest, reads.facet)
    yield act(f"{POINTS}/query", models.QueryRequest, found)
    yield act(
        f"{POINTS}/query/batch",
        models.QueryRequestBatch,
        lambda body, target: [found(one, target) for one in body.searches],
    )
    yield act(
        f"{POINTS}/query/groups",
        models.QueryGroupsRequest,
        lambda body, target: query_groups(body, target, find),
    )
    yield act(f"{POINTS}/search/matrix/pairs", models.SearchMatrixRequest, matrix_pairs)
    yield act(f"{POINTS}/search/matrix/offsets", models.SearchMatrixRequest, matrix_offsets)
    yield gateway.route(
        "GET",
        f"{POINTS}/{{id}}",
        lambda request, _: _get_point(request.path_params["id"], find(request.path_params["name"])),
    )


def _get_point(id: str, target: Target) -> models.Record:
    wanted = models.PointRequest(ids=[int(id) if id.isdecimal() else id], with_vector=True)
    found = reads.retrieve(wanted, target)
    if not found:
        raise NotFound(f"no point with id {id}")
    return found[0]


def _list_collections(store: Store) -> models.CollectionsResponse:
    return models.CollectionsResponse(
        collections=[models.CollectionDescription(name=name) for name in store.names]
    )


def _aliases(store: Store, collection: str | None = None) -> models.CollectionsAliasesResponse:
    return models.CollectionsAliasesResponse(
        aliases=[
            models.AliasDescription(alias_name=alias, collection_name=real)
            for alias, real in store.aliases.items()
            if collection in (None, real)
        ]
    )


def _version() -> Response:
    answer = models.VersionInfo(
        title=f"sightline embedded index on qdrant-edge {metadata.version('qdrant-edge-py')}",
        version=metadata.version("qdrant-client"),  # the release whose requests and answers these are
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _metrics(store: Store, activity: Activity) -> Response:
    lines = [
        "# HELP app_info information about the index",
        "# TYPE app_info gauge",
        f'app_info{{name="sightline",version="{metadata.version("qdrant-client")}"}} 1',
        "# HELP collections_total number of collections",
        "# TYPE collections_total gauge",
        f"collections_total {len(store.names)}",
        "# HELP collection_points number of points in a collection",
        "# TYPE collection_points gauge",
        *(f'collection_points{{id="{_label(name)}"}} {points}' for name, points in _count_points(store)),
    ]
    text = "\n".join(lines).encode() + b"\n" + generate_latest(activity.registry)
    return Response(text, media_type="text/plain; version=0.0.4")


def _count_points(store: Store) -> Iterator[tuple[str, int]]:
    """Yield the number of points of each collection that can be opened."""
    for name in store.names:
        try:
            yield name, store.get(name).points
        except EngineFault:
            log.exception("%s: not counted", name)


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unsupported(request: Request, _: Any) -> None:
    raise NotSupported(
        f"the embedded index does not answer {request.method} {request.url.path}; a Qdrant server may: "
        "set SIGHTLINE_QDRANT__URL to one"
    )
