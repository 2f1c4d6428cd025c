"""Ending: this process when a signal says so, and the processes that it has started."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Asked(BaseException):
    """A signal says stop; not an error."""


@contextmanager
def until_asked() -> Iterator[None]:
    """Let SIGTERM or SIGINT end what happens in here; while it ends, a second one is ignored."""
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, _end)
    with suppress(_Asked):
        yield


def _end(*_: object) -> None:
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, signal.SIG_IGN)  # a second Ctrl-C must not cut short what takes its time
    raise _Asked


class Terminated(SystemExit):
    """SIGTERM ended this process."""


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Have SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt, so that runs end on record."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    raise Terminated(128 + signal.SIGTERM)


def end(process: "subprocess.Popen[Any]", *, within_s: float) -> None:
    """Ask a process to end, and wait for that; one that does not in time is killed."""
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
