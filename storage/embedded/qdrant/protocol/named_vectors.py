"""The named vectors of a collection."""

from collections.abc import Mapping
from dataclasses import dataclass

from qdrant_client import models

UNNAMED = ""


@dataclass(frozen=True, slots=True)
class Spaces:
    """What vectors a collection takes, by name; the unnamed vector is called "", as in the engine."""

    dense: Mapping[str, models.VectorParams]
    sparse: Mapping[str, models.SparseVectorParams]
