"""Describe the named vectors of a collection."""

from collections.abc import Mapping
from dataclasses import dataclass

from qdrant_client import models

UNNAMED = ""


@dataclass(frozen=True, slots=True)
class Spaces:
    """Map vector names to their parameters; "" is the unnamed vector."""

    dense: Mapping[str, models.VectorParams]
    sparse: Mapping[str, models.SparseVectorParams]
