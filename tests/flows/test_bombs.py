"""What strangers send takes the memory and the time that is stated, and no more, whatever it is made of."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedding.images import worker_pool
from embedding.images.decode import DECODE_BYTES, MAX_SCANS, BadImage, decode_image
from embedding.images.preparation import Downscale
from embedding.images.worker_pool import MAX_WAITING, SHARED_WORKERS, Workers, WorkersBusy, prepare_soon
from embedding.images.worker_process import CPU_S
from flows.console.thumbnails import make_thumbnail
from flows.ingestion.reject_preview import as_small_jpeg
from tests.support import bombs
from tests.support.builders import encoded, noise, png
from tests.support.watching import MIB, watched

pytestmark = pytest.mark.services

OWN_MIB = 200
"""What a worker has without any image: Python and its libraries."""


def outcome(data: bytes, name: str) -> str:
    """Return whether a shared worker decodes an image, or the reason why not."""
    try:
        prepare_soon(Downscale(64), data, name=name)
    except BadImage as error:
        return error.reason
    return "decoded"


@pytest.mark.full  # tests of each take seconds, and fail by another reason if it were large
@pytest.mark.parametrize("name", bombs.OUTCOMES)
def test_no_bomb_is_large_itself(name: str):
    assert len(bombs.image(name)) < 300_000


@pytest.mark.full
@pytest.mark.parametrize("name", bombs.OUTCOMES)
def test_a_bomb_takes_its_worker_the_stated_memory_and_time_and_this_process_nothing(name: str):
    data = bombs.image(name)
    prepare_soon(Downscale(64), png(), name="first.png")
    began = time.perf_counter()

    with watched() as most:
        found = outcome(data, name)

    assert found == (bombs.OUTCOMES[name] or "decoded")
    assert most["worker"] < DECODE_BYTES / MIB + OWN_MIB
    assert most["own"] < 50
    assert time.perf_counter() - began < 6 * CPU_S
    assert outcome(png(), "next.png") == "decoded"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("flat.webp", "too_many_pixels"), ("more-scans.jpg", "too_costly"), ("claim.bmp", "too_costly")],
)
def test_what_the_header_tells_is_refused_before_a_pixel_is_decoded(name: str, reason: str):
    data = bombs.image(name)
    began = time.process_time()

    with pytest.raises(BadImage) as caught:
        decode_image(data, name=name)

    assert caught.value.reason == reason
    assert time.process_time() - began < 0.2


def test_the_scans_of_a_photograph_are_no_bomb_wherever_its_bytes_look_like_markers():
    tail = b"\xff\xda\x00\x02" * 2 * MAX_SCANS  # as a film behind a phone's photograph may hold
    for data in (encoded(noise(), "JPEG", progressive=True), encoded(noise(), "JPEG")):
        assert decode_image(data + tail, name="photo.jpg").format == "JPEG"


def test_an_image_that_takes_too_long_is_rejected_and_its_worker_replaced():
    slow = bombs.image("scans.jpg")
    with Workers(Downscale(64), 1) as pool:
        pool.submit(png(), name="red.png").result()
        [pid] = pool.pids
        os.kill(pid, signal.SIGSTOP)
        waiting = pool.submit(slow, name="slow.jpg")
        os.kill(pid, signal.SIGXCPU)  # as the system sends it after `CPU_S`
        os.kill(pid, signal.SIGCONT)

        with pytest.raises(BadImage, match=rf"slow\.jpg: decoding it takes over {CPU_S} s") as caught:
            waiting.result()

        assert caught.value.reason == "too_costly"
        assert pool.submit(png(), name="red.png").result().format == "PNG"
        assert pool.pids != [pid]


@pytest.mark.full
def test_a_worker_that_is_at_work_for_too_long_is_ended_by_the_system():
    began = time.perf_counter()

    assert outcome(bombs.many_scans(8900, 85), "slow.jpg") in ("too_costly", "decoded")
    assert time.perf_counter() - began < 6 * CPU_S


@pytest.mark.full
def test_many_bombs_at_once_leave_a_server_its_memory_and_all_but_a_few_are_told_to_wait():
    bomb = bombs.image("large.png")

    def ask(number: int) -> str:
        try:
            return outcome(bomb, f"{number}.png")
        except WorkersBusy:
            return "busy"

    with watched() as most, ThreadPoolExecutor(40) as threads:
        found = list(threads.map(ask, range(40)))

    assert set(found) <= {"decoded", "busy", "too_costly"}
    assert found.count("busy") >= 40 - SHARED_WORKERS - MAX_WAITING - 5
    assert most["own"] < 100
    assert most["workers"] < SHARED_WORKERS * (DECODE_BYTES / MIB + OWN_MIB)


def test_no_image_waits_for_a_worker_longer_than_it_may(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_pool, "WAIT_S", 0.2)
    slow = bombs.image("large.gif")

    with ThreadPoolExecutor(8) as threads:
        first = [threads.submit(outcome, slow, "slow.gif") for _ in range(8)]
        found = [one.exception() for one in first]

    assert any(isinstance(one, WorkersBusy) for one in found)


@pytest.mark.parametrize("name", ["flat.webp", "more-scans.jpg", "tile.tiff"])
def test_a_page_shows_no_bomb(name: str):
    with watched() as most:
        assert make_thumbnail(bombs.image(name), 320) is None
        with pytest.raises(BadImage):
            as_small_jpeg(bombs.image(name), name=name)

    assert most["own"] < 50
