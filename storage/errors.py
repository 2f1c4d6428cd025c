"""Define the errors of the stores and of the flows as one tree."""


class SightlineError(Exception):
    """Report a failure whose message names the cause and the remedy."""

    retryable: bool = False
    """Whether the same call may succeed later: the environment caused the failure, not the request."""

    http_status: int = 500


class StoreUnavailable(SightlineError):
    """Report a store that cannot be used now; no partial write counts as done."""

    retryable = True
    http_status = 503


class InvalidInput(SightlineError, ValueError):
    """Report input that no retry makes valid."""

    http_status = 422


class NotFound(SightlineError, LookupError):
    """Report that a requested object does not exist."""

    http_status = 404


class Conflict(SightlineError):
    """Report a request that the current state of the stores does not allow."""

    http_status = 409


class ModelError(SightlineError):
    """Report a model that does not fit, until it or its setting is changed."""

    retryable = True
    http_status = 503
