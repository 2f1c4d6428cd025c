"""A person sees the picture of a reject by the rules of an ingest, and by no others."""

from io import BytesIO
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from PIL import Image

from flows.config.settings import Settings
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.reject_preview import SIDE, NoPreview, as_small_jpeg, preview_reject
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from storage.postgres import rejects
from tests.support.builders import a_folder, a_manifest, encoded, noise, png

TWINS = [{"key": "a", "image": "red.png"}, {"key": "a", "image": "blue.png"}]


@pytest.fixture
def lenient(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_reject_share": 1.0})


def rejected(deps: Deps, settings: Settings, location: Path) -> UUID:
    """Take in a source of which one row is rejected; return the id of that."""
    ingest_source(deps, settings, Request(location))
    with deps.sessions() as session:
        [reject] = rejects.open_rejects(session)
    return reject.id


def a_shop(folder: Path, rows: list[dict[str, str]]) -> Path:
    a_folder(folder, {f"{colour}.png": png(colour) for colour in ("red", "blue")})
    return a_manifest(folder / "shop.jsonl", rows)


def colour_of(jpeg: bytes) -> tuple[int, ...]:
    with Image.open(BytesIO(jpeg), formats=["JPEG"]) as opened:
        found = opened.resize((1, 1)).getpixel((0, 0))
    assert isinstance(found, tuple)
    return tuple(round(value / 255) for value in found)


def why_not(deps: Deps, settings: Settings, id: UUID) -> str:
    with pytest.raises(NoPreview) as caught:
        preview_reject(deps.sessions, settings.limits, id)
    return str(caught.value)


def test_the_picture_is_that_of_the_row_and_not_of_the_one_with_its_key(
    deps: Deps, lenient: Settings, tmp_path: Path
):
    reject = rejected(deps, lenient, a_shop(tmp_path / "shop", TWINS))

    shown = preview_reject(deps.sessions, lenient.limits, reject)

    assert colour_of(shown) == (0, 0, 1)


def test_a_row_that_has_moved_is_known_by_its_key(deps: Deps, lenient: Settings, tmp_path: Path):
    manifest = a_shop(tmp_path / "shop", [{"key": "a", "image": "lost.png"}])
    reject = rejected(deps, lenient, manifest)
    a_manifest(manifest, [{"key": "new", "image": "red.png"}, {"key": "a", "image": "blue.png"}])

    shown = preview_reject(deps.sessions, lenient.limits, reject)

    assert colour_of(shown) == (0, 0, 1)


def test_a_path_that_leads_out_of_the_source_by_now_is_not_followed(
    deps: Deps, lenient: Settings, tmp_path: Path
):
    manifest = a_shop(tmp_path / "shop", [{"key": "a", "image": "lost.png"}])
    reject = rejected(deps, lenient, manifest)
    secret = a_folder(tmp_path, {"secret.png": png("red")}) / "secret.png"
    (tmp_path / "shop" / "lost.png").symlink_to(secret)

    assert "leads out of" in why_not(deps, lenient, reject)


def test_no_more_bytes_are_read_than_an_ingest_takes(deps: Deps, lenient: Settings, tmp_path: Path):
    reject = rejected(deps, lenient, a_shop(tmp_path / "shop", TWINS))
    strict = lenient.model_copy(update={"max_picture_bytes": 10})

    assert "over 10 bytes" in why_not(deps, strict, reject)


def test_what_the_gate_refuses_is_said_and_not_shown(deps: Deps, lenient: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"bad.png": b"<svg onload='alert(1)'/>", "good.png": png()})
    reject = rejected(deps, lenient, folder)

    assert "bad.png: its format, SVG, is not read" in why_not(deps, lenient, reject)


def test_a_source_or_a_row_that_is_gone_is_said_to_be(deps: Deps, lenient: Settings, tmp_path: Path):
    manifest = a_shop(tmp_path / "shop", TWINS)
    reject = rejected(deps, lenient, manifest)

    a_manifest(manifest, TWINS[:1])
    assert "has this row no longer" in why_not(deps, lenient, reject)
    manifest.unlink()
    assert "there is nothing there" in why_not(deps, lenient, reject)
    assert "not open any more" in why_not(deps, lenient, uuid4())


def test_what_is_shown_is_small_and_holds_nothing_but_pixels():
    picture = noise((2000, 1000))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"

    shown = as_small_jpeg(encoded(picture, "JPEG", exif=exif), name="big.jpg")

    with Image.open(BytesIO(shown), formats=["JPEG"]) as opened:
        assert opened.size == (SIDE, SIDE // 2)
        assert not opened.getexif()
    assert b"taken at home" not in shown
