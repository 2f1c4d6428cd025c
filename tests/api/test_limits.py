"""Limits of an API key."""

import asyncio
import base64
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient
from starlette.types import Message, Receive

from flows.api import images, limits, request_bodies
from flows.api.images import ImageSender
from flows.api.limits import SMALL_BYTES, BoundedBody, ByteBudget
from flows.api.problems import ApiError
from flows.api.worker import drain
from flows.service.pool import Backend
from storage.records import item_id
from tests.support.apis import a_caller, sent, taken_in
from tests.support.builders import png

ROSE = {"key": "rose", "texts": ["red rose"], "metadata": {"kind": "flower"}}
LEAF = {"key": "leaf", "texts": ["green leaf"], "metadata": {"kind": "flower"}}


LARGE = 2 * SMALL_BYTES


def arriving(*parts: bytes, pause_s: float = 0.0) -> Receive:
    """A receiver of the parts of a body, one after another, without an end."""
    left = list(parts)

    async def receive() -> Message:
        await asyncio.sleep(pause_s if left else 3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": True}

    return receive


async def whole(body: BoundedBody) -> None:
    while (await body.receive())["more_body"]:
        pass


@pytest.fixture
def narrow(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend in whose queue two requests may wait, and that lets one record be deleted at once."""
    monkeypatch.setattr(limits, "MAX_QUEUED", 2)
    monkeypatch.setattr(limits, "MAX_DELETES", 1)
    return backend


@pytest.fixture
def writer(narrow: Backend) -> Iterator[TestClient]:
    with a_caller(narrow, "write") as client:
        yield client


def living(backend: Backend) -> set[str]:
    with backend.sessions() as sessions, sessions() as session:
        return set(session.scalars(text("select key from items where deleted is null")))


def test_a_queue_that_is_full_accepts_nothing_more_and_says_when_to_come_again(
    narrow: Backend, writer: TestClient
):
    once = {"headers": {"Idempotency-Key": "once"}}
    first, second = sent(writer, ROSE, **once), sent(writer, LEAF)

    refused = writer.post("records", json={"source": "shop", "records": [ROSE]})
    again = sent(writer, ROSE, **once)

    assert (refused.status_code, refused.json()["type"]) == (503, "urn:problem-type:sightline:queue-full")
    assert int(refused.headers["Retry-After"]) > 0
    assert again["id"] == first["id"]  # what was accepted is, whatever waits
    drain(narrow)
    assert sent(writer, LEAF)["id"] not in (first["id"], second["id"])


def test_a_queue_has_room_for_so_many_bytes(writer: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_QUEUED_BYTES", 2000)
    sent(writer, ROSE)
    large = {"key": "large", "texts": ["x" * 2000]}
    refused = writer.post("records", json={"source": "shop", "records": [large]})

    assert refused.status_code == 503


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("metadata", ['{"a": %s}', '{"a": [{"b": %s}]}'])
def test_a_number_that_is_not_json_is_rejected_and_not_made_null(
    writer: TestClient, number: str, metadata: str
):
    record = f'{{"key": "a", "texts": ["a"], "metadata": {metadata % number}}}'
    answer = writer.post(
        "records",
        content=f'{{"source": "shop", "records": [{record}]}}',
        headers={"Content-Type": "application/json"},
    )

    assert answer.status_code == 422
    assert "is not JSON" in answer.text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    "body",
    [
        '{"text": "red", "min_score": %s}',
        '{"text": "red", "min_score": %s, "min_score": 0.5}',
        '{"text": "red", "where": {"year": [%s]}}',
        '{"text": "red", "nothing": {"known": [%s]}}',
        "%s",
    ],
)
def test_a_search_with_a_number_that_is_not_json_is_rejected(narrow: Backend, number: str, body: str):
    with a_caller(narrow, "read") as reader:
        headers = {"Content-Type": "application/json"}
        answer = reader.post("search", content=body % number, headers=headers)

    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"where": "body", "why": request_bodies.NOT_JSON}]


def test_a_text_may_name_what_is_not_a_number(narrow: Backend, writer: TestClient):
    done = taken_in(narrow, writer, {"key": "a", "texts": ['NaN, "Infinity" and beyond']})

    assert (done["state"], done["rejects"]) == ("done", [])


def test_json_that_python_holds_in_far_more_bytes_is_rejected_before_it_is_parsed(writer: TestClient):
    values = "{}," * (request_bodies.MAX_VALUES // 2 + 1)
    record = f'{{"key": "a", "texts": ["a"], "metadata": {{"a": [{values}0]}}}}'
    began = time.process_time()
    answer = writer.post(
        "records",
        content=f'{{"source": "shop", "records": [{record}]}}',
        headers={"Content-Type": "application/json"},
    )

    assert (answer.status_code, "500,000 values" in answer.json()["detail"]) == (413, True)
    assert time.process_time() - began < 1


def test_large_bodies_have_room_for_a_few_and_the_others_come_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "WAIT_S", 0.1)

    async def send() -> None:
        room = ByteBudget(2 * LARGE)
        first, second, third = (BoundedBody(arriving(b"x"), LARGE, LARGE, room) for _ in range(3))
        await first.receive()
        await second.receive()
        with pytest.raises(ApiError) as refused:
            await third.receive()
        assert (refused.value.http_status, refused.value.headers) == (503, {"Retry-After": "5"})
        await BoundedBody(arriving(b"x"), SMALL_BYTES, LARGE, room).receive()  # a text is found meanwhile

        first.release()
        await third.receive()

    asyncio.run(send())


def test_a_large_body_waits_a_little_for_room():
    async def send() -> None:
        room = ByteBudget(LARGE)
        first, second = (BoundedBody(arriving(b"x"), LARGE, LARGE, room) for _ in range(2))
        await first.receive()
        asyncio.get_running_loop().call_later(0.1, first.release)

        assert (await second.receive())["body"] == b"x"

    asyncio.run(send())


def test_waiting_bodies_take_the_room_one_after_another():
    async def send() -> None:
        room = ByteBudget(LARGE)

        async def received(body: BoundedBody) -> None:
            await body.receive()
            await asyncio.sleep(0)
            body.release()

        await asyncio.gather(*(received(BoundedBody(arriving(b"x"), LARGE, LARGE, room)) for _ in range(4)))
        assert not room._held

    asyncio.run(send())


def test_a_body_that_states_no_size_takes_room_as_it_comes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "WAIT_S", 0.1)

    async def send() -> None:
        room = ByteBudget(LARGE)
        first = BoundedBody(arriving(b"x" * LARGE), LARGE, LARGE, room)
        second = BoundedBody(arriving(b"x" * SMALL_BYTES, b"x"), 0, LARGE, room)
        await first.receive()
        await second.receive()

        with pytest.raises(ApiError, match="too many large requests"):
            await second.receive()

    asyncio.run(send())


def test_one_caller_leaves_room_to_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "WAIT_S", 0.1)

    async def send() -> None:
        room = ByteBudget(2 * LARGE, most_per_caller=LARGE)
        mine, more, others = (
            BoundedBody(arriving(b"x"), LARGE, LARGE, room, caller=lambda name=name: name)
            for name in ("me", "me", "another")
        )
        await mine.receive()
        with pytest.raises(ApiError):
            await more.receive()

        await others.receive()

    asyncio.run(send())


def test_the_room_of_a_body_is_its_keys_and_free_once_it_is_answered(
    narrow: Backend, writer: TestClient, monkeypatch: pytest.MonkeyPatch
):
    rooms: dict[ByteBudget, set[object]] = {}
    take = ByteBudget.take

    async def noted(self: ByteBudget, size: int, caller: object) -> None:
        rooms.setdefault(self, set()).add(caller)
        await take(self, size, caller)

    monkeypatch.setattr(ByteBudget, "take", noted)
    large = {"key": "large", "texts": ["x" * 30_000] * 5}
    sent(writer, large)
    with a_caller(narrow, "write") as other:
        sent(other, large)

    assert [len(callers) for callers in rooms.values()] == [1, 1]
    assert None not in set().union(*rooms.values())
    assert not any(room._held for room in rooms)


def test_an_image_is_sent_in_parts_and_a_caller_that_does_not_read_it_is_left(
    narrow: Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "GRACE_S", 0.2)
    monkeypatch.setattr(images, "PART_BYTES", 10)
    image = png()
    with a_caller(narrow, "admin") as admin:
        taken_in(narrow, admin, {"key": "rose", "image_base64": base64.b64encode(image).decode()})
    sender = ImageSender(narrow)
    id, caller = item_id("shop", "rose"), uuid4()
    parts: list[Message] = []

    async def send(most: int) -> None:
        async def sending(part: Message) -> None:
            await asyncio.sleep(0 if len(parts) < most else 3600)
            parts.append(part)

        answer = await sender.answer(id, None, caller)
        assert sender._held._held.total() == len(image)
        await answer({"type": "http"}, arriving(), sending)

    asyncio.run(send(most=3))
    assert len(parts) == 3
    assert not sender._held._held
    parts.clear()
    asyncio.run(send(most=1000))

    assert b"".join(part.get("body", b"") for part in parts) == image
    assert max(len(part.get("body", b"")) for part in parts) == 10


def test_images_that_are_sent_have_room_for_a_few(narrow: Backend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "WAIT_S", 0.1)
    sender, caller = ImageSender(narrow), uuid4()

    async def ask() -> None:
        for _ in range(2):
            await sender._held.take(narrow.settings.max_picture_bytes, caller)
        with pytest.raises(ApiError) as refused:
            await sender.answer(item_id("shop", "rose"), None, caller)
        assert refused.value.http_status == 503
        with pytest.raises(ApiError) as missing:
            await sender.answer(item_id("shop", "rose"), None, uuid4())
        assert missing.value.http_status == 404
        assert sender._held._held.keys() == {caller}

    asyncio.run(ask())


@pytest.mark.parametrize("pause_s", [0.01, 3600])
def test_a_body_that_comes_too_slowly_gives_its_room_back(pause_s: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "GRACE_S", 0.2)
    monkeypatch.setattr(limits, "LEAST_RATE", 1000)

    async def send() -> None:
        room = ByteBudget(LARGE)
        body = BoundedBody(arriving(*[b"x"] * 1000, pause_s=pause_s), LARGE, LARGE, room)
        began = time.monotonic()
        with pytest.raises(ApiError) as refused:
            await whole(body)
        body.release()

        assert (refused.value.http_status, refused.value.headers) == (408, {"Connection": "close"})
        assert time.monotonic() - began < 5
        await room.take(LARGE, None)

    asyncio.run(send())


def test_a_key_that_may_write_deletes_few_records_at_once(narrow: Backend, writer: TestClient):
    taken_in(narrow, writer, ROSE, LEAF)

    for where in ({"where": "kind=flower"}, {"where": "kind=flower", "source": "shop"}):
        refused = writer.delete("records", params=where)
        assert (refused.status_code, "2 records" in refused.json()["detail"]) == (403, True)
    one = writer.delete("records", params={"key": "rose"})
    drain(narrow)

    assert one.status_code == 202
    assert living(narrow) == {"leaf"}


def test_the_bound_of_a_delete_holds_when_it_is_carried_out(narrow: Backend, writer: TestClient):
    taken_in(narrow, writer, ROSE)
    accepted = writer.delete("records", params={"where": "kind=flower"}).json()
    sent(writer, LEAF)
    with narrow.sessions() as sessions, sessions.begin() as session:
        session.execute(
            text("update requests set accepted = now() + interval '1 hour' where kind = 'delete'")
        )

    drain(narrow)

    receipt = writer.get(f"receipts/{accepted['id']}").json()
    assert (receipt["state"], "2 records by now" in receipt["problem"]) == ("failed", True)
    assert living(narrow) == {"rose", "leaf"}


def test_a_key_that_may_do_everything_deletes_as_many_as_it_likes(narrow: Backend):
    with a_caller(narrow, "admin") as admin:
        taken_in(narrow, admin, ROSE, LEAF)
        admin.delete("records", params={"where": "kind=flower"})
    drain(narrow)

    assert living(narrow) == set()
