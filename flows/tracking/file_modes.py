"""The modes of new files: for their owner alone, unless a person named the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PRIVATE = 0o077
_usual: ContextVar[int | None] = ContextVar("usual", default=None)
"""The umask with which the command was started; None where it still holds."""


@contextmanager
def private_files() -> Iterator[None]:
    """Have all files that this process and its children make be their owner's alone."""
    usual = os.umask(PRIVATE)
    token = _usual.set(usual)
    try:
        yield
    finally:
        _usual.reset(token)
        os.umask(usual)


@contextmanager
def usual_files() -> Iterator[None]:
    """Have files get the modes that the user's umask gives them: the user named the file, for anyone."""
    usual = _usual.get()
    if usual is None:
        yield
        return
    private = os.umask(usual)
    try:
        yield
    finally:
        os.umask(private)
