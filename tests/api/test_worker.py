"""Accepted requests are carried out once, in order, despite crashes."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from threading import Event, Thread
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from flows.api.worker import MOST_ATTEMPTS, drain
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.ingestion.retry_rejects import RetryReport, retry_rejects
from flows.maintenance.purge import purge
from flows.orchestration.jobs.ingest import ingest_again
from flows.resources.comparison import reconcile
from flows.service.pool import Backend
from storage.postgres import rejects, runs
from storage.postgres.locks import Busy, flow_lock, source_lock
from tests.support.apis import a_caller, a_key, an_application, sent, taken_in, with_limits, with_settings
from tests.support.builders import a_folder, a_manifest, png
from tests.support.processes import wait_until

ROOT = Path(__file__).parents[2]
ROSE = {"key": "rose", "texts": ["red rose"]}
LEAF = {"key": "leaf", "texts": ["green leaf"]}
EMPTY = {"key": "empty", "texts": [" "]}
BROKEN = {"key": "broken", "image_base64": base64.b64encode(b"no picture").decode()}


@pytest.fixture
def caller(backend: Backend) -> Iterator[TestClient]:
    """A caller that may do everything; the test itself drains the queue."""
    with a_caller(backend, "admin") as client:
        yield client


def items(backend: Backend) -> dict[str, str]:
    """The living items: the first text of each, by key."""
    with backend.sessions() as sessions, sessions() as session:
        rows = session.execute(text("select key, texts -> 0 ->> 'text' from items where deleted is null"))
        return dict(rows.tuples().all())


def open_rejects(backend: Backend) -> dict[str, str]:
    with backend.sessions() as sessions, sessions() as session:
        return {reject.key or "": reject.reason for reject in rejects.open_rejects(session)}


def receipt(client: TestClient, id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"receipts/{id}").json()
    return found


def test_what_is_accepted_has_a_receipt_that_follows_it(backend: Backend, caller: TestClient):
    answer = caller.post("records", json={"source": "shop", "records": [ROSE, LEAF]})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.headers["location"] == f"/api/v1/receipts/{answer.json()['id']}"
    assert items(backend) == {}

    drain(backend)

    done = receipt(caller, answer.json()["id"])
    assert (done["state"], done["kind"], done["source"]) == ("done", "ingest", "shop")
    assert (done["counts"]["read"], done["counts"]["embedded"], done["rejects"]) == (2, 2, [])
    assert items(backend) == {"rose": "red rose", "leaf": "green leaf"}
    with backend.writing() as deps:
        assert reconcile(deps).work == 0


def test_what_cannot_be_ingested_is_on_the_receipt_with_its_reason(backend: Backend, caller: TestClient):
    odd = {"key": "odd", "texts": ["x"], "metadata": {"n": 2**70, "nul": "\0"}}

    done = taken_in(backend, caller, ROSE, EMPTY, BROKEN, odd)

    assert done["state"] == "done"
    assert {one["key"]: one["reason"] for one in done["rejects"]} == {
        "empty": "empty_record",
        "broken": "not_a_picture",
        "odd": "bad_metadata",
    }
    assert all("sent: " in one["message"] for one in done["rejects"])
    assert (done["counts"]["rejected"], done["counts"]["embedded"]) == (3, 1)
    assert open_rejects(backend).keys() == {"empty", "broken", "odd"}


def test_a_record_that_is_sent_again_and_good_resolves_its_reject_and_no_other(
    backend: Backend, caller: TestClient
):
    taken_in(backend, caller, EMPTY, BROKEN)

    taken_in(backend, caller, EMPTY | {"texts": ["red"]})

    assert open_rejects(backend) == {"broken": "not_a_picture"}


def test_sending_a_record_again_changes_nothing(backend: Backend, caller: TestClient):
    red = {"key": "red", "image_base64": base64.b64encode(png("red")).decode()}
    taken_in(backend, caller, ROSE, red)

    again = taken_in(backend, caller, ROSE, red)

    assert (again["counts"]["unchanged"], again["counts"]["embedded"], again["counts"]["updated"]) == (
        2,
        0,
        0,
    )


def test_the_same_idempotency_key_is_the_same_request(backend: Backend, caller: TestClient):
    headers = {"Idempotency-Key": "4711"}
    first = sent(caller, ROSE, headers=headers)
    assert sent(caller, ROSE, headers=headers)["id"] == first["id"]
    drain(backend)

    later = caller.post("records", json={"records": [ROSE], "source": "shop"}, headers=headers)
    other = caller.post("records", json={"source": "shop", "records": [LEAF]}, headers=headers)
    with a_caller(backend, "write") as somebody_else:
        theirs = sent(somebody_else, LEAF, headers=headers)

    assert (later.status_code, later.json()["id"], later.json()["state"]) == (200, first["id"], "done")
    assert other.status_code == 422
    assert other.json()["type"].endswith("idempotency-key-reused")
    assert theirs["id"] != first["id"]


def test_many_who_send_one_request_at_once_get_one_receipt(caller: TestClient):
    ids: set[str] = set()

    def send() -> None:
        ids.add(sent(caller, ROSE, headers={"Idempotency-Key": "once"})["id"])

    threads = [Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 1


def test_later_requests_of_a_source_replace_earlier_ones(backend: Backend, caller: TestClient):
    for colour in ("red", "green", "blue"):
        sent(caller, {"key": "a", "texts": [colour]})

    drain(backend)

    assert items(backend) == {"a": "blue"}


def test_deletes_take_their_turn_and_stay_deleted_until_revived(backend: Backend, caller: TestClient):
    sent(caller, ROSE, LEAF)
    asked = caller.delete("records", params={"source": "shop", "key": "rose"})
    drain(backend)

    gone = receipt(caller, asked.json()["id"])
    again = taken_in(backend, caller, ROSE)
    assert (gone["kind"], gone["state"], gone["counts"]["items"]) == ("delete", "done", 1)
    assert again["counts"]["still_deleted"] == 1
    assert items(backend) == {"leaf": "green leaf"}

    revived = caller.post("records", json={"source": "shop", "records": [ROSE], "revive": True})
    drain(backend)
    assert receipt(caller, revived.json()["id"])["counts"]["embedded"] == 1
    assert items(backend).keys() == {"rose", "leaf"}


def test_a_delete_of_what_is_not_there_fails_and_says_why(backend: Backend, caller: TestClient):
    asked = caller.delete("records", params={"key": "nothing"})

    drain(backend)

    failed = receipt(caller, asked.json()["id"])
    assert (failed["state"], "no item has the key 'nothing'" in failed["problem"]) == ("failed", True)


def test_deletes_select_by_metadata_and_whole_sources_need_admin(backend: Backend, caller: TestClient):
    taken_in(backend, caller, ROSE | {"metadata": {"kind": "flower"}}, LEAF)
    with a_caller(backend, "write") as writer:
        assert writer.delete("records", params={"source": "shop"}).status_code == 403
        assert writer.delete("records").status_code == 422
        assert writer.delete("records", params={"where": "kind"}).status_code == 422
        assert writer.delete("records", params={"where": "kind=flower"}).status_code == 202
    drain(backend)
    assert items(backend) == {"leaf": "green leaf"}

    caller.delete("records", params={"source": "shop"})
    drain(backend)
    assert items(backend) == {}


def test_a_source_that_another_run_writes_is_waited_for_while_others_go_on(
    backend: Backend, caller: TestClient
):
    blocked = [sent(caller, {"key": "a", "texts": [colour]}, source="busy") for colour in ("red", "blue")]
    free = sent(caller, ROSE, source="free")
    anywhere = caller.delete("records", params={"key": "rose"}).json()

    with backend.stores() as stores, source_lock(stores.engine, "busy"):
        assert drain(backend) == 3

    assert receipt(caller, free["id"])["state"] == "done"
    waiting = [receipt(caller, one["id"]) for one in blocked]
    assert [one["state"] for one in waiting] == ["queued", "queued"]
    assert "being written by another run" in waiting[0]["problem"]
    assert receipt(caller, anywhere["id"])["state"] == "queued"

    assert drain(backend) == 0
    assert items(backend) == {"a": "blue"}


def test_only_one_process_carries_out_requests(backend: Backend, caller: TestClient):
    sent(caller, ROSE)

    with backend.stores() as stores, flow_lock(stores.engine, "queue"), pytest.raises(Busy):
        drain(backend)

    assert drain(backend) == 0
    assert items(backend).keys() == {"rose"}


KILLED = """
import sys
from flows.api.worker import drain
from flows.service.pool import Backend
from flows.config.settings import Settings
from tests.support.fakes import ColourEncoder
from tests.faults import points

points.arm_point(points.KillPoint("", *sys.argv[1:]))
backend = Backend(Settings.model_validate_json(sys.stdin.read()), load=lambda *_: ColourEncoder())
drain(backend)
"""


def killed_at(backend: Backend, target: str, when: str) -> None:
    """Drain the queue in a process that kills itself there, as by `kill -9`."""
    command = [sys.executable, "-c", KILLED, target, when]
    asked = json.dumps(settings_of(backend))
    done = subprocess.run(command, input=asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -SIGKILL, done.stderr


def settings_of(backend: Backend) -> dict[str, Any]:
    settings = backend.settings
    assert settings.database_url is not None
    return {
        "home": str(settings.home),
        "database_url": settings.database_url.get_secret_value(),
        "pictures_url": settings.pictures_url,
    }


@pytest.mark.parametrize(
    ("target", "when"),
    [
        pytest.param("storage.postgres.request_queue:begin", "after", marks=pytest.mark.full),
        pytest.param("storage.postgres.catalog:save_items", "before", marks=pytest.mark.full),
        ("storage.postgres.catalog:mark_embedded", "before"),
        pytest.param("storage.postgres.request_queue:finish", "before", marks=pytest.mark.full),
    ],
)
def test_a_request_whose_process_is_killed_is_taken_up_again(
    backend: Backend, caller: TestClient, target: str, when: str
):
    red = {"key": "red", "image_base64": base64.b64encode(png("red")).decode()}
    accepted = sent(caller, red, ROSE, EMPTY)

    killed_at(backend, target, when)
    assert receipt(caller, accepted["id"])["state"] in ("queued", "running")

    drain(backend)
    done = receipt(caller, accepted["id"])
    assert (done["state"], done["counts"]["read"]) == ("done", 3)
    assert [one["key"] for one in done["rejects"]] == ["empty"]
    assert items(backend).keys() == {"red", "rose"}
    with backend.writing() as deps:
        assert reconcile(deps).work == 0


def test_a_request_that_ends_every_process_is_given_up(backend: Backend, caller: TestClient):
    bad, good = sent(caller, ROSE), sent(caller, LEAF)
    with backend.sessions() as sessions, sessions.begin() as session:
        begun = {"id": bad["id"], "many": MOST_ATTEMPTS}
        session.execute(text("update requests set state = 'running', attempts = :many where id = :id"), begun)

    drain(backend)

    assert "each time the process ended" in receipt(caller, bad["id"])["problem"]
    assert receipt(caller, good["id"])["state"] == "done"


def test_a_model_that_cannot_be_loaded_keeps_requests_waiting_and_says_why(
    backend: Backend, caller: TestClient
):
    accepted = sent(caller, ROSE)
    unready = with_settings(backend, model="no/such-model")
    taken_in(backend, caller, LEAF, source="other")
    waiting = sent(caller, ROSE, source="third")

    assert drain(unready) == 1

    told = receipt(caller, waiting["id"])
    assert (told["state"], "SIGHTLINE_MODEL is 'no/such-model'" in told["problem"]) == ("queued", True)
    assert receipt(caller, accepted["id"])["state"] == "done"
    unready.close()


def test_a_disk_that_takes_nothing_keeps_requests_waiting_and_says_why(
    backend: Backend, caller: TestClient, tmp_path: Path
):
    a_folder(tmp_path, {"no folder": ""})
    broken = with_settings(backend, pictures_url=str(tmp_path / "no folder" / "pictures"))
    accepted = sent(caller, {"key": "red", "image_base64": base64.b64encode(png("red")).decode()})

    assert drain(broken) == 1
    broken.close()

    told = receipt(caller, accepted["id"])
    assert (told["state"], "no folder" in told["problem"]) == ("queued", True)
    assert drain(backend) == 0
    assert receipt(caller, accepted["id"])["state"] == "done"


def test_what_was_sent_is_never_read_again_from_anywhere(
    backend: Backend, caller: TestClient, tmp_path: Path
):
    taken_in(backend, caller, ROSE, EMPTY)
    rows = [{"key": "tree", "text": "green"}, {"key": "bad"}]
    manifest = a_manifest(tmp_path / "shop" / "shop.jsonl", rows)
    settings = backend.settings.model_copy(update={"decode_workers": 0})

    with backend.writing() as deps:
        with deps.sessions() as session:
            assert runs.known_sources(session) == []
        [only_sent] = retry_rejects(deps, settings)
        ingest_source(deps, settings, Request(manifest, "shop"))
        with deps.sessions() as session:
            [read] = runs.known_sources(session)
        failed: dict[str, str] = {}
        ingest_again(deps, settings, read, None, failed)
        both = retry_rejects(deps, settings)

    assert only_sent == RetryReport("shop", 0, 1, "they came over the API; their client must send them again")
    assert (read.location, failed) == (str(manifest), {})
    assert [(one.tried, one.open) for one in both] == [(1, 1), (0, 1)]
    assert open_rejects(backend) == {"empty": "empty_record", "bad": "empty_record"}
    assert items(backend).keys() == {"rose", "tree"}


def test_an_image_url_into_a_private_network_is_rejected_unless_that_is_set(
    backend: Backend, caller: TestClient
):
    [private] = taken_in(backend, caller, {"key": "a", "image": "http://127.0.0.1:1/a.png"})["rejects"]
    open_to_all = with_limits(backend, private_images=True)
    [allowed] = taken_in(open_to_all, caller, {"key": "a", "image": "http://127.0.0.1:1/a.png"})["rejects"]
    open_to_all.close()

    assert (private["reason"], allowed["reason"]) == ("private_address", "unreachable")
    assert "SIGHTLINE_API__PRIVATE_IMAGES" in private["message"]


@pytest.mark.parametrize("image", ["file:///etc/passwd", "a.png", "/etc/passwd", "s3://bucket/a.png"])
def test_an_image_is_never_read_from_the_servers_own_files(caller: TestClient, image: str):
    answer = caller.post("records", json={"source": "shop", "records": [{"key": "a", "image": image}]})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == "body.records.0.image"


def test_images_that_could_not_be_kept_are_rejected(backend: Backend):
    forgetful = with_settings(backend, keep_pictures=False)
    with a_caller(forgetful, "write") as client:
        answer = client.post("records", json={"source": "shop", "records": [BROKEN]})
    forgetful.close()

    assert (answer.status_code, "SIGHTLINE_KEEP_PICTURES" in answer.text) == (422, True)


def test_old_receipts_are_purged_and_waiting_requests_are_not(backend: Backend, caller: TestClient):
    old = taken_in(backend, caller, ROSE)
    waiting = sent(caller, LEAF)
    with backend.sessions() as sessions, sessions.begin() as session:
        session.execute(text("update requests set ended = now() - interval '8 days' where state = 'done'"))
        session.execute(text("update requests set accepted = now() - interval '8 days'"))

    with backend.stores() as stores:
        assert purge(stores, backend.settings, dry_run=True).receipts == 1
        assert purge(stores, backend.settings).receipts == 1

    assert caller.get(f"receipts/{old['id']}").status_code == 404
    assert receipt(caller, waiting["id"])["state"] == "queued"


def test_what_waits_is_carried_out_while_the_queue_is_at_work(backend: Backend):
    headers = a_key(backend, "write", name="writer")
    with TestClient(an_application(backend), headers=headers) as client:
        answer = client.post("/api/v1/records", json={"source": "shop", "records": [ROSE]})
        place = answer.headers["location"]
        wait_until(lambda: client.get(place).json()["state"] == "done", patience_s=60)

    assert items(backend).keys() == {"rose"}
    assert UUID(answer.json()["id"])


def test_a_queue_that_is_stopped_begins_nothing_more(backend: Backend, caller: TestClient):
    sent(caller, ROSE)
    ended = Event()
    ended.set()

    assert drain(backend, ended) == 1

    assert items(backend) == {}
