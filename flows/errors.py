"""What a person is told when something fails: one line that names the thing and the remedy."""

from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from sqlalchemy.exc import OperationalError

MAX_ANSWER_BYTES = 200
OWN_PACKAGES = ("flows.", "embedding.", "storage.")


def explain(error: Exception) -> str:
    """Return one line about `error`; errors of our own already say what helps.

    >>> explain(FileNotFoundError(2, "No such file or directory", "keys.txt"))
    'keys.txt: No such file or directory'
    """
    if type(error).__module__.startswith(OWN_PACKAGES):
        return _first_line(error)
    match error:
        case OperationalError():
            return (
                f"Postgres did not answer ({_first_line(error.orig)}); "
                "is the server of SIGHTLINE_DATABASE_URL running?"
            )
        case ResponseHandlingException():
            return (
                f"Qdrant did not answer ({_first_line(error)}); "
                "is the server of SIGHTLINE_QDRANT__URL running? "
                "Our own, without that setting, is started by the next command"
            )
        case UnexpectedResponse():
            return (
                f"Qdrant refused a request ({_first_line(error)}): {_said(error)}; "
                "are its version and key right?"
            )
        case OSError(filename=str() as name, strerror=str() as why):
            return f"{name}: {why}"
    return f"{type(error).__name__}: {_first_line(error)}; run `sightline --debug …` for the traceback"


def _said(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):  # whatever answered is no Qdrant
        return error.content[:MAX_ANSWER_BYTES].decode(errors="replace")


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
