"""Define the operations on records and on receipts."""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response, Security
from pydantic import BaseModel, ValidationError

from flows.api import limits, queries
from flows.api.auth import KeyAuthenticator, require_scope
from flows.api.images import ImageSender, image_responses
from flows.api.problems import ApiError, Flaw, flaws, responses, unprocessable
from flows.api.request_bodies import read_json, request_body
from flows.api.request_models import MOST_KEYS, DeleteRequest, IngestRequest
from flows.api.response_models import ReceiptAnswer, RecordAnswer
from flows.service.pool import Backend
from storage.postgres import catalog, request_queue
from storage.postgres.api_keys import Key
from storage.postgres.request_queue import Capacity, Kind
from storage.records import parse_conditions

MAX_IDEMPOTENCY_CHARS = 255

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=MAX_IDEMPOTENCY_CHARS,
        pattern="^[\\x21-\\x7e]+$",
        description=(
            "Identifies the request, so that a retry is not carried out twice: the same key of the same "
            "caller returns the same receipt for as long as receipts are kept."
        ),
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]
LOCATION = {"Location": {"schema": {"type": "string"}, "description": "URL of the receipt."}}
RECEIPT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ReceiptAnswer,
        "description": "The receipt of a request that was sent before and has ended.",
        "headers": LOCATION,
    },
    202: {"description": "The receipt of a queued request.", "headers": LOCATION},
}


def record_routes(backend: Backend, authenticator: KeyAuthenticator) -> APIRouter:
    """Return the operations on records and receipts."""
    router = APIRouter(tags=["records"])
    reader = Annotated[Key, Security(authenticator.require, scopes=["read"])]
    writer = Annotated[Key, Security(authenticator.require, scopes=["write"])]
    images = ImageSender(backend)

    @router.get("/records/{id}", operation_id="get_record", responses=responses(404, 422))
    def get_record(_: reader, id: UUID) -> RecordAnswer:
        """Return a record: its texts, metadata, image properties and searchability."""
        return queries.record_answer(backend, id)

    @router.get(
        "/records/{id}/picture",
        operation_id="get_picture",
        response_class=Response,
        responses=responses(404, 422) | image_responses(),
    )
    async def get_picture(
        caller: reader, id: UUID, if_none_match: Annotated[str | None, Header()] = None
    ) -> Response:
        """Return the original bytes of a record's image."""
        return await images.answer(id, if_none_match, caller.id)

    async def read_payload(request: Request) -> IngestRequest:
        return await read_json(request, IngestRequest)

    @router.post(
        "/records",
        operation_id="send_records",
        status_code=202,
        responses=RECEIPT | responses(400, 408, 413, 415, 422),
        openapi_extra=request_body(IngestRequest),
    )
    def send_records(
        request: Request,
        response: Response,
        caller: writer,
        payload: Annotated[IngestRequest, Depends(read_payload)],
        idempotency_key: IdempotencyKey = None,
    ) -> ReceiptAnswer:
        """Ingest records, or replace those with the same keys.

        An accepted request is on disk before the response, survives a crash, and is carried out in its turn;
        the receipt reports its state, and the records that were rejected. Sending a record again unchanged
        has no effect, with or without an idempotency key.
        """
        _require_feasible(backend, payload)
        accept = _acceptor(backend, request, response, caller, idempotency_key)
        return accept("ingest", payload.source, payload)

    @router.delete(
        "/records", operation_id="delete_records", status_code=202, responses=RECEIPT | responses(422)
    )
    def delete_records(
        request: Request,
        response: Response,
        caller: writer,
        key: Annotated[list[str], Query(max_length=MOST_KEYS, description="May be repeated.")] = [],  # noqa: B006
        source: Annotated[
            str | None, Query(description="Given alone, it deletes the whole source: that needs `admin`.")
        ] = None,
        where: Annotated[
            list[str],
            Query(description="Metadata as K=V; several values of a field mean any."),
        ] = [],  # noqa: B006
        idempotency_key: IdempotencyKey = None,
    ) -> ReceiptAnswer:
        """Delete records for good, in their turn: points, images, texts.

        A record must match all given conditions. It stays deleted when it is sent again, unless the request
        says `revive`. A key without `admin` deletes no whole sources, and few records at once.
        """
        if len(request.query_params.getlist("source")) > 1:
            raise unprocessable([Flaw(where="query.source", why="give one source a request")])
        payload = _deletion(key, source, where)
        if payload.is_whole_source:
            require_scope(caller, "admin")
        if not caller.may("admin"):
            payload = _bounded(backend, payload)
        accept = _acceptor(backend, request, response, caller, idempotency_key)
        return accept("delete", payload.source, payload)

    @router.get("/receipts/{id}", operation_id="get_receipt", responses=responses(404, 422))
    def get_receipt(_: writer, id: UUID) -> ReceiptAnswer:
        """Return the state of a request, with its counts and rejects."""
        with backend.sessions() as sessions, sessions() as session:
            found = request_queue.receipt(session, id)
        if found is None:
            raise ApiError(404, f"there is no receipt {id}; receipts are kept for some days")
        return queries.receipt_answer(found)

    return router


def _require_feasible(backend: Backend, payload: IngestRequest) -> None:
    """Reject a request that could never be carried out as meant.

    Raises:
        ApiError: 413 or 422.
    """
    settings = backend.settings
    if len(payload.records) > settings.api.max_records:
        raise ApiError(
            413, f"{len(payload.records):,} records in one request; send at most {settings.api.max_records:,}"
        )
    if not settings.keep_pictures and any(one.image_base64 is not None for one in payload.records):
        why = "images are not kept here (SIGHTLINE_KEEP_PICTURES); give the URL of each as image"
        raise unprocessable([Flaw(where="body.records", why=why)])


def _deletion(keys: list[str], source: str | None, where: list[str]) -> DeleteRequest:
    try:
        found = parse_conditions(where)
    except ValueError:
        raise unprocessable([Flaw(where="query.where", why="write K=V, such as kind=fruit")]) from None
    conditions = {name: values if isinstance(values, str) else [*values] for name, values in found.items()}
    try:
        return DeleteRequest.model_validate({"keys": keys, "source": source, "where": conditions})
    except ValidationError as error:
        raise unprocessable(flaws(error.errors(), "query")) from error


def _bounded(backend: Backend, payload: DeleteRequest) -> DeleteRequest:
    """Return the deletion within the bound of a key without `admin`.

    The bound holds when it is carried out as well.

    Raises:
        ApiError: 403, it selects too many records.
    """
    at_most = limits.MAX_DELETES
    with backend.sessions() as sessions, sessions() as session:
        count = sum(catalog.count_by_source(session, payload.as_selection()).values())
    if count > at_most:
        raise ApiError(
            403,
            f"this would delete {count:,} records; a key without the scope 'admin' deletes at most "
            f"{at_most:,} with one request",
        )
    return payload.model_copy(update={"at_most": at_most})


Accept = Callable[[Kind, str | None, BaseModel], ReceiptAnswer]


def _acceptor(
    backend: Backend, request: Request, response: Response, caller: Key, idempotency_key: str | None
) -> Accept:
    """Return a function that queues a request and links its receipt."""

    def accept(kind: Kind, source: str | None, payload: BaseModel) -> ReceiptAnswer:
        body = payload.model_dump_json().encode()
        with backend.sessions() as sessions, sessions.begin() as session:
            receipt, _ = request_queue.accept(
                session,
                caller.id,
                kind,
                source=source,
                body=body,
                fingerprint=hashlib.sha256(kind.encode() + b"\n" + body).hexdigest(),
                idempotency_key=idempotency_key,
                room=Capacity(limits.MAX_QUEUED, limits.MAX_QUEUED_BYTES),
            )
        response.status_code = 200 if receipt.ended else 202
        response.headers["Location"] = f"{request.scope.get('root_path', '')}/receipts/{receipt.id}"
        return queries.receipt_answer(receipt)

    return accept
