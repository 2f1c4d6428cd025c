"""Run one worker: read the bytes of images, and return prepared images.

The bytes are untrusted. Each image may take `DECODE_BYTES` of memory and `CPU_S` of processor time. Beyond
the first the process ends itself, beyond the second the system ends it; the pool starts another.
"""

import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding.images.decode import DECODE_BYTES, BadImage
from embedding.images.preparation import Preparation, PreparedImage, prepare
from embedding.process_tuning import garbage_collection_paused, keep_freed_memory, return_freed_memory

Layout = list[tuple[str, str, tuple[int, ...], int]]
"""Arrays in shared memory: name, dtype, shape and offset."""

READY = "ready"
USE, PREPARE = "use", "prepare"
ALIGNMENT = 64
STANDARD_ERROR = 2
CPU_S = 10
"""Processor time limit of one image; the slowest accepted one takes about half of it."""

KEPT_BYTES = 256 * 2**20
"""Freed memory that a worker keeps for its next image."""

SMALL_PIXELS = 1_000_000
"""Images up to this size leave too little memory behind to be worth a check."""

OUT_OF_MEMORY = 77
"""Exit status of a worker that reached its memory limit."""


def main(connection_fd: int, memory_fd: int, room: int, niceness: int) -> None:
    """Prepare images until the parent closes the connection or ends."""
    keep_freed_memory()
    os.nice(niceness)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    limits = Limits()
    with Connection(connection_fd) as connection, mmap(memory_fd, room) as memory:
        connection.send(READY)
        try:
            _serve(connection, memory, limits)
        except EOFError:
            return
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # there may be none left for a traceback


def _serve(connection: Connection, memory: mmap, limits: "Limits") -> None:
    preparation: Preparation | None = None
    while True:
        kind, name, data = connection.recv()  # in one message: each costs the image two changes of process
        if kind == USE:
            with limits.lifted(), garbage_collection_paused():
                preparation = pickle.loads(data)  # may import the model's libraries
            connection.send(READY)
            continue
        if preparation is None:
            raise ValueError("an image came before its preparation")
        begun = limits.begin()
        answer: BadImage | tuple[PreparedImage, Layout]
        try:
            with _libraries_silenced():
                prepared = prepare(preparation, data, name=name)
            answer = _write_arrays(memory, prepared)
        except BadImage as error:
            answer = error
        connection.send((answer, time.process_time() - begun))
        if isinstance(answer, BadImage) or answer[0].width * answer[0].height > SMALL_PIXELS:
            limits.end()


class Limits:
    """Limit the memory and time of one image."""

    def __init__(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._most, self._until_s = _data_bytes() + DECODE_BYTES, 0
        self._limit_memory(self._most)

    def begin(self) -> float:
        """Limit the time of an image; return the processor time so far."""
        begun = time.process_time()
        if (
            ceil(begun) + CPU_S != self._until_s
        ):  # the system counts whole seconds, and many images fit in one
            self._until_s = ceil(begun) + CPU_S
            _set_soft(resource.RLIMIT_CPU, self._until_s)
        return begun

    def end(self) -> None:
        """Return freed memory to the system if there is much."""
        if _data_bytes() > self._most - DECODE_BYTES + KEPT_BYTES:
            return_freed_memory()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Suspend the limits, and exempt memory that stays allocated."""
        return_freed_memory()
        before = _data_bytes()
        self._until_s = 0
        _set_soft(resource.RLIMIT_CPU, None)
        self._limit_memory(None)
        yield
        self._most += max(0, _data_bytes() - before)
        self._limit_memory(self._most)

    def _limit_memory(self, most: int | None) -> None:
        if sys.platform == "linux":  # no other system counts what a process allocates against this
            _set_soft(resource.RLIMIT_DATA, most)


@contextmanager
def _libraries_silenced() -> Iterator[None]:
    """Drop the words of libraries about an image.

    Its reject names the cause. C libraries write to the terminal of the command, around Python. An
    exception is printed as ever.
    """
    kept, nowhere = os.dup(STANDARD_ERROR), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STANDARD_ERROR)
        yield
    finally:
        os.dup2(kept, STANDARD_ERROR)
        os.close(kept)
        os.close(nowhere)


def _set_soft(kind: int, value: int | None) -> None:
    """Set a soft limit of this process, within its hard limit."""
    _, hard = resource.getrlimit(kind)
    if value is None or (hard != resource.RLIM_INFINITY and value > hard):
        value = hard
    resource.setrlimit(kind, (value, hard))


def _data_bytes() -> int:
    """Return the allocated memory of this process, as RLIMIT_DATA counts it."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _write_arrays(memory: mmap, prepared: PreparedImage) -> tuple[PreparedImage, Layout]:
    """Write arrays to `memory`; keep the rest in the result."""
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
    return PreparedImage(prepared.width, prepared.height, prepared.format, left), layout


def read_arrays(memory: mmap, prepared: PreparedImage, layout: Layout) -> PreparedImage:
    """Return a copy of the arrays that `_write_arrays` wrote."""
    features = dict(prepared.features)
    for name, dtype, shape, start in layout:
        features[name] = np.ndarray(shape, np.dtype(dtype), memory, start).copy()
    return PreparedImage(prepared.width, prepared.height, prepared.format, features)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
