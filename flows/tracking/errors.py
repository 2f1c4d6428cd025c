"""Explain an error in one line: its cause and its remedy."""

from typing import TypeGuard

from qdrant_client.http.exceptions import UnexpectedResponse

from embedding.errors import EmbeddingError
from flows.tracking.retry_policy import first_line
from flows.tracking.text import visible
from storage.errors import SightlineError
from storage.redaction import redacted

MAX_ANSWER_BYTES = 200


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
    match error:
        case UnexpectedResponse():
            return (
                f"Qdrant rejected a request ({first_line(error)}): {_message_of(error)}; "
                "are its version and key right?"
            )
        case OSError(filename=str() as name, strerror=str() as why):
            return f"{name}: {why}"
    return f"{type(error).__name__}: {first_line(error)}; run `sightline --debug …` for the traceback"


def _message_of(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):  # the server is no Qdrant
        return error.content[:MAX_ANSWER_BYTES].decode(errors="replace")
