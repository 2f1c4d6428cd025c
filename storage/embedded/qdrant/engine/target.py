"""Represent a collection for reads."""

from collections.abc import Callable
from dataclasses import dataclass

from qdrant_edge import EdgeShard

from storage.embedded.qdrant.protocol.named_vectors import Spaces


@dataclass(frozen=True, slots=True)
class Target:
    """Represent the points to read and their vector parameters."""

    shard: EdgeShard
    spaces: Spaces


Find = Callable[[str], Target]
"""Returns the collection of that name or alias; raises NotFound."""
