"""Build an HNSW graph in a separate process.

Started as `python -P -m storage.embedded.qdrant.process.graph_builder SHARD`.

It reads commands from its standard input, a length and a pickle each, and writes a byte for each one that is
done. It ends with its input, so it does not outlive the owner.
"""

import os
import pickle
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import qdrant_edge as edge

PointId = int | str
Row = tuple[PointId, Any, dict[str, Any] | None]
"""Id, vectors (a sparse one as indices and values) and payload of a point."""

LENGTH = struct.Struct("!Q")
DONE = b"."
NICENESS = 10  # searches go first


def copy(shard: edge.EdgeShard, rows: Sequence[Row], ids: Sequence[PointId]) -> None:
    """Replace points of a shard by rows; delete those without a row."""
    points = [edge.Point(id, _vectors(vectors), payload) for id, vectors, payload in rows]
    if points:
        shard.update(edge.UpdateOperation.upsert_points(points))
    gone = set(ids) - {id for id, _, _ in rows}
    if gone:
        shard.update(edge.UpdateOperation.delete_points(list(gone)))


def _vectors(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {name: _vectors(part) for name, part in plain.items()}
    return edge.SparseVector(*plain) if isinstance(plain, tuple) else plain if plain is not None else {}


def main() -> None:
    """Execute the commands of the owner until its pipe is closed."""
    os.nice(NICENESS)
    shard = edge.EdgeShard.load(sys.argv[1])
    acts: dict[str, Callable[..., object]] = {
        "copy": lambda rows, ids: copy(shard, rows, ids),
        "optimize": shard.optimize,
        "flush": shard.flush,
        "close": shard.close,
    }
    while length := sys.stdin.buffer.read(LENGTH.size):
        message = sys.stdin.buffer.read(*LENGTH.unpack(length))
        act, *arguments = pickle.loads(message)
        acts[act](*arguments)
        sys.stdout.buffer.write(DONE)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
