"""Services only. What a test is about stays in the test."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from threading import RLock

import hypothesis
import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.orm import sessionmaker

from flows.config.settings import Settings
from flows.resources.connections import Deps
from flows.service.pool import Backend
from storage.blobs import Blobs
from storage.embedded.postgres.server import postgres_url, stop_postgres
from storage.embedded.qdrant.process.client import index_client
from storage.embedded.qdrant.process.client import start as start_index
from storage.embedded.qdrant.process.client import stop as stop_index
from storage.postgres import migrate
from storage.postgres.engine import open_engine
from tests.support.fakes import ColourEncoder, Within
from tests.support.processes import HomeAt, homes, let_in
from tests.support.servers import a_postgres_15

SERVER = os.environ.get("SIGHTLINE_TEST_QDRANT_URL")
"""An empty Qdrant server that the tests may use, if there is one; read before the environment is cleaned."""

SERVED = ["embedded", "server"] if SERVER else ["embedded"]

SERVERS = {"postgres_home", "index_home", "home_at", "server", "postgres_15_server"}
"""Fixtures that start servers."""

BROWSERS = {"browser", "filled"}
"""Fixtures that start a browser, or a console and its flows as processes."""

# The same examples everywhere, and no clock: a busy machine must not decide whether a test passes.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

MEMORY = Path("/dev/shm")
ENOUGH_BYTES = 4 * 2**30
TEMP_OF_ROOT = "sightline-tests-"


def pytest_configure(config: pytest.Config) -> None:
    """Keep what tests write in memory where there is room: half of their time they waited for the disk.

    No test cuts the power: what a killed process has written is there on a disk and in memory alike.
    """
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    if os.geteuid() == 0 and config.option.basetemp is None:
        config.option.basetemp = a_temp_folder_of_root()
    gc.disable()


def a_temp_folder_of_root() -> Path:
    """A folder for this session, gone after it or, if tests failed, before the next one.

    pytest closes its own again at the start of each session, also to the account that runs root's Postgres.
    """
    parent = Path(os.environ.get("PYTEST_DEBUG_TEMPROOT", gettempdir()))
    for left in parent.glob(f"{TEMP_OF_ROOT}*"):
        if not Path("/proc", left.name.removeprefix(TEMP_OF_ROOT)).exists():
            shutil.rmtree(left, ignore_errors=True)
    return parent / f"{TEMP_OF_ROOT}{os.getpid()}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the temporary folder of root's session."""
    folder = Path(session.config.option.basetemp or "")
    if exitstatus == 0 and folder.name == f"{TEMP_OF_ROOT}{os.getpid()}":
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # pytest selects by the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests in their lanes by their fixtures, and those that share servers on one worker.

    Files that use none of these fixtures name their lane themselves.
    """
    for item in items:
        used = getattr(item, "fixturenames", ())
        if BROWSERS.intersection(used):
            item.add_marker("system")
            item.add_marker(pytest.mark.xdist_group("console"))
            continue
        if SERVERS.intersection(used):
            item.add_marker("services")
        if shares_fixtures(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def shares_fixtures(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture that is made once for its file."""
    made = getattr(item, "_fixtureinfo", None)
    return made is not None and any(
        definitions[-1].scope == "module" for definitions in made.name2fixturedefs.values()
    )


def pytest_collection_finish() -> None:
    """What was imported stays: there was no garbage to be found in it, and there will be none."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def a_clean_environment() -> None:
    """No setting of whoever runs the tests reaches them."""
    for name in [name for name in os.environ if name.startswith(("SIGHTLINE_", "PREFECT_", "OTEL_"))]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def an_environment_of_its_own() -> Iterator[None]:
    """What a test sets, or a command that it runs in this process, does not reach the next."""
    before = dict(os.environ)
    yield
    for name in {name for name, _ in before.items() ^ os.environ.items()} - {"PYTEST_CURRENT_TEST"}:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose Postgres runs for as long as the tests do."""
    home = let_in(tmp_path_factory.mktemp("home"))
    yield home
    stop_postgres(home)


@pytest.fixture(scope="session")
def migrated(postgres_home: Path) -> Iterator[Engine]:
    """The real Postgres, built by the migrations."""
    engine = create_engine(postgres_url(postgres_home))
    with engine.begin() as connection:
        migrate.upgrade(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(migrated: Engine) -> Iterator[Engine]:
    """The real Postgres, emptied after each test; commits are real, so locks and crashes are too."""
    yield migrated
    with migrated.begin() as connection:
        connection.execute(
            text(
                "truncate items, marks, rejects, runs, models, collections, evaluations, seen,"
                " perceptual_hashes, promotions, keys, requests cascade"
            )
        )


@pytest.fixture(scope="session")
def postgres_15_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Debian's Postgres 15, for as long as the tests run; statements of this engine commit at once."""
    with a_postgres_15(tmp_path_factory.mktemp("postgres-15-")) as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        yield engine
        engine.dispose()


@pytest.fixture
def postgres_15(postgres_15_server: Engine) -> Iterator[URL]:
    """The URL of an empty database of Postgres 15, dropped after the test."""
    with postgres_15_server.connect() as connection:
        connection.execute(text("create database sightline"))
        yield postgres_15_server.url.set(database="sightline")
        connection.execute(text("drop database sightline with (force)"))


@pytest.fixture
def engine_15(postgres_15: URL) -> Iterator[Engine]:
    """An empty database of a Postgres 15, built by the migrations."""
    engine = open_engine(postgres_15.render_as_string(hide_password=False), timeout_s=60)
    with engine.begin() as connection:
        migrate.upgrade(connection)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def prefect_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the tables of Prefect, made once for all workers."""
    from tests.support.prefect_database import made_once  # Prefect takes seconds to import

    own = tmp_path_factory.getbasetemp()
    return made_once((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "prefect tables")


@pytest.fixture
def vectors() -> Iterator[QdrantClient]:
    """qdrant-client's local mode: empty, and gone with the test."""
    yield from local_mode()


@pytest.fixture
def home_at() -> Iterator[HomeAt]:
    """Makes a folder a home, whose servers are stopped after the test."""
    with homes() as home_at:
        yield home_at


@pytest.fixture
def home(tmp_path: Path, home_at: HomeAt) -> Path:
    return home_at(tmp_path / "home")


@pytest.fixture(scope="session")
def index_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose embedded index is served for as long as the tests run."""
    home = tmp_path_factory.mktemp("index home")
    start_index(home)
    yield home
    stop_index(home)


@pytest.fixture(scope="session")
def embedded(index_home: Path) -> Iterator[QdrantClient]:
    """A client of the embedded index; each test leaves it empty or uses names of its own."""
    with index_client(index_home, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="session")
def server() -> Iterator[QdrantClient]:
    """A client of the server that the environment names."""
    client = QdrantClient(SERVER)
    names = [one.name for one in client.get_collections().collections]
    if names:
        pytest.fail(f"{SERVER} holds {names}: the tests want an empty server, for they empty it")
    yield client
    client.close()


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    """Whatever speaks Qdrant's REST API, empty."""
    yield from emptied(request.getfixturevalue(request.param))


@pytest.fixture(params=[pytest.param("local mode", marks=pytest.mark.full), *SERVED])
def any_index(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    """Each thing that a QdrantClient can be a client of, empty."""
    name = "vectors" if request.param == "local mode" else request.param
    yield from emptied(request.getfixturevalue(name))


def local_mode() -> Iterator[QdrantClient]:
    """Yield an empty client of local mode; threads take turns, for it knows none."""
    client = QdrantClient(":memory:")
    turn = RLock()
    client._client = Within(client._client, lambda: turn)
    yield client
    client.close()


def emptied(client: QdrantClient) -> Iterator[QdrantClient]:
    yield client
    for one in client.get_collections().collections:
        client.delete_collection(one.name)


@pytest.fixture
def deps(engine: Engine, vectors: QdrantClient, tmp_path: Path) -> Deps:
    """The real stores, and a model whose vectors can be worked out by hand."""
    return Deps(engine, sessionmaker(engine), vectors, Blobs(str(tmp_path / "blobs")), ColourEncoder())


@pytest.fixture
def backend(engine: Engine, index_home: Path, embedded: QdrantClient, tmp_path: Path) -> Iterator[Backend]:
    """What a server keeps open: the real stores, empty, and a model worked out by hand."""
    settings = Settings(
        home=index_home,
        database_url=SecretStr(engine.url.render_as_string(hide_password=False)),
        pictures_url=str(tmp_path / "pictures"),
        batch_size=4,
        retry_for_s=1,
    )
    model = ColourEncoder()
    backend = Backend(settings, load=lambda _settings, _name: model)
    for _ in emptied(embedded):
        yield backend
    backend.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", batch_size=4, decode_workers=0)
