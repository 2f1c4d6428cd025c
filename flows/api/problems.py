"""Report errors to API callers as RFC 9457 problem details."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from qdrant_client.http.exceptions import UnexpectedResponse
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from embedding.encoders.sentence_encoder import ModelUnavailable
from embedding.errors import EmbeddingError, EncoderUnavailable
from embedding.images.decode import BadImage
from embedding.images.worker_pool import WorkersFailed
from flows.tracking.errors import explain
from storage.errors import ModelError, SightlineError, StoreUnavailable
from storage.postgres.request_queue import KeyReused, QueueFull
from storage.qdrant import NoCollection

MEDIA_TYPE = "application/problem+json"
SCHEMA = "#/components/schemas/Problem"
RETRY_STORE_S = 10
"""A store that is unavailable is retried for longer than that, and restarts where it is embedded."""

RETRY_PAUSES_S: Mapping[type[Exception], int] = {
    StoreUnavailable: RETRY_STORE_S,
    ModelError: 60,
    ModelUnavailable: 60,
    QueueFull: 30,
    WorkersFailed: 5,
}
KINDS: Mapping[type[Exception], str] = {
    NoCollection: "nothing-ingested",
    KeyReused: "idempotency-key-reused",
    QueueFull: "queue-full",
}
OWN_TYPE = "urn:problem-type:sightline:"
Value = TypeVar("Value")
log = logging.getLogger(__name__)


class Flaw(BaseModel):
    """Describe one invalid field of a request."""

    where: str = Field(description="Path of the field within the request.")
    why: str


class Problem(BaseModel):
    """Describe why a request was rejected (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Entity",
                    "status": 422,
                    "detail": "2 fields cannot be used; errors lists them",
                    "errors": [{"where": "body.limit", "why": "Input should be less than or equal to 1000"}],
                }
            ]
        }
    )

    type: str = Field(description="Problem type; about:blank where the status says it all.")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = Field(description="The cause and the remedy, in one sentence.")
    errors: list[Flaw] | None = None


class ApiError(SightlineError):
    """Reject a request with an HTTP status and a reason.

    Args:
        kind: the problem type, if the status alone does not identify it.
        retry_after_s: seconds until a retry may succeed.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        errors: Sequence[Flaw] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.http_status, self.detail, self.kind = status, detail, kind
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(ceil(retry_after_s))


def flaws(errors: Sequence[Any], *within: str) -> tuple[Flaw, ...]:
    """Return the validation errors of pydantic, without the rejected values.

    Args:
        within: the part of the request that was validated.
    """
    return tuple(
        Flaw(
            where=".".join(map(str, (*within, *error["loc"]))),
            why=printable(error["msg"].removeprefix("Value error, ")),
        )
        for error in errors
    )


def unprocessable(found: Sequence[Flaw]) -> ApiError:
    """Return the 422 error of a request with these flaws."""
    many = f"{len(found)} fields cannot be used" if len(found) > 1 else "a field cannot be used"
    detail = f"{found[0].where}: {found[0].why}" if len(found) == 1 else f"{many}; errors lists them"
    return ApiError(422, detail, errors=found)


def printable(text: str) -> str:
    """Return `text` without lone surrogates, which JSON parsers reject."""
    return text.encode("utf-8", "backslashreplace").decode()


def api_error_of(error: Exception) -> ApiError:
    """Return the API error of `error`, one of `HANDLED_ERRORS`."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return unprocessable(flaws(error.errors()))
        case HTTPException():
            return ApiError(error.status_code, printable(str(error.detail)), headers=error.headers)
        case BadImage():
            return ApiError(error.http_status, str(error), kind=error.reason.replace("_", "-"))
        case SightlineError() | EmbeddingError():
            kind, pause_s = _of_type(KINDS, error), _of_type(RETRY_PAUSES_S, error)
            return ApiError(error.http_status, explain(error), kind=kind, retry_after_s=pause_s)
        case UnexpectedResponse(status_code=400):
            return ApiError(422, explain(error))
        case ClientDisconnect():
            return ApiError(400, "the connection ended before the request did")
        case NoConnectionFree():
            return ApiError(
                503, "too many requests wait for Postgres; try again", retry_after_s=RETRY_STORE_S
            )
    return ApiError(503, explain(error), retry_after_s=RETRY_STORE_S)


def _of_type(values: Mapping[type[Exception], Value], error: Exception) -> Value | None:
    """Return the value of the first matching class of `error`."""
    return next((value for kind, value in values.items() if isinstance(error, kind)), None)


HANDLED_ERRORS: tuple[type[Exception], ...] = (
    ApiError,
    RequestValidationError,
    HTTPException,
    NoCollection,
    KeyReused,
    QueueFull,
    BadImage,
    EncoderUnavailable,
    ModelError,
    StoreUnavailable,
    UnexpectedResponse,
    ClientDisconnect,
    NoConnectionFree,
)
"""Errors that are reported to the caller; every other error is a bug."""


def problem_response(error: ApiError) -> Response:
    """Return the problem response of an error."""
    problem = Problem(
        type="about:blank" if error.kind is None else OWN_TYPE + error.kind,
        title=HTTPStatus(error.http_status).phrase,
        status=error.http_status,
        detail=error.detail,
        errors=list(error.errors) or None,
    )
    content = problem.model_dump_json(exclude_none=True)
    return Response(content, error.http_status, error.headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Have every error leave `app` as a problem response."""

    def answer(_: Request, error: Exception) -> Response:
        return problem_response(api_error_of(error))

    def answer_bug(request: Request, _: Exception) -> Response:
        # Starlette raises it again once this is sent, so that the server's log has the traceback
        log.error("%s %s failed by a bug", request.method, request.scope["path"])
        return problem_response(ApiError(500, "an internal error; the server's log has the traceback"))

    for kind in HANDLED_ERRORS:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer_bug)


MEANINGS = {
    400: "The request cannot be read.",
    401: "No key, or one that is unknown, revoked or expired.",
    403: "The key lacks the scope.",
    404: "There is no such record, image or receipt.",
    408: "The body did not arrive in time.",
    409: "Nothing has been ingested yet.",
    413: "The request is larger than the limit.",
    415: "The media type of the body is not supported.",
    422: "The request is well-formed, but its content is invalid.",
    429: "The key has made too many requests; Retry-After has the seconds to wait.",
    503: (
        "A store or the model is unavailable, or too many requests are in progress; the detail has the "
        "remedy, Retry-After the seconds to wait."
    ),
}
ALWAYS = (401, 403, 429, 503)
WITH_RETRY = (429, 503)


def responses(*more: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI problem responses of an operation: common ones and `more`."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*ALWAYS, *more}):
        found[status] = {
            "description": MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": SCHEMA}}},
        }
        if status in WITH_RETRY:
            seconds = {"schema": {"type": "integer"}, "description": "Seconds to wait."}
            found[status]["headers"] = {"Retry-After": seconds}
        if status == 401:
            challenge = {"schema": {"type": "string"}, "description": "Bearer"}
            found[status]["headers"] = {"WWW-Authenticate": challenge}
    return found
