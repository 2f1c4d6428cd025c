"""A collection as the reading half sees it."""

from collections.abc import Callable
from dataclasses import dataclass

from qdrant_edge import EdgeShard

from storage.embedded.qdrant.protocol.named_vectors import Spaces


@dataclass(frozen=True, slots=True)
class Target:
    """The points to read, and the vectors that they may have."""

    shard: EdgeShard
    spaces: Spaces


Find = Callable[[str], Target]
"""Returns the collection of that name or alias; raises NotFound."""
