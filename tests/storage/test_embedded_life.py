"""The owner process of the embedded index: found, shared, restarted, ended, killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from threading import Event

import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from storage.embedded.qdrant.process.client import IndexUnavailable, find_index, index_client, start, stop
from storage.embedded.qdrant.process.discovery import Access, access_file, find
from tests.bench.stress import ROLES, stress
from tests.support.processes import PATIENCE_S, HomeAt, is_gone, wait_until

pytestmark = pytest.mark.services

REPOSITORY = Path(__file__).parents[2]
NAME = "pictures"
BATCH = 20
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as another user")


def make(client: QdrantClient) -> None:
    client.create_collection(NAME, vectors_config=models.VectorParams(size=2, distance="Dot"))


def a_batch(number: int) -> list[models.PointStruct]:
    return [
        models.PointStruct(id=number * BATCH + row, vector=[number, row], payload={"batch": number})
        for row in range(BATCH)
    ]


def batches(client: QdrantClient) -> dict[int, int]:
    """How many points of each batch are there."""
    points, _ = client.scroll(NAME, limit=100_000)
    found: dict[int, int] = {}
    for point in points:
        found[point.payload["batch"]] = found.get(point.payload["batch"], 0) + 1
    return found


def owner(home: Path) -> Access:
    found = find(home)
    assert found is not None
    return found


def kill(home: Path) -> Access:
    access = owner(home)
    os.kill(access.pid, signal.SIGKILL)
    wait_until(lambda: find(home) is None)
    return access


# --- one owner


def test_the_owner_outlives_its_starter_and_is_found_by_other_processes(home: Path):
    code = """if True:
        import sys, pathlib
        from storage.embedded.qdrant.process.client import index_client
        with index_client(pathlib.Path(sys.argv[1]), timeout_s=30) as client:
            client.create_collection("by another", vectors_config={"size": 2, "distance": "Dot"})
    """
    subprocess.run([sys.executable, "-c", code, str(home)], cwd=REPOSITORY, check=True)

    pid = owner(home).pid
    with index_client(home, timeout_s=30) as client:
        assert client.collection_exists("by another")
    assert owner(home).pid == pid


@pytest.mark.full  # tests/storage/test_embedded.py has the same of Postgres
def test_those_who_start_at_once_get_one_owner(home: Path):
    code = """if True:
        import sys, pathlib
        from storage.embedded.qdrant.process.client import start
        print(start(pathlib.Path(sys.argv[1])).pid)
    """
    argv = [sys.executable, "-c", code, str(home)]
    starters = [subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        in_here = {access.pid for access in threads.map(start, [home] * 4)}

    pids = {int(starter.communicate(timeout=PATIENCE_S)[0]) for starter in starters}

    assert pids == in_here == {owner(home).pid}


def test_the_key_and_the_files_are_for_nobody_else(home: Path):
    start(home)

    assert access_file(home).stat().st_mode & 0o777 == 0o600
    assert (home / "qdrant").stat().st_mode & 0o777 == 0o700
    assert (home / "qdrant/socket").is_socket()
    assert len(owner(home).key) > 40


def test_it_tells_where_it_is_since_when_how_large_and_of_how_many_points(home: Path):
    assert find_index(home) is None
    access = start(home)
    with index_client(home, timeout_s=30) as client:
        make(client)
        client.upsert(NAME, a_batch(1))

    server = find_index(home)

    assert (server.name, server.address, server.pid) == ("Qdrant", access.url, access.pid)
    assert datetime.now(UTC) - server.since < timedelta(minutes=1)
    assert (server.bytes > 0, server.points) == (True, BATCH)


def test_an_address_whose_owner_is_gone_is_not_believed(home: Path):
    start(home)
    before = kill(home)
    stranger = before.model_copy(update={"pid": os.getpid()})
    access_file(home).write_text(stranger.model_dump_json())

    assert find(home) is None
    assert start(home).key != before.key


def test_a_plain_client_reads_the_file_again_after_a_restart_as_the_key_is_another(home: Path):
    def plain() -> QdrantClient:
        access = owner(home)
        return QdrantClient(access.url, headers={"api-key": access.key}, check_compatibility=False)

    start(home)
    before = plain()
    make(before)

    stolen = kill(home).key
    with pytest.raises(ResponseHandlingException, match="refused"):
        before.get_collections()
    access = start(home)

    after = plain()
    assert after.collection_exists(NAME)
    refused = httpx.get(f"{access.url}/collections", headers={"api-key": stolen})
    assert (refused.status_code, "read that file again" in refused.text) == (401, True)
    before.close()
    after.close()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("two wörds", marks=pytest.mark.full),
        """a,b:c@d $HOME "quoted" 'twice' %41""",
        "long/" * 40,
    ],
)
def test_any_folder_can_be_a_home(name: str, tmp_path: Path, home_at: HomeAt):
    home = home_at(tmp_path / name)

    with index_client(home, timeout_s=30) as client:
        make(client)
        client.upsert(NAME, a_batch(1))
        assert batches(client) == {1: BATCH}


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_an_ordinary_user_can_run_it():
    home = Path(tempfile.mkdtemp(prefix="sightline-"))  # where others may enter; `tmp_path` is root's
    os.chown(home, NOBODY, NOBODY)
    code = """if True:
        import sys, pathlib
        from storage.embedded.qdrant.process.client import index_client, stop
        home = pathlib.Path(sys.argv[1])
        with index_client(home, timeout_s=30) as client:
            print(client.get_collections().collections, (home / "qdrant.json").stat().st_uid)
        stop(home)
    """
    # it may read all, since Python itself may be in root's own folder, but write only what is its own
    user = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    may_read = ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"]

    ran = subprocess.run(
        ["setpriv", *user, *may_read, sys.executable, "-c", code, str(home)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    shutil.rmtree(home)
    assert (ran.stdout, ran.stderr) == (f"[] {NOBODY}\n", "")


@as_root
def test_a_home_of_root_is_refused_to_others_in_plain_words(home: Path):
    start(home)
    home.chmod(0o700)

    os.seteuid(NOBODY)
    try:
        with pytest.raises(IndexUnavailable, match="is another user's"):
            start(home)
    finally:
        os.seteuid(0)


# --- how it ends


def test_stopping_says_whether_there_was_an_owner_and_waits_for_its_end(home: Path):
    assert not stop(home)
    pid = start(home).pid

    assert stop(home)

    wait_until(lambda: is_gone(pid))
    assert not access_file(home).exists()  # nothing leads to a port that another program may take
    assert not stop(home)


@pytest.mark.full
def test_who_asks_while_it_is_stopped_is_answered_by_the_next_one(home: Path):
    cut_off = []
    with index_client(home, timeout_s=30) as client, ThreadPoolExecutor(1) as threads:
        make(client)
        for _ in range(4):
            stopping = threads.submit(stop, home)
            while not stopping.done():
                try:
                    assert client.collection_exists(NAME)
                except ResponseHandlingException as error:
                    cut_off.append(str(error))
            assert stopping.result()
            assert client.collection_exists(NAME)

    # what was under way when the connection was closed may have been carried out: it is not sent again
    assert not [why for why in cut_off if "disconnected" not in why and "reset" not in why]


def test_it_ends_when_its_home_is_gone(home: Path):
    pid = start(home).pid

    shutil.rmtree(home)

    wait_until(lambda: is_gone(pid))


@pytest.mark.full
def test_it_ends_when_nobody_asks_anything(home: Path):
    code = """if True:
        import sys, pathlib
        from storage.embedded.qdrant.process.owner import serve_index
        serve_index(pathlib.Path(sys.argv[1]), idle_s=1.5)
    """
    with subprocess.Popen([sys.executable, "-c", code, str(home)], cwd=REPOSITORY) as process:
        wait_until(lambda: find(home) is not None)
        with index_client(home, timeout_s=30) as client:
            asked_until = time.monotonic() + 2.5
            while time.monotonic() < asked_until:
                client.get_collections()
                time.sleep(0.1)
        assert process.poll() is None

        assert process.wait(PATIENCE_S) == 0
    assert find(home) is None


# --- what survives


def test_every_acknowledged_batch_survives_kills_and_no_batch_is_torn(home: Path):
    acknowledged = set()
    numbers = count()
    with index_client(home, timeout_s=30) as client:
        make(client)
        for enough in (20, 40, 60):
            killed = Event()
            with ThreadPoolExecutor(1) as threads:
                writing = threads.submit(write_until, killed, client, numbers, acknowledged)
                wait_until(lambda enough=enough: len(acknowledged) > enough)
                kill(home)
                killed.set()
                writing.result()

            found = batches(client)

            assert acknowledged <= found.keys()
            assert set(found.values()) == {BATCH}


def write_until(killed: Event, client: QdrantClient, numbers: Iterator[int], acknowledged: set[int]) -> None:
    """Write until a write fails.

    The one that is under way at a kill fails; a kill between two of them fails none.
    """
    try:
        for number in numbers:
            client.upsert(NAME, a_batch(number))
            acknowledged.add(number)
            if killed.is_set():
                return
    except ResponseHandlingException:
        return


def test_schema_aliases_and_metadata_survive_a_kill(home: Path):
    with index_client(home, timeout_s=30) as client:
        make(client)
        client.upsert(NAME, a_batch(1))
        client.create_payload_index(NAME, "batch", models.PayloadSchemaType.INTEGER)
        client.update_collection(NAME, metadata={"model": "clip"})
        alias = models.CreateAlias(alias_name="items", collection_name=NAME)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])

        kill(home)

        info = client.get_collection("items")
        assert info.config.metadata == {"model": "clip"}
        assert info.payload_schema["batch"].points == BATCH
        client.delete_collection(NAME)
        kill(home)
        assert client.get_collections().collections == []


def test_a_start_removes_what_a_killed_owner_left_half_done(home: Path):
    with index_client(home, timeout_s=30) as client:
        make(client)
        client.upsert(NAME, a_batch(1))
        kill(home)
        [shard] = (home / "qdrant" / "shards").iterdir()
        leftovers = [
            home / "qdrant" / "shards" / "unknown",
            home / "qdrant" / "recover-1",
            shard / "temp_segments" / "half",
        ]
        for folder in leftovers:
            folder.mkdir(parents=True)
            (folder / "file").write_text("x")
        (home / "qdrant" / "collections.json.new").write_text("{")

        assert batches(client) == {1: BATCH}
        assert not any(folder.exists() for folder in leftovers)
        make_another = models.VectorParams(size=2, distance="Dot")
        assert client.create_collection("another", vectors_config=make_another)


@pytest.mark.parametrize("content", ["", "{", '{"collections": {"a": {}}}'])
def test_a_damaged_list_of_collections_is_told_of_and_left_as_it_is(home: Path, content: str):
    (home / "qdrant").mkdir(parents=True)
    damaged = home / "qdrant" / "collections.json"
    damaged.write_text(content)
    begun = time.monotonic()

    with pytest.raises(IndexUnavailable, match=r"collections.json cannot be read .*put back a copy of it"):
        start(home)

    assert time.monotonic() - begun < PATIENCE_S
    assert damaged.read_text() == content


def test_a_folder_of_local_mode_is_refused_and_left_as_it_is(home: Path):
    local = QdrantClient(path=str(home / "qdrant"))
    make(local)
    local.close()

    with pytest.raises(IndexUnavailable, match=r"local mode.*move the folder away"):
        start(home)

    assert (home / "qdrant" / "meta.json").exists()


# --- all at once


@pytest.mark.full
@pytest.mark.parametrize("killed", [False, True])
def test_eight_processes_use_it_at_once(home: Path, killed: bool):
    reports = stress(home, seconds=4, kill=killed)

    assert len(reports) == len(ROLES) == 8
    assert all(report.seconds for report in reports)
    assert killed or not any(report.errors for report in reports)
