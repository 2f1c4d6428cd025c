"""Explain an error in one line: its cause and its remedy."""

from typing import TypeGuard

from embedding.errors import EmbeddingError
from flows.tracking.retry_policy import first_line
from flows.tracking.text import visible
from storage.errors import SightlineError
from storage.fault_evidence import message_of
from storage.faults import find_fault
from storage.redaction import redacted


def is_own(error: BaseException) -> TypeGuard[SightlineError | EmbeddingError]:
    """Return whether an error is Sightline's, with a message for users."""
    return isinstance(error, SightlineError | EmbeddingError)


def explain(error: Exception) -> str:
    """Return one line about `error`, safe for a terminal.

    >>> explain(FileNotFoundError(2, "No such file or directory", "keys.txt"))
    'keys.txt: No such file or directory'
    """
    return visible(redacted(_explained(error)))


def _explained(error: Exception) -> str:
    if is_own(error):
        return first_line(error)
    if fault := find_fault(error):
        subject = fault.store[0].upper() + fault.store[1:]
        return f"{subject} {fault.cause} ({message_of(error)}); {fault.remedy}"
    match error:
        case OSError(filename=str() as name, strerror=str() as why):
            return f"{name}: {why}"
    return f"{type(error).__name__}: {first_line(error)}; run `sightline --debug …` for the traceback"
