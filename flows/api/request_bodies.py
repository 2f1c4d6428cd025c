"""Read request bodies after authentication.

FastAPI itself would read a body before the key is checked.
"""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from flows.api.problems import ApiError, Flaw, flaws, unprocessable
from flows.api.request_models import SearchRequest

JSON = "application/json"
FORM = "multipart/form-data"
MOST_FIELDS = 20
MAX_VALUES = 500_000
"""Values in a JSON body at most: Python holds an empty object of three characters in 64 bytes, and parsing
blocks other requests.
"""

NOT_JSON = "a number that is NaN or infinite is not JSON; write null or leave it out"

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model]) -> Model:
    """Return the JSON body as a `model`.

    Raises:
        ApiError: 413, 415 or 422.
    """
    _require_type(request, JSON)
    data = bytearray()
    async for part in request.stream():  # `request.body` would keep them for as long as the answer takes
        data += part
    return await run_in_threadpool(parse_json, data, model)


def parse_json(data: bytes | bytearray, model: type[Model]) -> Model:
    """Parse a JSON document as a `model`.

    Raises:
        ApiError: 413, it has too many values; 422.
    """
    require_plain_json(data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise unprocessable(flaws(error.errors(), "body")) from error


def require_plain_json(data: bytes | bytearray) -> None:
    """Reject JSON that is costly to parse, or holds NaN.

    Raises:
        ApiError: 413 or 422.
    """
    if sum(map(data.count, (b"{", b"[", b","))) > MAX_VALUES:
        raise ApiError(413, f"the request has more than {MAX_VALUES:,} values; send fewer records at once")
    if (b"NaN" in data or b"Infinity" in data) and _is_json(data) and not _is_json(data, strictly=True):
        raise unprocessable([Flaw(where="body", why=NOT_JSON)])


def _is_json(data: bytes | bytearray, *, strictly: bool = False) -> bool:
    try:
        from_json(data, allow_inf_nan=not strictly)
    except ValueError:
        return False
    return True


async def read_search(request: Request) -> SearchRequest:
    """Return the search request of a JSON document or a form.

    Raises:
        ApiError: 413, 415 or 422.
        HTTPException: 400, a form that cannot be read.
    """
    if _require_type(request, JSON, FORM) == JSON:
        return await read_json(request, SearchRequest)
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        given: dict[str, Any] = dict(form)
        image = given.pop("image", None)
        if not isinstance(image, UploadFile):
            raise unprocessable([Flaw(where="body.image", why="give the image as a file")])
        given["image_base64"] = await image.read()
    if "where" in given:
        given["where"] = _conditions(given["where"])
    try:
        return SearchRequest.model_validate(given)
    except ValidationError as error:
        raise unprocessable(flaws(error.errors(), "body")) from error


def _conditions(value: object) -> Any:
    try:
        return json.loads(str(value))
    except (ValueError, RecursionError) as error:
        raise unprocessable([Flaw(where="body.where", why=f"no JSON object ({error})")]) from error


def _require_type(request: Request, *taken: str) -> str:
    stated = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if stated not in taken:
        raise ApiError(415, f"the body has to be {' or '.join(taken)}, not {stated or 'without a type'}")
    return stated


def request_body(model: type[BaseModel], *, form: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the OpenAPI description of a request body."""
    content: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    if form is not None:
        content[FORM] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


SEARCH_FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "The query image."},
        "find": {"enum": ["images", "texts"]},
        "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
        "min_score": {"type": "number", "minimum": -1, "maximum": 1},
        "where": {"type": "string", "description": 'Conditions as JSON: {"kind": ["fruit", "nut"]}'},
    },
}
