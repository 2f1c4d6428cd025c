"""Encrypted connections to Qdrant and to Postgres."""

import asyncio
import socket
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from pydantic import SecretStr
from sqlalchemy import Engine

from flows.config.settings import Qdrant, Settings
from flows.resources.connections import open_database, open_index
from storage.embedded.qdrant.process.discovery import find
from storage.errors import StoreUnavailable
from tests.faults.proxy import a_proxy, to_postgres

OURS = trustme.CA()
SOMEBODYS = trustme.CA()


@contextmanager
def tls_in_front_of(host: str, port: int) -> Iterator[int]:
    """Yield the port of a TLS proxy that requires our client certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    OURS.issue_cert("127.0.0.1").configure_cert(context)
    OURS.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    async def pass_on(reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def accept(reader: StreamReader, writer: StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))

    started: Future[tuple[int, Callable[[], None]]] = Future()

    async def serve() -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        started.set_result((port, lambda: loop.call_soon_threadsafe(over.set)))
        await over.wait()
        server.close()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, serve())
        port_here, stop = started.result()
        try:
            yield port_here
        finally:
            stop()


@pytest.fixture
def https(index_home: Path) -> Iterator[str]:
    where = urlsplit(find(index_home).url)
    with tls_in_front_of(where.hostname, where.port) as port:
        yield f"https://127.0.0.1:{port}"


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    OURS.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


def certificate_of(ca: trustme.CA, path: Path) -> Path:
    ca.issue_cert("sightline").private_key_and_cert_chain_pem.write_to_path(path)
    return path


def settings_for(url: str, index_home: Path, **tls: Path) -> Settings:
    return Settings(qdrant=Qdrant(url=url, api_key=SecretStr(find(index_home).key), timeout_s=5, **tls))


def test_qdrant_is_reached_with_its_certificate_checked_and_ours_shown(
    https: str, index_home: Path, ca_file: Path, tmp_path: Path
):
    own = certificate_of(OURS, tmp_path / "own.pem")

    with open_index(settings_for(https, index_home, ca_file=ca_file, client_certificate=own)) as client:
        assert client.get_collections().collections == []


@pytest.mark.parametrize("shown", ["none", "somebody's"])
def test_qdrant_that_asks_for_a_certificate_gets_ours_or_nobody_in(
    https: str, index_home: Path, ca_file: Path, tmp_path: Path, shown: str
):
    tls = {} if shown == "none" else {"client_certificate": certificate_of(SOMEBODYS, tmp_path / "own.pem")}
    with (
        pytest.raises(StoreUnavailable, match="https://127"),
        open_index(settings_for(https, index_home, ca_file=ca_file, **tls)) as client,
    ):
        client.get_collections()


def test_qdrant_with_a_certificate_of_an_unknown_authority_is_told_nothing(
    https: str, index_home: Path, tmp_path: Path
):
    own = certificate_of(OURS, tmp_path / "own.pem")
    with (
        pytest.raises(StoreUnavailable, match=r"certificate verify failed.*set SIGHTLINE_QDRANT__CA_FILE"),
        open_index(settings_for(https, index_home, client_certificate=own)) as client,
    ):
        client.get_collections()


def test_postgres_that_offers_no_tls_is_refused_where_the_url_asks_for_it(engine: Engine):
    with a_proxy(to_postgres(engine)) as proxy:  # libpq asks for no TLS on a socket in the file system
        over_tcp = engine.url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "require"})
        url = SecretStr(over_tcp.render_as_string(hide_password=False))
        with (
            pytest.raises(StoreUnavailable, match="SSL"),
            open_database(Settings(database_url=url)) as postgres,
            postgres.connect(),
        ):
            pass


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://qdrant.example:6333", True),
        ("https://qdrant.example:6333", False),
        ("http://127.0.0.1:6333", False),
        ("http://[::1]:6333", False),
        ("http://localhost:6333", False),
    ],
)
def test_a_key_that_crosses_a_network_in_the_clear_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, url: str, warns: bool
):
    settings = Settings(qdrant=Qdrant(url=url, api_key=SecretStr("hunter2")))
    for _ in range(2):
        with open_index(settings):
            pass

    said = [one.getMessage() for one in caplog.records if "without encryption" in one.getMessage()]
    assert len(said) == warns
    assert "hunter2" not in caplog.text


@contextmanager
def answering(data: bytes) -> Iterator[int]:
    """Yield the port of a server that answers its first bytes with `data`."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(data)

    with ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        pool.submit(serve, listener)
        yield listener.getsockname()[1]


TLS_ALERT = bytes.fromhex("15 03 03 00 02 02 46")


@pytest.mark.parametrize(
    ("scheme", "answer", "says"),
    [("http", TLS_ALERT, "write https://"), ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "write http://")],
)
def test_http_and_https_confused_are_named(index_home: Path, scheme: str, answer: bytes, says: str):
    with (
        answering(answer) as port,
        pytest.raises(StoreUnavailable, match=says),
        open_index(settings_for(f"{scheme}://127.0.0.1:{port}", index_home)) as client,
    ):
        client.get_collections()
