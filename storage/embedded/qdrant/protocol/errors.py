"""Reject requests: the class is the HTTP status, the message the remedy."""

from storage.errors import SightlineError


class RequestError(SightlineError):
    """Reject a wrong request, without any change."""

    http_status = 400


class Invalid(RequestError):
    """Reject a parameter outside its range."""

    http_status = 422


class Unauthorized(RequestError):
    """Reject a request without the right key."""

    http_status = 401


class NotFound(RequestError):
    """Report a missing collection, alias, point or snapshot."""

    http_status = 404


class Conflict(RequestError):
    """Report that the name is in use."""

    http_status = 409


class TooLarge(RequestError):
    """Reject a request or a result over a limit."""

    http_status = 413


class NotSupported(RequestError):
    """Reject a request that only a Qdrant server supports."""

    http_status = 501
