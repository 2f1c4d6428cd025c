"""Define the error tree of the stores and the flows."""


class SightlineError(Exception):
    """Report a failure; its message names the cause and the remedy."""

    retryable: bool = False
    """Whether the same call may succeed later: the environment caused the failure, not the request."""

    http_status: int = 500

    refusal: bool = False
    """Whether the request cannot be met and nothing was done: a run that ends so has not failed."""


class StoreUnavailable(SightlineError):
    """Report an unavailable store; no partial write counts as done."""

    retryable = True
    http_status = 503


class InvalidInput(SightlineError, ValueError):
    """Report input that no retry makes valid."""

    http_status = 422


class NotFound(SightlineError, LookupError):
    """Report that a requested object does not exist."""

    http_status = 404


class Conflict(SightlineError):
    """Report a request that conflicts with the state of the stores."""

    http_status = 409


class ModelError(SightlineError):
    """Report a model that cannot be used until a setting changes."""

    retryable = True
    http_status = 503
