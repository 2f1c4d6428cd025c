"""Uploaded query images and search URLs, without a browser."""

from io import BytesIO

import pytest
from PIL import Image
from starlette.datastructures import QueryParams

from flows.console import uploads as module
from flows.console.components.search_params import SearchParams, parse_params
from flows.console.thumbnails import make_thumbnail
from flows.console.uploads import UploadExpired, Uploads
from storage.records import item_id
from tests.console.conftest import Running
from tests.support.builders import encoded, noise, png


def test_the_same_image_has_one_token_and_is_there_again():
    uploads = Uploads()

    token = uploads.keep(png("red"))

    assert uploads.keep(png("red")) == token
    assert uploads.get(token) == png("red")
    with pytest.raises(UploadExpired, match="choose it again"):
        uploads.get("0" * 64)


def test_an_image_goes_an_hour_after_it_was_last_asked_for(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    uploads = Uploads()
    asked, forgotten = uploads.keep(b"asked"), uploads.keep(b"forgotten")

    clock[0] = module.KEPT_FOR_S - 1
    uploads.get(asked)
    clock[0] += 2

    assert uploads.get(asked) == b"asked"
    with pytest.raises(UploadExpired):
        uploads.get(forgotten)


def test_what_was_not_asked_for_the_longest_makes_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_BYTES", 20)
    uploads = Uploads()
    first, second = uploads.keep(b"1" * 8), uploads.keep(b"2" * 8)
    uploads.get(first)

    uploads.keep(b"3" * 8)

    assert (first in uploads, second in uploads) == (True, False)
    huge = uploads.keep(b"4" * 100)
    assert uploads.get(huge) == b"4" * 100


@pytest.mark.parametrize(
    "asked",
    [
        SearchParams(),
        SearchParams("a & b = c?", find="texts", where=(("source", "a=b"), ("kind", "ü"), ("kind", "v"))),
        SearchParams(image="0" * 64, like=item_id("shop", "a"), min_score=-0.25, limit=48),
        SearchParams("all", min_score=0.0),
    ],
)
def test_an_address_asks_for_what_it_was_made_from(asked: SearchParams):
    assert parse_params(QueryParams(asked.address.partition("?")[2])) == asked


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("find=sounds", "images or texts"),
        ("where=kind", "write it as field=value"),
        ("limit=many", "a number from 1 to"),
        ("limit=100000", "a number from 1 to"),
        ("min=2", "a number from -1 to 1"),
        ("min=nan", "a number from -1 to 1"),
        ("like=42", "no record's id"),
    ],
)
def test_an_address_that_asks_for_what_cannot_be_says_what_it_takes(query: str, says: str):
    with pytest.raises(ValueError, match=says):
        parse_params(QueryParams(query))


def test_an_image_is_made_small_over_white_and_keeps_its_shape():
    seen = make_thumbnail(encoded(Image.new("RGBA", (800, 400), (0, 0, 0, 0)), "PNG"), 320)

    image = Image.open(BytesIO(seen or b""))
    assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (320, 160))
    assert image.getpixel((5, 5)) == (255, 255, 255)
    assert make_thumbnail(b"<svg/>", 320) is None


def test_an_image_that_is_too_large_is_rejected_before_all_of_it_is_read(running: Running):
    many = running.settings.limits.max_picture_bytes + 1

    with running.client() as client:
        answer = client.post("/search/pictures?name=big.png", content=bytes(many), timeout=60)

    assert "big.png: larger than 64 MiB" in answer.json()["problem"]


def test_an_image_that_was_uploaded_is_shown_again_encoded_anew(running: Running):
    with running.client() as client:
        token = client.post("/search/pictures", content=encoded(noise(), "BMP")).json()["token"]

        shown = client.get(f"/search/pictures/{token}")

    assert (shown.headers["content-type"], shown.headers["x-content-type-options"]) == (
        "image/webp",
        "nosniff",
    )


def test_another_sites_page_cannot_upload_images(running: Running):
    headers = {"Origin": "http://elsewhere.example"}

    with running.client() as client:
        assert client.post("/search/pictures", content=png(), headers=headers).status_code == 403
