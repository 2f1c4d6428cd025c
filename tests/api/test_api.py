"""The API as its callers use it: real stores, real keys, real responses."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from fastapi.routing import APIRoute
from pydantic import SecretStr
from sqlalchemy import text
from starlette.testclient import TestClient

from flows.api.app import create_api
from flows.api.limits import RateLimiter
from flows.config.settings import Qdrant
from flows.service.observer import Observer
from flows.service.pool import Backend
from storage.postgres import api_keys
from storage.records import item_id
from tests.support.apis import a_caller, a_key, sent, taken_in, with_limits, with_settings
from tests.support.builders import png

ROSE = {"key": "rose", "texts": ["red rose"], "metadata": {"kind": "flower", "year": 2020}}
LEAF = {"key": "leaf", "texts": ["green leaf", {"text": "grünes Blatt", "lang": "de"}]}
NEEDS = {
    "get_record": "read",
    "get_picture": "read",
    "search": "read",
    "get_status": "read",
    "send_records": "write",
    "delete_records": "write",
    "get_receipt": "write",
}
OPEN = {"get_health"}


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def caller(backend: Backend) -> Iterator[TestClient]:
    """A caller that may do everything."""
    with a_caller(backend, "admin") as client:
        yield client


def problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The problem document of a response."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    return found


def operations(backend: Backend) -> dict[str, tuple[str, str]]:
    """Every operation that is routed, described or not, by its id: its method and a path."""
    found = {}
    for route in create_api(backend, Observer(backend)).routes:
        effective = getattr(route, "effective_route_contexts", None)
        for one in [route] if effective is None else effective():
            if isinstance(one, APIRoute) or getattr(one, "operation_id", None):
                [method] = one.methods
                found[one.operation_id] = (method, one.path.lstrip("/").replace("{id}", str(uuid4())))
    return found


def test_every_operation_asks_for_a_key_and_says_how_it_wants_it(backend: Backend):
    asked = operations(backend)
    with a_caller(backend) as nobody:
        answers = {name: nobody.request(*asked[name]) for name in asked}

    assert asked.keys() == NEEDS.keys() | OPEN
    assert {name for name, answer in answers.items() if answer.status_code != 401} == OPEN
    for name in NEEDS:
        assert "Bearer sl_" in problem(answers[name], 401)["detail"]
        assert answers[name].headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scope", ["read", "write"])
def test_an_operation_of_another_scope_is_rejected(backend: Backend, scope: api_keys.Scope):
    asked = operations(backend)
    with a_caller(backend, scope) as client:
        answers = {name: client.request(*asked[name]) for name in NEEDS}

    refused = {name for name, answer in answers.items() if answer.status_code == 403}
    assert refused == {name for name, needed in NEEDS.items() if needed != scope}
    for name in refused:
        assert f'scope="{NEEDS[name]}"' in answers[name].headers["www-authenticate"]
        assert NEEDS[name] in problem(answers[name], 403)["detail"]


def test_a_key_that_is_wrong_revoked_or_expired_opens_nothing(backend: Backend):
    known = a_key(backend, "read", name="old")
    with a_caller(backend) as client:
        assert client.get("status", headers=known).status_code == 200
        with backend.sessions() as sessions, sessions.begin() as session:
            api_keys.revoke(session, "old")
        expired = a_key(backend, "read", name="expired")
        with backend.sessions() as sessions, sessions.begin() as session:
            session.execute(text("update keys set expires = now() where name = 'expired'"))

        made_up = [{"Authorization": f"Bearer {key}"} for key in ("sl_" + "a" * 43, "x", "")]
        for headers in (known, expired, *made_up):
            problem(client.get("status", headers=headers), 401)


def test_of_a_key_only_its_hash_is_kept_and_its_use_is_noted(backend: Backend):
    header = a_key(backend, "read", name="reader")
    with a_caller(backend) as client:
        client.get("status", headers=header)

    key = header["Authorization"].removeprefix("Bearer ")
    with backend.sessions() as sessions, sessions() as session:
        [row] = session.execute(text("select * from keys")).mappings()
        [known] = api_keys.list_keys(session)
    assert key not in str(dict(row))
    assert known.used is not None


def test_a_text_finds_images_and_an_image_finds_texts(backend: Backend, caller: TestClient):
    red = {"key": "red", "image_base64": in_base64(png("red"))}
    taken_in(backend, caller, red, ROSE, LEAF)

    by_text = caller.post("search", json={"text": "red"}).json()
    by_picture = caller.post("search", json={"image_base64": in_base64(png("red")), "limit": 1}).json()
    by_form = caller.post("search", files={"image": png("green")}, data={"limit": "1"}).json()

    assert [hit["key"] for hit in by_text["hits"]] == ["red"]
    assert by_text["hits"][0]["uri"].startswith("sha256:")
    assert (by_text["model"], by_text["collection"]) == ("colour", "items__colour1")
    assert [(hit["key"], hit["text"]) for hit in by_picture["hits"]] == [("rose", "red rose")]
    assert [hit["key"] for hit in by_form["hits"]] == ["leaf"]
    assert by_picture["hits"][0]["metadata"] == ROSE["metadata"]


def test_conditions_narrow_a_search_in_a_document_as_in_a_form(backend: Backend, caller: TestClient):
    taken_in(backend, caller, ROSE, LEAF)

    def keys_of(**asked: Any) -> list[str]:
        return [hit["key"] for hit in caller.post("search", **asked).json()["hits"]]

    assert keys_of(json={"text": "green", "find": "texts", "where": {"year": 2020}}) == ["rose"]
    assert keys_of(files={"image": png("green")}, data={"where": '{"kind": "flower"}'}) == ["rose"]
    assert keys_of(json={"text": "green", "find": "texts", "min_score": 0.9}) == ["leaf"]
    both = {"text": "green", "find": "texts", "where": {"key": ["rose", "leaf", 7]}}
    assert set(keys_of(json=both)) == {"rose", "leaf"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "give a text or an image"),
        ({"text": "red", "image_base64": "aGk="}, "give a text or an image"),
        ({"text": "red", "limit": 0}, "body.limit"),
        ({"text": "red", "oversampling": 3}, "body.oversampling"),
        ({"text": "a\0b"}, "NUL"),
        ({"text": "red", "where": {"a\0": 1}}, "NUL"),
        ({"text": "red", "where": {"a": [[1]]}}, "body.where"),
        ({"image_base64": "!"}, "not base64"),
        ({"image_base64": in_base64(b"no picture")}, "not an image"),
    ],
)
def test_a_search_that_cannot_be_meant_is_rejected_with_what_is_wrong(
    backend: Backend, caller: TestClient, asked: dict[str, Any], says: str
):
    taken_in(backend, caller, ROSE)

    told = problem(caller.post("search", json=asked), 422)

    assert says in told["detail"] + str(told.get("errors"))


def test_a_search_before_anything_was_ingested_says_so(caller: TestClient):
    told = problem(caller.post("search", json={"text": "red"}), 409)

    assert "nothing has been ingested yet" in told["detail"]
    assert told["type"].endswith("nothing-ingested")


def test_what_is_no_json_and_no_form_is_rejected(caller: TestClient):
    problem(caller.post("search", content="red", headers={"Content-Type": "text/plain"}), 415)
    problem(caller.post("search", content="{", headers={"Content-Type": "application/json"}), 422)
    problem(caller.get("nowhere"), 404)
    problem(caller.put("search"), 405)


def test_a_record_is_shown_whole_with_its_image(backend: Backend, caller: TestClient):
    data = png("green")
    taken_in(backend, caller, LEAF | {"image_base64": in_base64(data), "metadata": {"kind": "plant"}})
    id = item_id("shop", "leaf")

    shown = caller.get(f"records/{id}").json()
    picture = caller.get(f"records/{id}/picture")
    again = caller.get(f"records/{id}/picture", headers={"If-None-Match": picture.headers["etag"]})

    assert (shown["id"], shown["source"], shown["key"]) == (str(id), "shop", "leaf")
    assert [(one["text"], one["lang"], one["embedded"]) for one in shown["texts"]] == [
        ("green leaf", None, True),
        ("grünes Blatt", "de", False),
    ]
    assert (shown["metadata"], shown["searchable"]) == ({"kind": "plant"}, True)
    assert (shown["picture"]["width"], shown["picture"]["format"]) == (16, "PNG")
    assert (picture.content, picture.headers["content-type"]) == (data, "image/png")
    assert picture.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in picture.headers["content-security-policy"]
    assert (again.status_code, again.content) == (304, b"")


def test_what_is_not_there_is_404(backend: Backend, caller: TestClient):
    taken_in(backend, caller, ROSE)

    problem(caller.get(f"records/{uuid4()}"), 404)
    problem(caller.get(f"records/{uuid4()}/picture"), 404)
    problem(caller.get(f"receipts/{uuid4()}"), 404)
    assert "no image" in problem(caller.get(f"records/{item_id('shop', 'rose')}/picture"), 404)["detail"]
    problem(caller.get("records/rose"), 422)


def test_an_image_whose_bytes_are_gone_is_404(backend: Backend, caller: TestClient):
    taken_in(backend, caller, {"key": "red", "image_base64": in_base64(png("red"))})
    for path in Path(backend.settings.pictures_url or "").rglob("*"):
        if path.is_file():
            path.unlink()

    told = problem(caller.get(f"records/{item_id('shop', 'red')}/picture"), 404)

    assert "sightline reconcile" in told["detail"]


def test_the_status_counts_records_and_what_waits(backend: Backend, caller: TestClient):
    taken_in(backend, caller, ROSE)
    sent(caller, LEAF)

    seen = caller.get("status").json()

    assert (seen["state"], seen["records"]["searchable"], seen["points"]) == ("ok", 1, 1)
    assert (seen["queue"]["waiting"], seen["model"]) == (1, "colour")
    assert seen["postgres"] == {"answers": True, "problem": None}


def test_a_request_that_is_too_large_is_rejected_before_it_is_read(backend: Backend):
    small = with_limits(backend, max_body_bytes=2000, max_records=2)
    with a_caller(small, "write") as client:
        many = [{"key": str(n), "texts": ["red"]} for n in range(3)]

        problem(client.post("records", json={"source": "s", "records": [{"key": "k" * 900}] * 3}), 413)
        chunks = iter([b'{"source": "s"', b" " * 3000, b"}"])
        headers = {"Content-Type": "application/json"}
        problem(client.post("records", content=chunks, headers=headers), 413)
        too_many = client.post("records", json={"source": "s", "records": many})
        assert "at most 2" in problem(too_many, 413)["detail"]
        problem(client.post("records", content=b" " * 3000, headers={"Authorization": "none"}), 401)
    small.close()


def test_a_key_that_asks_too_often_is_told_when_to_come_again(backend: Backend):
    slow = with_limits(backend, requests_per_minute=2)
    other = a_key(slow, "read")
    with a_caller(slow, "read") as client:
        assert [client.get("status").status_code for _ in range(2)] == [200, 200]

        refused = client.get("status")

        problem(refused, 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert client.get("status", headers=other).status_code == 200
    slow.close()


def test_requests_come_back_evenly_over_a_minute():
    now = [0.0]
    rates, key = RateLimiter(60, clock=lambda: now[0]), uuid4()

    assert [rates.take(key) for _ in range(60)] == [0] * 60
    assert rates.take(key) == 1
    now[0] = 1
    assert (rates.take(key), rates.take(key)) == (0, 1)
    now[0] = 1000
    assert [rates.take(key) for _ in range(61)] == [0] * 60 + [1]


def test_a_postgres_that_is_away_is_503_with_the_remedy(backend: Backend, caller: TestClient):
    dead = with_settings(backend, database_url=SecretStr("postgresql+psycopg://me:hunter2@127.0.0.1:1/none"))
    with a_caller(dead) as client:
        answer = client.get("status", headers=dict(caller.headers))

    told = problem(answer, 503)
    assert "is the server of SIGHTLINE_DATABASE_URL running?" in told["detail"]
    assert int(answer.headers["retry-after"]) > 0
    assert "hunter2" not in answer.text


def test_a_qdrant_that_is_away_is_503_for_searches_and_a_sentence_in_the_status(
    backend: Backend, caller: TestClient
):
    taken_in(backend, caller, ROSE)
    dead = with_settings(backend, qdrant=Qdrant(url="http://127.0.0.1:1"))
    with a_caller(dead, "read") as client:
        refused = client.post("search", json={"text": "red"})
        seen = client.get("status").json()
        shown = client.get(f"records/{item_id('shop', 'rose')}")
    dead.close()

    assert "is the server of SIGHTLINE_QDRANT__URL running?" in problem(refused, 503)["detail"]
    assert (seen["state"], seen["qdrant"]["answers"]) == ("degraded", False)
    assert "SIGHTLINE_QDRANT__URL" in seen["qdrant"]["problem"]
    assert shown.json()["key"] == "rose"


def test_a_bug_is_500_as_a_problem_that_tells_nothing_of_it(backend: Backend):
    api = create_api(backend, Observer(backend))

    @api.get("/bug")
    def bug() -> None:
        raise KeyError("secret")

    with TestClient(api, raise_server_exceptions=False) as client:
        answer = client.get("/bug")

    assert "secret" not in str(problem(answer, 500))


def test_the_description_and_the_docs_are_open_and_complete(backend: Backend):
    with a_caller(backend) as nobody:
        described = nobody.get("openapi.json").json()
        page = nobody.get("docs").text
        files = re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', page)
        assert [nobody.get(f"http://testserver{file}").status_code for file in files] == [200, 200]

    assert described["servers"] == [{"url": "/api/v1"}]
    found = {}
    for methods in described["paths"].values():
        for one in methods.values():
            found[one["operationId"]] = one
            assert one.get("description"), one["operationId"]
            for status, answer in one["responses"].items():
                if int(status) >= 400:
                    assert answer["content"].keys() == {"application/problem+json"}
    assert {name: one["security"] for name, one in found.items() if "security" in one} == {
        name: [{"key": [scope]}] for name, scope in NEEDS.items()
    }


def test_a_record_that_waits_to_be_searchable_says_so(backend: Backend, caller: TestClient):
    taken_in(backend, caller, ROSE)
    with backend.sessions() as sessions, sessions.begin() as session:
        session.execute(text("update items set record_hash = 'another'"))

    assert not caller.get(f"records/{item_id('shop', 'rose')}").json()["searchable"]
