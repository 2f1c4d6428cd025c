"""Create and describe Qdrant collections: one per model.

A collection is named after the fingerprint of its model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qdrant_client import QdrantClient, models

from storage.errors import ModelError
from storage.qdrant.limits import indexed_only

ALIAS = "items"
Quantization = Literal["none", "int8", "turbo", "product", "binary"]
PAYLOAD_FIELDS = {"source": models.PayloadSchemaType.KEYWORD, "key": models.PayloadSchemaType.KEYWORD}
SHORT = "_short"
"""Suffix of the vector that holds the leading dimensions of a space."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
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
    """Describe a collection: its model, and how it is searched."""

    name: str
    model: str
    fingerprint: str
    dim: int
    quantization: Quantization = "none"
    """Quantization of the copies used by the first-stage search; the vectors themselves stay exact."""

    short_dim: int | None = None
    """Leading dimensions used by the first-stage search; None for whole vectors."""

    indexed_only: Mapping[str, str] | None = field(default=None, compare=False)
    """Types of payload indexes by field, where strict mode rejects filters without one."""


class ModelMismatch(ModelError):
    """Signal that a collection was built with another model."""


def collection_name(fingerprint: str) -> str:
    """Return the name of the collection for a model fingerprint."""
    return f"{ALIAS}__{fingerprint}"


def create_collection(
    client: QdrantClient,
    *,
    model: str,
    fingerprint: str,
    dim: int,
    filter_fields: Mapping[str, str],
    quantization: Quantization = "none",
    short_dim: int | None = None,
) -> str:
    """Create the collection of a model with its payload indexes; idempotent.

    Return its name.

    Args:
        quantization: for the first-stage search: to a 4th (int8), 8th (turbo), 16th (product) or 32nd
            (binary) of the size.
        short_dim: store the leading dimensions as a separate vector for the first-stage search; requires a
            model trained for it (Matryoshka representation learning, Kusupati et al., 2022).
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
    for path, schema in (PAYLOAD_FIELDS | own).items():
        client.create_payload_index(name, path, schema, wait=True)
    return name


def describe(client: QdrantClient, name: str) -> Collection:
    """Read the description of a collection."""
    info = client.get_collection(name)
    made_by = info.config.metadata or {}
    return Collection(
        name,
        model=str(made_by.get("model", "unknown")),
        fingerprint=str(made_by.get("fingerprint", "unknown")),
        dim=int(made_by.get("dim", 0)),
        quantization=_quantization_of(info.config.quantization_config),
        short_dim=made_by.get("short_dim"),
        indexed_only=indexed_only(info),
    )


def list_collections(client: QdrantClient) -> list[str]:
    """Return the names of all our collections, in order."""
    names = (known.name for known in client.get_collections().collections)
    return sorted(name for name in names if name.startswith(f"{ALIAS}__"))


def quantize(client: QdrantClient, collection: Collection, quantization: Quantization) -> None:
    """Change the quantization of a collection; the server converts in the background."""
    if quantization != collection.quantization:
        wanted = QUANTIZED[quantization] or models.Disabled.DISABLED
        client.update_collection(collection.name, quantization_config=wanted)


def require_model(collection: Collection, fingerprint: str, model: str) -> None:
    """Require that a collection was built with this model.

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


def metadata_path(field: str) -> str:
    """Return the payload path of a metadata field, quoted where necessary."""
    if PLAIN_NAME.fullmatch(field):
        return f"metadata.{field}"
    return 'metadata."' + field.replace('"', '\\"') + '"'


def optimizer_error(client: QdrantClient, collection: str) -> str | None:
    """Return the error of the optimizer of a collection, or None."""
    if not client.collection_exists(collection):
        return None
    status = client.get_collection(collection).optimizer_status
    return status.error if isinstance(status, models.OptimizersStatusOneOf1) else None


def restart_optimizer(client: QdrantClient, collection: str) -> None:
    """Restart an optimizer that has stopped with an error.

    The embedded index then treats its lost writes as repaired.
    """
    client.update_collection(collection, optimizers_config=models.OptimizersConfigDiff())


def is_settled(client: QdrantClient, collection: str) -> bool:
    """Whether the server has finished optimizing the collection."""
    return client.get_collection(collection).status == models.CollectionStatus.GREEN


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
