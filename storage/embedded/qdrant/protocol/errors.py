"""Why a request is refused. The class is the HTTP status, the message what the caller can do about it."""

from storage.errors import SightlineError


class RequestError(SightlineError):
    """The request is wrong, and nothing was changed by it."""

    http_status = 400


class Unauthorized(RequestError):
    """The key is missing or wrong."""

    http_status = 401


class NotFound(RequestError):
    """There is no such collection, alias, point or snapshot."""

    http_status = 404


class Conflict(RequestError):
    """Something of that name is there already."""

    http_status = 409


class TooLarge(RequestError):
    """The request, or what it asks for, is over a limit."""

    http_status = 413


class NotSupported(RequestError):
    """A Qdrant server can do this, the embedded index cannot; never answered with something else."""

    http_status = 501
