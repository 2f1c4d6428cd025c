"""Describe the named vectors and payload indexes of a collection."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qdrant_client import models

UNNAMED = ""


@dataclass(frozen=True, slots=True)
class Spaces:
    """Map vector names to parameters, and fields to indexes.

    The name "" is that of the unnamed vector.
    """

    dense: Mapping[str, models.VectorParams]
    sparse: Mapping[str, models.SparseVectorParams]
    fields: "Fields" = field(default_factory=lambda: Fields({}))


@dataclass(frozen=True, slots=True)
class Fields:
    """Map payload fields to indexes, seen from an inner object."""

    indexes: Mapping[str, models.PayloadFieldSchema]
    prefix: str = ""
    """Path of that object, with its last dot."""

    def below(self, key: str) -> "Fields":
        """Return the fields as seen from each element of the array `key`."""
        return Fields(self.indexes, f"{self.prefix}{key.removesuffix('[]')}[].")

    def is_indexed(self, key: str) -> bool:
        return f"{self.prefix}{key}" in self.indexes

    def has_text_index(self, key: str) -> bool:
        index = self.indexes.get(f"{self.prefix}{key}")
        return index is not None and getattr(index, "type", index) in ("text", models.PayloadSchemaType.TEXT)
