"""Tune memory and threads of processes that decode or embed images."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD = -1  # of glibc's malloc.h
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 2**30

SPINS = 100_000
"""A few hundred microseconds: longer than the pause between two operations of a model."""


def keep_freed_memory() -> None:
    """Keep freed memory in this process instead of returning it.

    A model's activations and a decoder's rows are large, and glibc hands each of them back to the system as
    soon as it is freed; the next one then costs a page fault for each 4 KiB: a quarter of the time of a
    decoder, a fifth of that of a small convolutional network. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def return_freed_memory() -> None:
    """Return freed memory to the system, before a long wait."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause Python's garbage collection, as during imports.

    The model's libraries create half a million objects. Scanning them over and over takes a fifth of the
    time of their import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def shorten_spinning() -> None:
    """Make idle threads of a model release their cores soon.

    By default GNU OpenMP's threads spin for a second or more, at the cost of the workers beside them: now
    and then a convolutional network and its decoders take half as long again. Takes effect only before
    torch is imported; variables of the environment that are set already stay.
    """
    environment = os.environ  # noqa: TID251 (the only way into that library)
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = str(SPINS)
