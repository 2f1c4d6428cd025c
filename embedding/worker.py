"""The process of one worker: pictures' bytes come in, what the model takes of them goes out."""

import os
import signal
import sys
import time
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding.images import BadImage
from embedding.preparation import Prepared, prepare
from embedding.process import keep_freed_memory, without_garbage

Layout = list[tuple[str, str, tuple[int, ...], int]]
"""Arrays in shared memory: name, dtype, shape, and where each begins."""

READY = "ready"
ALIGNMENT = 64
BEHIND_THE_MODEL = 19
"""How nice workers are: on a CPU, each moment taken from one of the model's threads stops the others too."""


def main(connection_fd: int, memory_fd: int, room: int) -> None:
    """Prepare pictures until nobody sends any; that is also so when the process that sent them is killed."""
    keep_freed_memory()
    os.nice(BEHIND_THE_MODEL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    with Connection(connection_fd) as connection, mmap(memory_fd, room) as memory:
        with without_garbage():
            preparation = connection.recv()  # may import the model's libraries
        connection.send(READY)
        while True:
            try:
                name, data = connection.recv(), connection.recv_bytes()
            except EOFError:
                return
            answer: BadImage | tuple[Prepared, Layout]
            try:
                answer = _put(memory, prepare(preparation, data, name=name))
            except BadImage as error:
                answer = error
            connection.send((answer, time.process_time()))


def _put(memory: mmap, prepared: Prepared) -> tuple[Prepared, Layout]:
    """Write the arrays to `memory`; those that find no room there stay in what is returned."""
    layout: Layout = []
    left: dict[str, NDArray[Any]] = {}
    start = 0
    for name, array in prepared.features.items():
        if start + array.nbytes > len(memory):
            left[name] = array
            continue
        view = np.ndarray(array.shape, array.dtype, memory, start)
        view[...] = array
        layout.append((name, array.dtype.str, array.shape, start))
        start += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return Prepared(prepared.width, prepared.height, prepared.format, left), layout


def take(memory: mmap, prepared: Prepared, layout: Layout) -> Prepared:
    """Return what `_put` wrote, in memory of its own."""
    features = dict(prepared.features)
    for name, dtype, shape, start in layout:
        features[name] = np.ndarray(shape, np.dtype(dtype), memory, start).copy()
    return Prepared(prepared.width, prepared.height, prepared.format, features)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
