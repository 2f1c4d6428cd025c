"""Everything the index answers: one table of routes, in Qdrant's own words."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

from storage.embedded.qdrant import reads, snapshots, writes
from storage.embedded.qdrant.graphs import Graphs
from storage.embedded.qdrant.groups import query_groups
from storage.embedded.qdrant.http import Activity, Door
from storage.embedded.qdrant.matrix import matrix_offsets, matrix_pairs
from storage.embedded.qdrant.query import query_points
from storage.embedded.qdrant.refusals import NotFound, NotSupported
from storage.embedded.qdrant.store import Store
from storage.embedded.qdrant.target import Target
from storage.embedded.qdrant.writes import Write

COLLECTION = "/collections/{name}"
POINTS = f"{COLLECTION}/points"
EVERY_METHOD = ("GET", "PUT", "POST", "PATCH", "DELETE")
Checked = Callable[[Any, Any], list[Write]]


@dataclass(frozen=True, slots=True)
class Served:
    """The index while it is open, and the app that answers for it."""

    store: Store
    graphs: Graphs
    activity: Activity
    app: Starlette
    key: str

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, key: str) -> Iterator["Served"]:
        """Open the index in `folder`, to be reached with `key`; sync and close it on the way out."""
        store, activity = Store(folder), Activity()
        app = Starlette(routes=list(_routes(store, Door(key, activity))))
        try:
            yield cls(store, Graphs(store), activity, app, key)
        finally:
            store.close()


def _routes(store: Store, door: Door) -> Iterator[Route]:
    yield from _service_routes(store, door)
    yield from _collection_routes(store, door)
    yield from _write_routes(store, door)
    yield from _read_routes(store, door)
    yield from snapshots.routes(store, door)
    for method in EVERY_METHOD:
        yield door.route(method, "/{path:path}", _not_spoken)


def _service_routes(store: Store, door: Door) -> Iterator[Route]:
    yield door.route("GET", "/", lambda *_: _version())
    for name in ("healthz", "livez", "readyz"):
        yield door.route("GET", f"/{name}", lambda *_, name=name: PlainTextResponse(f"{name} check passed"))
    yield door.route("GET", "/metrics", lambda *_: _metrics(store, door.activity))


def _collection_routes(store: Store, door: Door) -> Iterator[Route]:
    def act(method: str, path: str, body: Any, do: Callable[[str, Any], Any]) -> Route:
        return door.route(method, path, lambda request, body: do(request.path_params["name"], body), body)

    yield door.route("GET", "/collections", lambda *_: _listed(store))
    yield act("GET", COLLECTION, None, lambda name, _: store.get(name).info())
    yield act("GET", f"{COLLECTION}/exists", None, lambda name, _: {"exists": store.exists(name)})
    yield act("PUT", COLLECTION, models.CreateCollection, lambda *given: _true(store.create(*given)))
    yield act("PATCH", COLLECTION, models.UpdateCollection, lambda *given: _true(store.update(*given)))
    yield act("DELETE", COLLECTION, None, lambda name, _: store.delete(name))
    yield act("GET", f"{COLLECTION}/aliases", None, lambda name, _: _aliases(store, name))
    yield door.route("GET", "/aliases", lambda *_: _aliases(store))
    yield door.route(
        "POST",
        "/collections/aliases",
        lambda _, body: _true(store.change_aliases(body.actions)),
        models.ChangeAliasesOperation,
    )
    yield act("PUT", f"{COLLECTION}/index", models.CreateFieldIndex, lambda *given: _index(store, *given))
    yield door.route(
        "DELETE",
        f"{COLLECTION}/index/{{field:path}}",
        lambda request, _: _done(
            store.delete_index(request.path_params["name"], request.path_params["field"])
        ),
    )
    yield door.route(
        "PUT",
        f"{COLLECTION}/vectors/{{vector}}",
        lambda request, body: _done(
            store.create_vector(request.path_params["name"], request.path_params["vector"], body)
        ),
        models.VectorNameConfig,
    )
    yield door.route(
        "DELETE",
        f"{COLLECTION}/vectors/{{vector}}",
        lambda request, _: _done(
            store.delete_vector(request.path_params["name"], request.path_params["vector"])
        ),
    )


def _write_routes(store: Store, door: Door) -> Iterator[Route]:
    def act(method: str, path: str, body: Any, check: Checked) -> Route:
        def write(request: Request, body: Any) -> models.UpdateResult:
            collection = store.get(request.path_params["name"])
            collection.apply(check(body, collection.spaces))
            return _done()

        return door.route(method, path, write, body)

    def batch(request: Request, body: models.UpdateOperations) -> list[models.UpdateResult]:
        collection = store.get(request.path_params["name"])
        steps = writes.batch(body, collection.spaces)
        collection.apply(writes.all_of(steps))
        return [_done() for _ in steps]

    yield act("PUT", POINTS, models.PointInsertOperations, writes.upsert)
    yield act("POST", f"{POINTS}/delete", models.PointsSelector, writes.delete)
    yield act("POST", f"{POINTS}/payload", models.SetPayload, writes.set_payload)
    yield act("PUT", f"{POINTS}/payload", models.SetPayload, writes.overwrite_payload)
    yield act("POST", f"{POINTS}/payload/delete", models.DeletePayload, writes.delete_payload)
    yield act("POST", f"{POINTS}/payload/clear", models.PointsSelector, writes.clear_payload)
    yield act("PUT", f"{POINTS}/vectors", models.UpdateVectors, writes.update_vectors)
    yield act("POST", f"{POINTS}/vectors/delete", models.DeleteVectors, writes.delete_vectors)
    yield door.route("POST", f"{POINTS}/batch", batch, models.UpdateOperations)


def _read_routes(store: Store, door: Door) -> Iterator[Route]:
    def target(name: str) -> Target:
        collection = store.get(name)
        return Target(collection.shard, collection.spaces)

    def act(path: str, body: Any, read: Callable[[Any, Target], Any]) -> Route:
        return door.route(
            "POST", path, lambda request, body: read(body, target(request.path_params["name"])), body
        )

    yield act(POINTS, models.PointRequest, reads.retrieve)
    yield act(f"{POINTS}/scroll", models.ScrollRequest, reads.scroll)
    yield act(f"{POINTS}/count", models.CountRequest, reads.count)
    yield act(f"{COLLECTION}/facet", models.FacetRequest, reads.facet)
    yield act(f"{POINTS}/query", models.QueryRequest, lambda *given: _found(query_points(*given, target)))
    yield act(
        f"{POINTS}/query/batch",
        models.QueryRequestBatch,
        lambda body, found: [_found(query_points(one, found, target)) for one in body.searches],
    )
    yield act(f"{POINTS}/query/groups", models.QueryGroupsRequest, lambda *given: query_groups(*given, target))
    yield act(f"{POINTS}/search/matrix/pairs", models.SearchMatrixRequest, matrix_pairs)
    yield act(f"{POINTS}/search/matrix/offsets", models.SearchMatrixRequest, matrix_offsets)
    yield door.route(
        "GET",
        f"{POINTS}/{{id}}",
        lambda request, _: _one(request.path_params["id"], target(request.path_params["name"])),
    )


def _found(points: list[models.ScoredPoint]) -> QueryResponse:
    return QueryResponse(points=points)


def _one(id: str, target: Target) -> models.Record:
    wanted = models.PointRequest(ids=[int(id) if id.isdecimal() else id], with_vector=True)
    found = reads.retrieve(wanted, target)
    if not found:
        raise NotFound(f"no point with id {id}")
    return found[0]


def _true(_: None) -> bool:
    return True


def _done(_: None = None) -> models.UpdateResult:
    # Whatever `wait` says: the engine has applied it, and its write-ahead log holds it.
    return models.UpdateResult(status=models.UpdateStatus.COMPLETED)


def _index(store: Store, name: str, wanted: models.CreateFieldIndex) -> models.UpdateResult:
    if wanted.field_schema is None:
        raise NotSupported(f"say which type {wanted.field_name!r} has: field_schema is not guessed here")
    return _done(store.create_index(name, wanted.field_name, wanted.field_schema))


def _listed(store: Store) -> models.CollectionsResponse:
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
        *(f'collection_points{{id="{_label(name)}"}} {store.get(name).points}' for name in store.names),
    ]
    text = "\n".join(lines).encode() + b"\n" + generate_latest(activity.registry)
    return Response(text, media_type="text/plain; version=0.0.4")


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _not_spoken(request: Request, _: Any) -> None:
    raise NotSupported(
        f"the embedded index does not answer {request.method} {request.url.path}; a Qdrant server may: "
        "set SIGHTLINE_QDRANT__URL to one"
    )
