"""End this process and its children on a signal."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class StopRequested(BaseException):
    """Signal a request to stop; not an error."""


@contextmanager
def until_stopped() -> Iterator[None]:
    """End the block on SIGTERM or SIGINT; ignore a second one."""
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, _stop)
    with suppress(StopRequested):
        yield


def _stop(*_: object) -> None:
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, signal.SIG_IGN)  # a second Ctrl-C must not cut short what takes its time
    raise StopRequested


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGINT; a second one ends the process."""
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


class Terminated(SystemExit):
    """Exit this process on SIGTERM."""


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, so that runs are recorded as cancelled."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    raise Terminated(128 + signal.SIGTERM)


def end_process(process: "subprocess.Popen[Any]", *, within_s: float) -> None:
    """Terminate a process; kill it after `within_s` seconds."""
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
