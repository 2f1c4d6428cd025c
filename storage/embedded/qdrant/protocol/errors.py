"""Why a request is refused. The class is the HTTP status, the message what the caller can do about it."""


class Refused(Exception):
    """The request is wrong, and nothing was changed by it."""

    status = 400


class Unauthorized(Refused):
    """The key is missing or wrong."""

    status = 401


class NotFound(Refused):
    """There is no such collection, alias, point or snapshot."""

    status = 404


class Conflict(Refused):
    """Something of that name is there already."""

    status = 409


class TooLarge(Refused):
    """The request, or what it asks for, is over a limit."""

    status = 413


class NotSupported(Refused):
    """A Qdrant server can do this, the embedded index cannot; never answered with something else."""

    status = 501
