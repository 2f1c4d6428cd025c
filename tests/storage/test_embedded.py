import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, NullPool, create_engine, text

from storage.embedded.postgres.account import PostgresUnavailable
from storage.embedded.postgres.data_folder import PostgresVersionMismatch
from storage.embedded.postgres.paths import PostgresPaths
from storage.embedded.postgres.server import postgres_url, stop_postgres
from tests.support.processes import HomeAt, is_gone, let_in

REPOSITORY = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root meets folders that only root may enter")


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    with create_engine(url, poolclass=NullPool).begin() as connection:
        yield connection


def another_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def save(home: Path, value: int) -> None:
    with connected(postgres_url(home)) as connection:
        connection.execute(text("create table if not exists kept (value int)"))
        connection.execute(text("insert into kept values (:value)"), {"value": value})


def saved(home: Path) -> list[int]:
    with connected(postgres_url(home)) as connection:
        return list(connection.scalars(text("select value from kept order by value")))


def server_pid(home: Path) -> int:
    return int(PostgresPaths(home).data.joinpath("postmaster.pid").read_text().split()[0])


def test_a_server_outlives_its_starter_and_other_processes_share_it(home: Path):
    code = """if True:
        import sys, pathlib, psycopg
        from storage.embedded.postgres.server import postgres_url
        url = postgres_url(pathlib.Path(sys.argv[1])).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            connection.execute("create table kept as select 7 as value")
    """

    with another_process(code, home) as starter:
        pass

    assert starter.returncode == 0
    pid = server_pid(home)
    assert saved(home) == [7]
    assert server_pid(home) == pid


def test_rows_survive_a_stop_and_a_start(home: Path):
    save(home, 7)

    assert stop_postgres(home)

    assert saved(home) == [7]


def test_stopping_says_whether_a_server_was_running(home: Path):
    assert not stop_postgres(home)
    postgres_url(home)

    assert stop_postgres(home)
    assert not stop_postgres(home)


def test_committed_rows_are_found_after_the_server_was_killed(home: Path):
    save(home, 7)

    os.kill(server_pid(home), signal.SIGKILL)

    assert saved(home) == [7]


def test_a_home_that_was_deleted_under_its_server_can_be_used_again_at_once(home: Path):
    save(home, 7)
    orphan = server_pid(home)
    shutil.rmtree(home)

    save(home, 8)

    assert saved(home) == [8]
    assert is_gone(orphan)


def test_a_server_whose_socket_is_gone_is_replaced_and_keeps_its_rows(home: Path):
    save(home, 7)
    (PostgresPaths(home).sockets / ".s.PGSQL.5432").unlink()

    assert saved(home) == [7]


def test_a_first_use_that_was_killed_halfway_is_done_again(home: Path):
    code = (
        "import sys, pathlib, storage.embedded.postgres.server as server\n"
        "server.postgres_url(pathlib.Path(sys.argv[1]))"
    )

    with another_process(code, home) as starter:
        while not (unfinished := home / "postgres/data.new/global").exists() and starter.poll() is None:
            time.sleep(0.001)
        starter.kill()
    assert unfinished.exists()
    save(home, 7)

    assert saved(home) == [7]
    assert not unfinished.exists()


def test_processes_that_start_at_once_get_one_server(home: Path):
    code = """if True:
        import sys, pathlib, psycopg
        from storage.embedded.postgres.server import postgres_url
        url = postgres_url(pathlib.Path(sys.argv[1])).replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            print(connection.execute("select pg_postmaster_start_time()").fetchone())
    """

    processes = [another_process(code, home) for _ in range(4)]
    answers = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    "name",
    [pytest.param("two wörds", marks=pytest.mark.full), """a,b:c@d $HOME "quoted" 'twice'""", "long/" * 40],
)
def test_any_folder_can_be_a_home(name: str, tmp_path: Path, home_at: HomeAt):
    home = home_at(tmp_path / name)

    save(home, 7)

    assert saved(home) == [7]
    assert (home / "postgres/data/PG_VERSION").exists()


def test_a_socket_outside_of_a_long_home_is_private_and_goes_with_the_server(tmp_path: Path, home_at: HomeAt):
    home = home_at(tmp_path / ("long/" * 40))

    url = postgres_url(home)
    sockets = PostgresPaths(home).sockets
    assert sockets.parent == Path("/tmp")
    assert sockets.stat().st_mode & 0o777 == 0o700

    stop_postgres(home)
    assert not sockets.exists()
    assert postgres_url(home) == url


def test_data_of_another_major_version_are_refused(home: Path):
    (home / "postgres").mkdir(parents=True, mode=0o700)
    (home / "postgres/data").mkdir()
    (home / "postgres/data/PG_VERSION").write_text("12\n")

    with pytest.raises(PostgresVersionMismatch, match=r"written by Postgres 12, but .*: install the"):
        postgres_url(home)


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(home: Path):
    postgres_url(home)
    stop_postgres(home)
    with (home / "postgres/data/postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")

    with pytest.raises(PostgresUnavailable, match="unrecognized configuration parameter") as caught:
        postgres_url(home)

    assert "no_such_setting" in str(caught.value)


def test_a_pid_that_now_belongs_to_another_program_is_no_obstacle(home: Path):
    save(home, 7)
    pid_file = home / "postgres/data/postmaster.pid"
    before = pid_file.read_text()
    stop_postgres(home)

    user = pid_file.parent.stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as stranger:
        pid_file.write_text(before.replace(before.split()[0], str(stranger.pid), 1))
        os.chown(pid_file, pid_file.parent.stat().st_uid, -1)
        try:
            assert saved(home) == [7]
        finally:
            stranger.kill()


def test_a_server_without_a_free_connection_counts_as_running(home: Path):
    url = postgres_url(home)
    engine = create_engine(url, poolclass=NullPool)
    pid = server_pid(home)

    with ExitStack() as connections:
        for _ in range(50):
            connections.enter_context(engine.connect())

        assert postgres_url(home) == url
    assert server_pid(home) == pid


@as_root
def test_for_root_the_server_and_its_folder_are_another_users(home: Path):
    save(home, 7)

    around = (home / "postgres").stat()
    assert around.st_mode & 0o777 == 0o700
    assert {around.st_uid, (home / "postgres/data").stat().st_uid} == {
        Path(f"/proc/{server_pid(home)}").stat().st_uid
    }
    assert around.st_uid != 0


@as_root
def test_a_server_folder_that_an_earlier_release_left_to_root_is_handed_over(home: Path):
    save(home, 7)
    stop_postgres(home)
    os.chown(home / "postgres", 0, 0)

    assert saved(home) == [7]


@as_root
def test_a_home_that_only_root_may_enter_is_rejected_with_what_to_do(tmp_path: Path):
    closed = let_in(tmp_path) / "closed"
    closed.mkdir(mode=0o700)

    with pytest.raises(PostgresUnavailable, match=f"may not enter {closed}.*: use a data directory and"):
        postgres_url(closed / "home")
    closed.chmod(0o711)

    save(closed / "home", 7)
    stop_postgres(closed / "home")


@as_root
def test_a_home_of_root_is_refused_to_others_in_plain_words(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)

    os.seteuid(65534)
    try:
        with pytest.raises(PostgresUnavailable, match="is another user's"):
            postgres_url(home)
    finally:
        os.seteuid(0)
