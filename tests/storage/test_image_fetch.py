"""Limits of the URLs and paths of images, and of their error messages."""

import os
import threading
from importlib import import_module
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from socket import AF_INET
from typing import Any

import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from storage.records import Record, Rejected
from storage.redaction import redacted
from storage.sources import fetch, http_fetch, read_source
from storage.sources.addresses import is_public, parse_address, require_public
from tests.storage.test_sources import LIMITS, PICTURE, Answers, a_manifest, a_tree, a_web_server, the_refusal


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "127.1", "0x7f.1", "017700000001", "127.0.0.1.", "0"),
        *("LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"),
        *("[2002:7f00:1::]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[fd00:ec2::254]", "[fe80::1]"),
        *(
            "169.254.169.254",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::a9fe:a9fe]",
            "100.100.100.200",
            "168.63.129.16",
        ),
        *(
            "10.0.0.1",
            "192.168.1.1",
            "172.31.0.1",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
        ),
        *("192.0.2.1", "[2001:db8::1]", "[3fff::1]", "[ff02::1]"),
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to_for_a_stranger(host: str):
    with a_web_server() as url:
        refusal = the_refusal(f"http://{host}:{url.rpartition(':')[2]}/picture", from_strangers=True)

    assert (refusal.reason, Answers.asked) == ("private_address", [])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_an_address_of_the_internet_is_public(address: str):
    require_public(address, "a host")


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_wrapping(address: IPv4Address):
    wrapped = (f"::ffff:{address}", f"64:ff9b::{address}", str(int(address)), f"{hex(int(address))}.")

    assert {is_public(parse_address(one) or address) for one in wrapped} == {is_public(address)}
    assert not is_public(ip_address(f"::{address}"))


def test_a_resolver_does_not_decide_where_a_connection_goes(monkeypatch: pytest.MonkeyPatch):
    async def resolve(*_: Any, **__: Any) -> Any:
        return [
            {"hostname": "x", "host": "127.0.0.1", "port": port, "family": AF_INET, "proto": 0, "flags": 0}
        ]

    monkeypatch.setattr(
        http_fetch._CheckedResolver, "resolve", resolve
    )  # as if a look-up had been judged by another answer
    with a_web_server() as url:
        port = int(url.rpartition(":")[2])
        refusal = the_refusal(f"http://pictures.example:{port}/picture", from_strangers=True)

    assert (refusal.reason, Answers.asked) == ("private_address", [])


@pytest.mark.parametrize("address", ["169.254.169.254", "[::ffff:169.254.169.254]", "100.100.100.200"])
def test_nobodys_url_leads_to_where_clouds_hand_out_credentials(address: str):
    refusal = the_refusal(f"http://{address}/latest/meta-data/", private_redirects=True)

    assert (refusal.reason, "clouds hand out credentials" in str(refusal)) == ("private_address", True)


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "/etc/passwd", "memory://a", "sha256:abc"])
def test_a_stranger_has_nothing_but_http_read(uri: str):
    assert the_refusal(uri, from_strangers=True).reason == "missing_file"


class Silent(MemoryFileSystem):  # type: ignore[misc]
    """A store that takes a request, and never answers."""

    protocol = "silent"
    over = threading.Event()

    def _open(self, *_: Any, **__: Any) -> Any:
        self.over.wait(30)
        raise FileNotFoundError


def test_a_store_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch):
    register_implementation("silent", Silent, clobber=True)
    monkeypatch.setattr(
        import_module("storage.sources.image_fetch"), "_store_reads", threading.BoundedSemaphore(2)
    )
    Silent.over.clear()
    try:
        refusals = [the_refusal("silent://x/a.png", timeout_s=0.05) for _ in range(3)]
    finally:
        Silent.over.set()

    assert {one.reason for one in refusals} == {"unreachable"}
    assert "no full answer within 0.05 s" in str(refusals[0])
    assert "earlier reads still wait" in str(refusals[2])


@pytest.mark.parametrize("scheme", ["webhdfs", "WebHDFS", "jlab", "dbfs"])
def test_a_driver_that_follows_redirects_by_itself_is_not_taken(tmp_path: Path, scheme: str):
    manifest = a_manifest(tmp_path, f'{{"key": "a", "image": "{scheme}://127.0.0.1:1/a.png"}}')

    [row] = read_source(manifest)

    assert isinstance(row, Rejected)
    assert row.reason == "bad_uri"


def test_a_link_that_is_put_there_after_the_listing_is_not_followed(tmp_path: Path):
    secret = a_tree(tmp_path / "elsewhere", {"secret.png": b"secret", "secret.txt": b"secret"})
    folder = a_tree(tmp_path / "photos", {"a.png": PICTURE, "b/c.png": PICTURE})
    rows = [row for row in read_source(folder) if isinstance(row, Record)]

    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(secret / "secret.png")
    (folder / "b" / "c.png").unlink()
    (folder / "b").rmdir()
    (folder / "b").symlink_to(secret)
    (secret / "c.png").write_bytes(b"secret")

    refusals = [the_refusal(row.image or "", folder=row.folder) for row in rows]
    assert [one.reason for one in refusals] == ["outside_source"] * 2


def test_a_link_that_takes_the_place_of_a_file_while_it_is_opened_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    secret = a_tree(tmp_path / "elsewhere", {"secret.png": b"secret"}) / "secret.png"
    folder = a_tree(tmp_path / "photos", {"a.png": PICTURE}).resolve()
    real = os.path.realpath

    def swapped(path: Any, **named: Any) -> str:
        found = real(path, **named)
        (folder / "a.png").unlink()
        (folder / "a.png").symlink_to(secret)
        return str(found)

    monkeypatch.setattr(os.path, "realpath", swapped)

    assert the_refusal(str(folder / "a.png"), folder=folder).reason == "outside_source"


def test_a_link_within_the_folder_is_followed(tmp_path: Path):
    folder = a_tree(tmp_path / "photos", {"real/a.png": PICTURE}).resolve()
    (folder / "b").symlink_to("real")

    assert fetch(str(folder / "b" / "a.png"), **LIMITS, folder=folder) == PICTURE


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@h/a.png",
        "https://hunter2@h/a.png",
        "https://h/a.png?X-Amz-Credential=me&X-Amz-Signature=hunter2",
        "https://h/a.png?sv=1&sig=hunter2",
        "https://h/a.png?access_token=hunter2",
        "https://h/a.png?v=1&api-key=hunter2",
        "https://h/a.png#token=hunter2",
        "https://h/a.png?x=1\\u0026token=hunter2",
    ],
)
def test_what_lets_its_bearer_in_is_shown_by_nothing(tmp_path: Path, url: str):
    assert "hunter2" not in redacted(f"{url}: no answer")
    assert redacted(f"{url}: no answer").endswith(": no answer")
    [row] = read_source(a_manifest(tmp_path, f'{{"key": "a", "texts": [7], "image": "{url}"}}'))
    assert isinstance(row, Rejected)
    assert "hunter2" not in str(row)


@pytest.mark.parametrize(
    "text", ["https://h/a.png?b=c&size=2", "s3://bucket/a@b.png", "a@b.example", "see: --where key=value"]
)
def test_what_is_no_secret_is_shown(text: str):
    assert redacted(text) == text
