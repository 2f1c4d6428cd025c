"""The API conforms to its OpenAPI description, for valid and invalid generated requests."""

import base64
import json
from collections.abc import Iterator

import httpx2
import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, strategies
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from flows.api.app import create_api
from flows.api.worker import drain
from flows.service.observer import Observer
from flows.service.pool import Backend
from storage.records import item_id
from tests.api.test_api import NEEDS
from tests.support.apis import a_caller, a_key, taken_in, with_limits
from tests.support.builders import png

EXAMPLES = 25
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
HOSTILE = ["\0", "\ud800", "9" * 400, "-1e999", 'a"b', "a[", "metadata.", "\\"]


@pytest.fixture
def api(backend: Backend) -> Iterator[FastAPI]:
    """The API over some records, without a rate limit."""
    patient = with_limits(backend, requests_per_minute=1_000_000, max_body_bytes=100_000)
    with a_caller(patient, "admin") as caller:
        picture = base64.b64encode(png("red")).decode()
        taken_in(patient, caller, {"key": "a", "texts": ["red"], "image_base64": picture})
    yield create_api(patient, Observer(patient))
    drain(patient)
    patient.close()


@pytest.mark.parametrize("operation_id", sorted(NEEDS))
def test_every_answer_to_a_request_that_is_made_up_is_as_described(
    api: FastAPI, backend: Backend, operation_id: str
):
    described = schemathesis.openapi.from_asgi("/openapi.json", api)
    operation = described.find_operation_by_id(operation_id)
    headers = a_key(backend, "admin", name="made up")
    made_up = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @given(strategies.one_of(made_up))
    @hypothesis.settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    def is_as_described(case: schemathesis.Case) -> None:
        case.validate_response(case.call(headers=headers), checks=CHECKS)

    is_as_described()

    assert drain(backend) == 0  # and whatever was accepted can be carried out


def test_nothing_that_a_store_cannot_hold_is_a_server_error(backend: Backend):
    told = {}
    with a_caller(backend, "admin") as client:
        taken_in(backend, client, {"key": "a", "texts": ["red"]})
        for hostile in HOSTILE:
            told[hostile] = [answer.status_code for answer in answers_to(client, hostile)]
            assert drain(backend) == 0, hostile

    assert {hostile for hostile, statuses in told.items() if max(statuses) >= 500} == set()


def answers_to(client: TestClient, hostile: str) -> list[httpx2.Response]:
    """Responses to a text in each field that takes one."""
    lone = hostile.encode("utf-8", "replace").decode()
    records = [
        {"key": hostile, "texts": ["red"]},
        {"key": "text", "texts": [hostile]},
        {"key": "metadata", "texts": ["red"], "metadata": {hostile: hostile}},
    ]
    documents = {
        "search": [
            {"text": hostile},
            {"text": "red", "where": {hostile: 1}},
            {"text": "red", "where": {"a": hostile}},
            {"text": "red", "where": {"source": hostile}, "find": "texts"},
        ],
        "records": [
            {"source": hostile, "records": records[1:]},
            *({"source": "s", "records": [record]} for record in records),
        ],
    }
    posted = [
        client.post(path, content=json.dumps(one), headers={"Content-Type": "application/json"})
        for path, some in documents.items()
        for one in some
    ]
    return [
        *posted,
        client.post("search", files={"image": png()}, data={"where": hostile.replace("\ud800", "?")}),
        client.delete("records", params={"key": lone, "source": lone}),
        client.delete("records", params={"where": f"{lone}={lone}"}),
        client.get(f"records/{item_id('shop', 'a')}/picture", headers={"If-None-Match": ascii(hostile)}),
    ]
