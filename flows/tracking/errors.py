"""What a person is told when something fails: one line that names the thing and the remedy."""

from qdrant_client.http.exceptions import UnexpectedResponse

from flows.tracking.retry_policy import first_line
from flows.tracking.text import visible
from storage.redaction import redacted

MAX_ANSWER_BYTES = 200
OWN_PACKAGES = ("flows.", "embedding.", "storage.")


def explain(error: Exception) -> str:
    """Return one line about `error`, fit for a terminal; errors of our own already say what helps.

    >>> explain(FileNotFoundError(2, "No such file or directory", "keys.txt"))
    'keys.txt: No such file or directory'
    """
    return visible(redacted(_explained(error)))


def _explained(error: Exception) -> str:
    if type(error).__module__.startswith(OWN_PACKAGES):
        return first_line(error)
    match error:
        case UnexpectedResponse():
            return (
                f"Qdrant refused a request ({first_line(error)}): {_said(error)}; "
                "are its version and key right?"
            )
        case OSError(filename=str() as name, strerror=str() as why):
            return f"{name}: {why}"
    return f"{type(error).__name__}: {first_line(error)}; run `sightline --debug …` for the traceback"


def _said(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):  # whatever answered is no Qdrant
        return error.content[:MAX_ANSWER_BYTES].decode(errors="replace")
