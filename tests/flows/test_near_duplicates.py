"""One picture under several keys costs the model once; copies and look-alikes are told."""

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import text

from embedding.images import perceptual_hash as hashing
from embedding.images.perceptual_hash import MAX_DISTANCE, near_groups, perceptual_hash
from flows.config.settings import Settings
from flows.datasets.near_duplicates import DuplicateGroups, exact_duplicates, near_duplicates
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps
from storage import qdrant
from storage.postgres import perceptual_hashes
from tests.support.builders import a_folder, png


def ingest(deps: Deps, settings: Settings, folder: Path) -> None:
    ingest_source(deps, settings, Request(folder))


def keys(found: DuplicateGroups) -> list[list[str]]:
    return [[copy.key for copy in group] for group in found.groups]


def a_scene(seed: int, side: int = 96, quality: int = 90) -> bytes:
    """A picture with structure, the same at every size."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    buffer = BytesIO()
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_the_same_bytes_under_several_keys_are_embedded_and_kept_once(
    deps: Deps, settings: Settings, tmp_path: Path
):
    files = {f"{n}.png": png("red") for n in range(6)} | {"other.png": png("blue")}
    folder = a_folder(tmp_path / "shop", files)

    report = ingest_source(deps, settings, Request(folder))

    with deps.sessions() as session:
        assert perceptual_hashes.count_copies(session) == (1, 6)
    assert deps.encoder.seen_images == 2
    assert (report.embedded, report.reused) == (7, 5)
    assert deps.vectors.count(qdrant.ALIAS).count == 7
    assert sum(path.is_file() for path in (tmp_path / "blobs").rglob("*")) == 2


def test_a_new_caption_does_not_embed_its_picture_again(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red"), "a.txt": "red"})
    ingest(deps, settings, folder)
    before = dict(qdrant.scroll_image_vectors(deps.vectors, qdrant.ALIAS))

    ingest(deps, settings, a_folder(folder, {"a.txt": "blue"}))

    [(id, vector)] = qdrant.scroll_image_vectors(deps.vectors, qdrant.ALIAS)
    assert deps.encoder.seen_images == 1
    assert np.allclose(vector, before[id], atol=1e-6)


def test_a_vector_of_other_bytes_is_never_taken_over(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.png": png("red")})
    ingest(deps, settings, folder)
    [(id, _)] = qdrant.scroll_image_vectors(deps.vectors, qdrant.ALIAS)
    deps.vectors.set_payload(qdrant.ALIAS, {"content_hash": "of something else"}, [str(id)])

    ingest(deps, settings, a_folder(folder, {"b.png": png("red")}))

    assert deps.encoder.seen_images == 2


def test_copies_are_listed_in_groups(deps: Deps, settings: Settings, tmp_path: Path):
    files = {"a.png": png("red"), "b.png": png("red"), "c.png": png("blue"), "d.png": png("grey")}
    ingest(deps, settings, a_folder(tmp_path / "shop", files | {"e.png": png("blue")}))

    assert sorted(keys(exact_duplicates(deps))) == [["a.png", "b.png"], ["c.png", "e.png"]]


def test_resized_and_re_encoded_pictures_look_alike_and_others_do_not(
    deps: Deps, settings: Settings, tmp_path: Path
):
    files = {f"{n}.jpg": a_scene(n) for n in range(5)}
    files |= {"0 small.jpg": a_scene(0, side=64), "1 poor.jpg": a_scene(1, quality=40)}
    files |= {"red.png": png("red"), "grey.png": png("grey"), "same.png": png("red")}
    folder = a_folder(tmp_path / "shop", files)
    ingest(deps, settings, folder)

    found = near_duplicates(deps, settings.limits)

    assert keys(found) == [["0 small.jpg", "0.jpg"], ["1 poor.jpg", "1.jpg"], ["red.png", "same.png"]]


def test_the_perceptual_hash_of_a_picture_is_computed_once(deps: Deps, settings: Settings, tmp_path: Path):
    folder = a_folder(tmp_path / "shop", {"a.jpg": a_scene(0), "b.jpg": a_scene(0, 64)})
    ingest(deps, settings, folder)
    first = near_duplicates(deps, settings.limits)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "blobs")

    assert keys(first) == [["a.jpg", "b.jpg"]]
    assert near_duplicates(deps, settings.limits) == first


def test_a_picture_that_is_gone_is_counted_not_hidden(deps: Deps, settings: Settings, tmp_path: Path):
    ingest(deps, settings, a_folder(tmp_path / "shop", {"a.jpg": a_scene(0), "b.jpg": a_scene(1)}))
    with deps.sessions() as session:
        sha = session.scalar(text("select image_sha256 from items where key = 'a.jpg'"))
    deps.blobs.delete(sha)

    assert near_duplicates(deps, settings.limits).unreadable == 1


detailed = st.integers(0, 2**64 - 1).filter(lambda number: number.bit_count() >= hashing.MIN_BITS)
flips = st.sets(st.integers(0, 63), max_size=MAX_DISTANCE)


@given(st.lists(detailed, max_size=6), st.data())
def test_all_hashes_within_the_distance_are_found_and_nothing_else(hashes: list[int], data: st.DataObject):
    for hash in list(hashes):
        hashes.append(hash ^ sum(1 << bit for bit in data.draw(flips)))
    hashes = [hash for hash in hashes if hash.bit_count() >= hashing.MIN_BITS]

    together = {position: n for n, group in enumerate(near_groups(hashes)) for position in group}

    for one, a in enumerate(hashes):
        for other, b in enumerate(hashes):
            if one != other and (a ^ b).bit_count() <= MAX_DISTANCE:
                assert together[one] == together[other]
    for group in near_groups(hashes):
        for one in group:
            near = [other for other in group if other != one]
            assert any((hashes[one] ^ hashes[other]).bit_count() <= MAX_DISTANCE for other in near)


def test_a_perceptual_hash_is_a_number_of_64_bits():
    image = Image.open(BytesIO(a_scene(3)))

    assert 0 <= perceptual_hash(image) < 2**64
    assert perceptual_hash(Image.new("RGB", (9, 9))).bit_count() < hashing.MIN_BITS
