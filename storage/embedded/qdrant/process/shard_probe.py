"""Try to open a shard in a separate process.

Started as `python -P -m storage.embedded.qdrant.process.shard_probe SHARD`.

It exits without closing the shard, and its status says whether the shard could be opened. It imports only
the engine, because many such processes are started to find one record.
"""

import os
import sys

import qdrant_edge as edge


def main() -> None:
    """Open the shard named on the command line."""
    status = 0
    try:
        shard = edge.EdgeShard.load(sys.argv[1])
        sys.stdout.write(f"{shard.info().points_count} points\n")
    except BaseException as error:  # noqa: BLE001  (the engine's panics are not Exceptions)
        sys.stderr.write(f"{error}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # closing the shard would write to it


if __name__ == "__main__":
    main()
