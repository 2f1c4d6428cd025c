"""Vectors in Qdrant: one collection a model, named after its fingerprint, searched through one alias."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from storage.consistency.differences import Held, PointId, order
from storage.records import Digest, Hit, Item, Text, readings

ALIAS = "items"
Space = Literal["image", "text"]
Quantization = Literal["none", "int8", "turbo", "product", "binary"]
PAYLOAD_FIELDS = {"source": models.PayloadSchemaType.KEYWORD, "key": models.PayloadSchemaType.KEYWORD}
SHORT = "_short"
"""What follows the name of a space in that of its vectors' beginnings."""

SCROLL_PAGE = 1000
POINTS_A_REQUEST = 64
STREAMS = 3
"""Measured: more points in a request, or more requests at once, are slower, on two cores at least."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")


class DimensionMismatch(ValueError):
    """The vectors come from another model than the collection was made for."""


class ModelMismatch(RuntimeError):
    """A query or a record would be encoded by another model than the collection's."""


class NoCollection(RuntimeError):
    """Nothing has been ingested yet."""

    def __init__(self) -> None:
        super().__init__(
            "nothing has been ingested yet; run: sightline ingest SOURCE, or after a restore without vectors "
            "sightline reconcile --repair"
        )


class AliasNotMoved(RuntimeError):
    """Searches go to the collection that they went to before; the other one is absent or was refused."""


NODES_DIFFER_S = 0.5
"""How long a node of a cluster may answer with the aliases from before a change that another has made."""

PUT_BACK = "all lead where they led before; see its log, and run the command again"

QUANTIZED: dict[Quantization, models.QuantizationConfig | None] = {
    "none": None,
    "int8": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
    ),
    "turbo": models.TurboQuantization(
        turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4, always_ram=True)
    ),
    "product": models.ProductQuantization(
        product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X16, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
}


@dataclass(frozen=True, slots=True)
class Collection:
    """The collection behind the alias, the model that made its vectors, and how they are searched."""

    name: str
    model: str
    fingerprint: str
    dim: int
    quantization: Quantization = "none"
    """Of the copies that candidates are looked for among; the vectors themselves stay as they are."""

    short_dim: int | None = None
    """Length of the beginnings of vectors that candidates are looked for among; None for whole vectors."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is stored for one item: a vector for its image, a row for each embedded text."""

    item: Item
    digest: Digest
    """Kept in the payload, so that Postgres and Qdrant can be compared."""

    image: NDArray[np.float32] | None
    """Shape (dim,), unit length; None without an image."""

    texts: NDArray[np.float32]
    """Shape (n, dim), unit rows in the order of `item.embedded_texts`; n may be 0."""


def collection_name(fingerprint: str) -> str:
    """Return the name of the collection that holds the vectors of the model with `fingerprint`."""
    return f"{ALIAS}__{fingerprint}"


def create(
    client: QdrantClient,
    *,
    model: str,
    fingerprint: str,
    dim: int,
    filter_fields: Mapping[str, str],
    quantization: Quantization = "none",
    short_dim: int | None = None,
) -> str:
    """Create the collection of a model, and its payload indexes, unless they are there; return its name.

    Args:
        quantization: how vectors are packed for the first look: to a 4th (int8), 8th (turbo), 16th (product)
            or 32nd (binary).
        short_dim: keep the first so many dimensions of each vector as a vector of its own for the first
            look, which only a model can bear that was trained for it (Matryoshka, Kusupati et al., 2022).
        filter_fields: metadata fields that searches filter on, each with its type. The indexes are made
            before the first upload, because Qdrant builds its graph with them in mind.
    """
    name = collection_name(fingerprint)
    if not client.collection_exists(name):
        cosine = models.Distance.COSINE
        max_sim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        sizes = {"": dim} if short_dim is None else {"": dim, SHORT: short_dim}
        vectors = {
            space + suffix: models.VectorParams(size=size, distance=cosine, multivector_config=rows)
            for space, rows in (("image", None), ("text", max_sim))
            for suffix, size in sizes.items()
        }
        client.create_collection(
            name,
            vectors_config=vectors,
            quantization_config=QUANTIZED[quantization],
            metadata={"model": model, "fingerprint": fingerprint, "dim": dim, "short_dim": short_dim},
        )
    own = {metadata_path(field): models.PayloadSchemaType(type) for field, type in filter_fields.items()}
    for field, schema in (PAYLOAD_FIELDS | own).items():
        client.create_payload_index(name, field, schema, wait=True)
    return name


def active(client: QdrantClient) -> Collection | None:
    """Return the collection that the alias names, or None before the first ingest."""
    for alias in client.get_aliases().aliases:
        if alias.alias_name == ALIAS:
            return describe(client, alias.collection_name)
    return None


def activate(client: QdrantClient, collection: str) -> None:
    """Point the alias at `collection` in one step: a search sees the old one or the new one.

    Raises:
        AliasNotMoved: the collection is absent, or the alias does not lead there afterwards.
    """
    set_aliases(client, {ALIAS: collection})


def set_aliases(client: QdrantClient, wanted: Mapping[str, str]) -> None:
    """Point each alias at its collection in one request, or leave all as they were.

    A server carries out the steps of a request one by one and keeps those before one that fails. No step
    deletes, therefore: an alias that is created again leads to the other collection from then on.

    Raises:
        AliasNotMoved: a collection is absent, or an alias does not lead there afterwards.
    """
    before = _aliases(client)
    if absent := [name for name in wanted.values() if not client.collection_exists(name)]:
        raise AliasNotMoved(
            f"Qdrant has no collection {', '.join(absent)}, so no alias was changed; "
            "compare the stores: sightline reconcile"
        )
    try:
        _change_aliases(client, wanted)
    except (UnexpectedResponse, ValueError) as error:  # a refusal by a server, or by local mode
        if _put_back(client, wanted, before):
            raise AliasNotMoved(f"Qdrant refused a change of aliases; {PUT_BACK}") from error
        raise
    if not _lead(client, wanted):
        _put_back(client, wanted, before)
        raise AliasNotMoved(f"Qdrant acknowledged a change of aliases and did not make it; {PUT_BACK}")


def _aliases(client: QdrantClient) -> dict[str, str]:
    return {known.alias_name: known.collection_name for known in client.get_aliases().aliases}


def _lead(client: QdrantClient, wanted: Mapping[str, str]) -> bool:
    """Check that all aliases lead where wanted, on whichever node of a cluster answers."""
    deadline = time.monotonic() + NODES_DIFFER_S
    while not wanted.items() <= _aliases(client).items():
        if time.monotonic() > deadline:
            return False
        time.sleep(NODES_DIFFER_S / 10)
    return True


def _put_back(client: QdrantClient, aliases: Iterable[str], before: Mapping[str, str]) -> bool:
    """Restore those of `aliases` that do not lead where they led before; return whether any did not."""
    now = _aliases(client)
    changed = {alias: before.get(alias) for alias in aliases if now.get(alias) != before.get(alias)}
    _change_aliases(client, changed)
    return bool(changed)


def _change_aliases(client: QdrantClient, wanted: Mapping[str, str | None]) -> None:
    """Point aliases at collections in one request, and delete those without one."""
    steps: list[models.CreateAliasOperation | models.DeleteAliasOperation] = []
    for alias, name in wanted.items():
        if name is None:
            gone = models.DeleteAlias(alias_name=alias)
            steps.append(models.DeleteAliasOperation(delete_alias=gone))
        else:
            made = models.CreateAlias(alias_name=alias, collection_name=name)
            steps.append(models.CreateAliasOperation(create_alias=made))
    if steps:
        client.update_collection_aliases(change_aliases_operations=steps)


def quantize(client: QdrantClient, collection: Collection, quantization: Quantization) -> None:
    """Have vectors packed in another way from now on; the server does it while it goes on answering."""
    if quantization != collection.quantization:
        wanted = QUANTIZED[quantization] or models.Disabled.DISABLED
        client.update_collection(collection.name, quantization_config=wanted)


def collection_of(client: QdrantClient, fingerprint: str, model: str) -> Collection:
    """Return the active collection, after checking that the model with `fingerprint` made it.

    Raises:
        NoCollection: there is none yet.
        ModelMismatch: another model made it, so its vectors and this one's cannot be compared.
    """
    collection = active(client)
    if collection is None:
        raise NoCollection
    require_model(collection, fingerprint, model)
    return collection


def require_model(collection: Collection, fingerprint: str, model: str) -> None:
    """Make sure that the model with `fingerprint` made the collection.

    Raises:
        ModelMismatch: another one did, so its vectors and this one's cannot be compared.
    """
    if collection.fingerprint != fingerprint:
        remedy = (
            "the model has changed since it was ingested with: run sightline reindex --model"
            if collection.model == model
            else f"run: sightline reindex --model {model}"
        )
        raise ModelMismatch(
            f"the collection holds vectors of model {collection.model!r} ({collection.fingerprint}), not of "
            f"{model!r} ({fingerprint}); {remedy}"
        )


def upsert(client: QdrantClient, collection: Collection, points: Sequence[Point]) -> None:
    """Write one point per item, replacing any that is there; returns once they are searchable.

    Args:
        points: distinct items; every vector of length `collection.dim`.

    Raises:
        DimensionMismatch: a vector has another length.
        ValueError: a vector holds NaN or infinity, or a point has not one row for each embedded text.
    """
    for point in points:
        _check(point, collection.dim)
    requests = [points[start : start + POINTS_A_REQUEST] for start in range(0, len(points), POINTS_A_REQUEST)]
    with ThreadPoolExecutor(STREAMS) as streams:
        sent = [streams.submit(_send, client, collection, some) for some in requests]
    for one in sent:
        one.result()


def _send(client: QdrantClient, collection: Collection, points: Sequence[Point]) -> None:
    structs = [_struct(point, collection.short_dim) for point in points]
    client.upsert(collection.name, structs, wait=True)


def overwrite_payloads(
    client: QdrantClient, collection: str, items: Mapping[UUID, tuple[Item, Digest]]
) -> None:
    """Replace the payloads of points whose vectors stay as they are."""
    steps = [
        models.OverwritePayloadOperation(
            overwrite_payload=models.SetPayload(payload=_payload(item, digest), points=[str(id)])
        )
        for id, (item, digest) in sorted(items.items())
    ]
    if steps:
        client.batch_update_points(collection, steps, wait=True)


def collections(client: QdrantClient) -> list[str]:
    """Return the names of all collections of ours, whatever their state, in order."""
    names = (known.name for known in client.get_collections().collections)
    return sorted(name for name in names if name.startswith(f"{ALIAS}__"))


def delete(client: QdrantClient, ids: Sequence[UUID]) -> dict[UUID, list[str]]:
    """Remove the points of `ids` from every collection of ours, whatever its state.

    Returns:
        By id, the collections that had a point of it.
    """
    wanted: list[Any] = [str(id) for id in ids]
    held: dict[UUID, list[str]] = {}
    for name in collections(client):
        for point in client.retrieve(name, wanted, with_payload=False):
            held.setdefault(UUID(str(point.id)), []).append(name)
        client.delete(name, wanted, wait=True)
    return held


def held(client: QdrantClient, collection: str, ids: Sequence[UUID] | None = None) -> Iterator[Held]:
    """Yield every point of `collection`, or those of `ids`, in id order; no vector is read.

    Args:
        collection: one that isn't there holds no point.
    """
    if not client.collection_exists(collection):
        return
    having = {space: _Ids(_scroll(client, collection, ids, having=space)) for space in ("image", "text")}
    for point in _scroll(client, collection, ids, payload=["content_hash", "record_hash"]):
        id = _point_id(point)
        yield Held(id, _digest(point.payload or {}), having["image"].has(id), having["text"].has(id))


def digests(
    client: QdrantClient, collection: str, ids: Sequence[PointId] | None = None
) -> Iterator[tuple[PointId, Digest | None]]:
    """Yield id and digest of every point of `collection`, or of those of `ids`, in id order."""
    for point in _scroll(client, collection, ids, payload=["content_hash", "record_hash"]):
        yield _point_id(point), _digest(point.payload or {})


def wire_ids(ids: Sequence[PointId]) -> list[Any]:
    """Return `ids` as Qdrant's API takes them."""
    return [id if isinstance(id, int) else str(id) for id in ids]


class _Ids:
    """Ids in order, asked about in order."""

    def __init__(self, points: Iterator[models.Record]) -> None:
        self._ids = (_point_id(point) for point in points)
        self._next = next(self._ids, None)

    def has(self, id: PointId) -> bool:
        while self._next is not None and order(self._next) < order(id):
            self._next = next(self._ids, None)
        return self._next == id


def _scroll(
    client: QdrantClient,
    collection: str,
    ids: Sequence[PointId] | None = None,
    *,
    having: Space | None = None,
    payload: list[str] | bool = False,
    vectors: list[str] | bool = False,
) -> Iterator[models.Record]:
    must: list[models.Condition] = []
    if ids is not None:
        must.append(models.HasIdCondition(has_id=wire_ids(ids)))
    if having is not None:
        must.append(models.HasVectorCondition(has_vector=having))
    offset: Any = None
    while True:
        points, offset = client.scroll(
            collection,
            scroll_filter=models.Filter(must=must) if must else None,
            limit=SCROLL_PAGE,
            offset=offset,
            with_payload=payload,
            with_vectors=vectors,
        )
        yield from points
        if offset is None:
            return


def _point_id(point: models.Record) -> PointId:
    return point.id if isinstance(point.id, int) else UUID(str(point.id))


def _digest(payload: Mapping[str, Any]) -> Digest | None:
    content, record = payload.get("content_hash"), payload.get("record_hash")
    return Digest(content, record) if isinstance(content, str) and isinstance(record, str) else None


def remove(client: QdrantClient, collection: str, ids: Sequence[PointId]) -> None:
    """Remove the points of `ids` from one collection."""
    client.delete(collection, wire_ids(ids), wait=True)


def load_snapshot(client: QdrantClient, collection: str, path: Path) -> None:
    """Make `collection` what the snapshot in `path` holds, whether or not it is there."""
    with path.open("rb") as file:
        client.http.snapshots_api.recover_from_uploaded_snapshot(
            collection, wait=True, priority=models.SnapshotPriority.SNAPSHOT, snapshot=file
        )


def server_kind(client: QdrantClient) -> str:
    """Return what kind of server answers: its snapshots fit no other kind."""
    return client.info().title.split()[0]


def search(
    client: QdrantClient,
    collection: Collection,
    query: NDArray[np.float32],
    *,
    using: Space,
    limit: int,
    min_score: float | None = None,
    where: Mapping[str, str] | None = None,
    without: Sequence[UUID] = (),
    oversampling: float = 1.0,
) -> list[Hit]:
    """Return the `limit` points closest to `query` (shape (dim,)), best first, ties by id.

    Scores are those of whole vectors: what was found among packed or shortened ones is scored anew.

    Args:
        collection: what `active` returned; it is searched by its own name, for the alias may move to
            another model's meanwhile.
        using: `image` finds images, `text` finds texts; items without one are not found by it.
        min_score: leave out what scores lower, a cosine in [-1, 1].
        where: metadata (or `source`, or `key`) that a hit must have.
        without: items that are no hits.
        oversampling: how many candidates are scored anew for each hit, where vectors are packed or shortened.
    """
    condition = _filter(where or {}, without)
    first_look = None
    if collection.short_dim is not None:
        first_look = models.Prefetch(
            query=_rows(query[: collection.short_dim], using),
            using=using + SHORT,
            limit=ceil(limit * oversampling),
            filter=condition,
        )
    found = client.query_points(
        collection.name,
        query=_rows(query, using),
        using=using,
        prefetch=first_look,
        limit=limit,
        score_threshold=min_score,
        query_filter=condition,
        search_params=_params(collection, oversampling),
        with_vectors=["text"],
        with_payload=True,
    ).points
    hits = [_hit(point, query) for point in found]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def _rows(query: NDArray[np.float32], using: Space) -> Any:
    """Return `query` as its space wants it: a multivector is compared with a matrix, here of one row."""
    return query.tolist() if using == "image" else [query.tolist()]


def _params(collection: Collection, oversampling: float) -> models.SearchParams | None:
    if collection.quantization == "none":
        return None
    quantization = models.QuantizationSearchParams(rescore=True, oversampling=oversampling)
    return models.SearchParams(quantization=quantization)


def nearest_pictures(
    client: QdrantClient, collection: Collection, queries: NDArray[np.float32], limit: int
) -> list[list[tuple[UUID, float]]]:
    """Return for each query the ids and scores of the closest images, best first; in one request.

    Args:
        queries: shape (n, dim), unit rows.
    """
    asked = [
        models.QueryRequest(
            query=query, using="image", limit=limit, params=_params(collection, oversampling=1.0)
        )
        for query in queries.tolist()
    ]
    answers = client.query_batch_points(collection.name, asked)
    return [[(UUID(str(point.id)), point.score) for point in answer.points] for answer in answers]


def picture_vectors(
    client: QdrantClient, collection: str, content_hashes: Mapping[UUID, str]
) -> dict[UUID, NDArray[np.float32]]:
    """Return the image vectors, each of shape (dim,), of those points that have the content asked for."""
    if not content_hashes:
        return {}
    found = client.retrieve(
        collection, list(map(str, content_hashes)), with_payload=["content_hash"], with_vectors=["image"]
    )
    return {
        id: np.asarray(point.vector["image"], np.float32)
        for point in found
        if isinstance(point.vector, dict) and "image" in point.vector
        if (point.payload or {}).get("content_hash") == content_hashes[id := UUID(str(point.id))]
    }


def vectors_of(client: QdrantClient, collection: str, id: UUID) -> dict[Space, NDArray[np.float32]]:
    """Return what the point of `id` has in each space, as rows: (1, dim) of `image`, (n, dim) of `text`.

    Returns:
        Nothing where there is no such point.
    """
    found = client.retrieve(collection, [str(id)], with_payload=False, with_vectors=["image", "text"])
    vectors = found[0].vector if found else None
    if not isinstance(vectors, dict):
        return {}
    spaces: tuple[Space, ...] = ("image", "text")
    rows = {space: np.atleast_2d(np.asarray(vectors.get(space, ()), np.float32)) for space in spaces}
    return {space: own for space, own in rows.items() if own.size}


def image_vectors(client: QdrantClient, collection: str) -> Iterator[tuple[UUID, NDArray[np.float32]]]:
    """Yield id and image vector of every point that has one, in pages of a thousand."""
    for point in _scroll(client, collection, vectors=["image"]):
        if isinstance(point.vector, dict) and "image" in point.vector:
            yield UUID(str(point.id)), np.asarray(point.vector["image"], np.float32)


def metadata_path(field: str) -> str:
    """Return the payload path of the metadata field `field`, quoted where it is no plain name."""
    if PLAIN_NAME.fullmatch(field):
        return f"metadata.{field}"
    return 'metadata."' + field.replace('"', '\\"') + '"'


def describe(client: QdrantClient, name: str) -> Collection:
    """Return what the collection says of itself."""
    info = client.get_collection(name)
    made_by = info.config.metadata or {}
    return Collection(
        name,
        model=str(made_by.get("model", "unknown")),
        fingerprint=str(made_by.get("fingerprint", "unknown")),
        dim=int(made_by.get("dim", 0)),
        quantization=_quantization_of(info.config.quantization_config),
        short_dim=made_by.get("short_dim"),
    )


def sampled_recall(client: QdrantClient, collection: str, ids: Sequence[UUID], limit: int) -> float | None:
    """Return how much of the exact answer searches give: mean recall@`limit` of image searches, in [0, 1].

    Args:
        ids: points whose images are the queries; those without one are left out.

    Returns:
        None if there is no image among them.
    """
    points = client.retrieve(collection, [str(id) for id in ids], with_payload=False, with_vectors=["image"])
    queries = [
        point.vector["image"]
        for point in points
        if isinstance(point.vector, dict) and "image" in point.vector
    ]
    if not queries:
        return None
    answers = []
    for params in (None, models.SearchParams(exact=True)):
        asked: list[Any] = [
            models.QueryRequest(query=query, using="image", limit=limit, params=params) for query in queries
        ]
        answers.append(client.query_batch_points(collection, asked))
    shares = [
        len({point.id for point in found.points} & {point.id for point in right.points}) / len(right.points)
        for found, right in zip(*answers, strict=True)
    ]
    return sum(shares) / len(shares)


def fault_of(client: QdrantClient, collection: str) -> str | None:
    """Return what Qdrant says is wrong with a collection, in a sentence; None where nothing is."""
    if not client.collection_exists(collection):
        return None
    status = client.get_collection(collection).optimizer_status
    return status.error if isinstance(status, models.OptimizersStatusOneOf1) else None


def acknowledge_fault(client: QdrantClient, collection: str) -> None:
    """Have Qdrant try again whatever `fault_of` tells of; the embedded index takes it for mended."""
    client.update_collection(collection, optimizers_config=models.OptimizersConfigDiff())


def is_settled(client: QdrantClient, collection: str) -> bool:
    """Whether the server has nothing left to do on `collection` before it is as fast as it gets."""
    return client.get_collection(collection).status == models.CollectionStatus.GREEN


def count(client: QdrantClient, collection: str) -> int:
    """Return how many points there are; counted, not estimated."""
    return client.count(collection, exact=True).count


def _quantization_of(config: models.QuantizationConfig | None) -> Quantization:
    match config:
        case models.ScalarQuantization():
            return "int8"
        case models.TurboQuantization():
            return "turbo"
        case models.ProductQuantization():
            return "product"
        case models.BinaryQuantization():
            return "binary"
    return "none"


def _check(point: Point, dim: int) -> None:
    key, texts = point.item.key, point.item.embedded_texts
    for rows in (point.texts,) if point.image is None else (point.texts, point.image):
        if rows.shape[-1] != dim:
            raise DimensionMismatch(
                f"{key}: a vector of length {rows.shape[-1]}, but the collection holds {dim}; "
                "was the model changed without a re-index?"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{key}: a vector holds NaN or infinity; check the model's precision")
    if len(point.texts) != len(texts):
        raise ValueError(f"{key}: {len(point.texts)} rows for {len(texts)} texts")


def _struct(point: Point, short_dim: int | None) -> models.PointStruct:
    vectors: dict[str, Any] = {}
    for space, rows in (("image", point.image), ("text", point.texts)):
        if rows is not None and len(rows):
            vectors[space] = rows.tolist()
            if short_dim is not None:
                vectors[space + SHORT] = rows[..., :short_dim].tolist()  # Qdrant makes them unit length
    payload = _payload(point.item, point.digest)
    return models.PointStruct(id=str(point.item.id), vector=vectors, payload=payload)


def _payload(item: Item, digest: Digest) -> dict[str, Any]:
    return {
        "source": item.source,
        "key": item.key,
        "text": item.short_text,
        "metadata": dict(item.metadata),
        "content_hash": digest.content,
        "record_hash": digest.record,
    }


def _hit(point: models.ScoredPoint, query: NDArray[np.float32]) -> Hit:
    payload = point.payload or {}
    text = str(payload.get("text", ""))
    item = Item(
        source=str(payload.get("source", "")),
        key=str(payload.get("key", "")),
        texts=(Text(text),) if text else (),
        metadata=payload.get("metadata") or {},
    )
    best = _best_text(point.vector, query)
    return Hit(UUID(str(point.id)), point.score, best, item, _digest(payload))


def _best_text(vectors: object, query: NDArray[np.float32]) -> int | None:
    rows = vectors.get("text") if isinstance(vectors, dict) else None
    return int(np.argmax(np.asarray(rows, np.float32) @ query)) if rows else None


def _filter(where: Mapping[str, str], without: Sequence[UUID]) -> models.Filter | None:
    if not where and not without:
        return None
    others = models.HasIdCondition(has_id=[str(id) for id in without])
    return models.Filter(
        must=[_condition(field, value) for field, value in where.items()] or None,
        must_not=[others] if without else None,
    )


def _condition(field: str, value: str) -> models.Filter:
    """Match `value` as a string and, where it reads as one, as a number or a truth value."""
    path = field if field in PAYLOAD_FIELDS or field.startswith("metadata.") else metadata_path(field)
    ways: list[models.Condition] = []
    for one in readings(value):
        if not isinstance(one, float):
            ways.append(models.FieldCondition(key=path, match=models.MatchValue(value=one)))
        if isinstance(one, int | float) and not isinstance(one, bool):
            ways.append(models.FieldCondition(key=path, range=models.Range(gte=one, lte=one)))
    return models.Filter(should=ways)
