"""`sightline`, as a process that ends itself at a kill point.

With `--serve MODEL` it reads orders as JSON lines from standard input and forks a process for each, which
spares importing the model's libraries every time; each fork is a whole run of the command line.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.faults import points


def run(order: dict[str, Any]) -> int:
    """Carry out the command line of `order`; does not come back where it has a kill point that is met."""
    os.environ.update(order["environment"])
    with Path(order["log"]).open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if order["kill"] is not None:
        points.arm(order["kill"])
    from flows.cli import main

    try:
        main.main(order["arguments"], prog_name="sightline")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def serve(model: str) -> None:
    """Fork a process for each order, and tell how it ended: the signal as a negative number."""
    from embedding.encoder import load_encoder

    for path in sorted((Path(__file__).parents[2] / "flows").glob("*.py")):
        importlib.import_module(f"flows.{path.stem}")  # once, for all forks

    load_encoder(model, device="cpu")  # for what it imports
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = run(order)
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(ended)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(run(json.loads(sys.argv[1])))
