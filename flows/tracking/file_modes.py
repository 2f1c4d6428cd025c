"""Make new files private, unless a user named them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PRIVATE = 0o077
_usual: ContextVar[int | None] = ContextVar("usual", default=None)
"""The umask at the start of the command; None while it still holds."""


@contextmanager
def private_files() -> Iterator[None]:
    """Make new files of this process and its children private."""
    usual = os.umask(PRIVATE)
    token = _usual.set(usual)
    try:
        yield
    finally:
        _usual.reset(token)
        os.umask(usual)


@contextmanager
def usual_files() -> Iterator[None]:
    """Restore the user's umask for a file that the user named."""
    usual = _usual.get()
    if usual is None:
        yield
        return
    private = os.umask(usual)
    try:
        yield
    finally:
        os.umask(private)
