"""What a process is set to that decodes images, or has a model see them."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD = -1  # of glibc's malloc.h
M_MMAP_THRESHOLD = -3
KEPT = 2**30

SPINS = 100_000
"""A few hundred microseconds: longer than what lies between two operations of a model."""


def keep_freed_memory() -> None:
    """Have this process keep freed memory for its next need, instead of asking the system anew each time.

    A model's activations and a decoder's rows are large, and glibc hands each of them back to the system as
    soon as it is freed; the next one then costs a page fault for each 4 KiB: a quarter of the time of a
    decoder, a fifth of that of a small convolutional network. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def return_freed_memory() -> None:
    """Hand what is freed back to the system, as a process does that waits after large work."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def without_garbage() -> Iterator[None]:
    """Have Python not look for garbage within: for imports, of which everything stays.

    The model's libraries make half a million objects. Looking through them over and over, while they are
    made, takes a fifth of the time that importing them takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def wait_briefly() -> None:
    """Have a model's threads leave their cores to others soon when there is nothing to do for them.

    By default GNU OpenMP's threads spin for a second or more, which the workers beside them pay for: now
    and then a convolutional network and its decoders take half as long again. Only for what has not
    imported torch yet; what the environment says already stays.
    """
    environment = os.environ  # noqa: TID251 (the only way into that library)
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = str(SPINS)
