"""Define the errors of models and images as one tree."""


class EmbeddingError(Exception):
    """Report a failure; its message names the cause and the remedy."""

    retryable: bool = False
    """Whether the same call may succeed later: the environment caused the failure, not the input."""

    http_status: int = 500


class UnusableInput(EmbeddingError, ValueError):
    """Report an image or a text that cannot be encoded."""

    http_status = 422


class EncoderUnavailable(EmbeddingError):
    """Report a model or a decoder that cannot be used now."""

    retryable = True
    http_status = 503
