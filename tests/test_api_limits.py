"""What a key of the API cannot do, however it asks."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from flows.api import limits
from flows.api.queue import drain
from flows.backend import Backend
from tests.apis import a_caller, sent, taken_in

ROSE = {"key": "rose", "texts": ["red rose"], "metadata": {"kind": "flower"}}
LEAF = {"key": "leaf", "texts": ["green leaf"], "metadata": {"kind": "flower"}}


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
def test_a_number_that_is_not_json_is_refused_and_not_made_null(
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
