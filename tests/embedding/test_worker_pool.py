"""Test worker processes: equal results, and no process left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from embedding.images import worker_pool
from embedding.images.decode import BadImage
from embedding.images.preparation import (
    PIXELS,
    NoPreparation,
    Preparation,
    PreparedImage,
    ResizeCrop,
    prepare,
)
from embedding.images.worker_pool import Workers, WorkersFailed
from tests.support.builders import encoded, noise, png
from tests.support.processes import is_gone, wait_until
from tests.support.watching import memory_mib

PREPARATION = ResizeCrop(size=24, crop=(24, 24), resample=3, scale=(1.0,) * 3, shift=(0.0,) * 3)
STARTS_AND_WAITS = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from embedding.images.preparation import NoPreparation
from embedding.images.worker_pool import Workers
from tests.support.builders import png
with Workers(NoPreparation(), 2) as pool:
    for done in [pool.submit(png(), name="red.png") for _ in range(20)]:
        done.result()
    print(*pool.pids, flush=True)
    time.sleep(60)
"""


LARGE_MIB = 120
"""More than a worker takes that has no image."""


def pids(pool: Workers) -> list[int]:
    return pool.pids


def files(many: int) -> list[bytes]:
    return [encoded(noise((40 + n, 90 - n)), "PNG") for n in range(many)]


@pytest.fixture(scope="module")
def slow_file() -> bytes:
    """Build a small file that is slow to decode."""
    return encoded(Image.new("RGB", (8000, 5000)), "PNG")


def same(one: PreparedImage, other: PreparedImage) -> bool:
    assert one.features.keys() == other.features.keys()
    pixels = (one.features[PIXELS] == other.features[PIXELS]).all()
    return bool(pixels) and (one.width, one.height, one.format) == (other.width, other.height, other.format)


@pytest.mark.parametrize("processes", [0, 1, 3])
@pytest.mark.parametrize("preparation", [PREPARATION, NoPreparation()], ids=["resized", "as they are"])
def test_workers_prepare_images_as_this_process_would_and_keep_their_order(
    preparation: Preparation, processes: int
):
    data = files(12)

    with Workers(preparation, processes) as pool:
        waiting = [pool.submit(one, name="any.png") for one in data]
        found = [one.result() for one in waiting]

    expected = [prepare(preparation, one, name="any.png") for one in data]
    assert all(same(*pair) for pair in zip(found, expected, strict=True))


def test_an_image_larger_than_the_shared_memory_comes_whole():
    data = encoded(noise((1279, 1278)), "PNG")

    with Workers(NoPreparation(), 1) as pool:
        found = pool.submit(data, name="large.png").result()

    assert found.features[PIXELS].shape == (1278, 1279, 3)
    assert same(found, prepare(NoPreparation(), data, name="large.png"))


@pytest.mark.parametrize("processes", [0, 2])
def test_a_bad_image_is_its_own_error_and_the_next_one_is_fine(processes: int):
    with Workers(PREPARATION, processes) as pool:
        bad, good = (pool.submit(data, name="cat.png") for data in (b"no picture", png()))

        with pytest.raises(BadImage, match=r"cat\.png: not an image") as caught:
            bad.result()
        assert caught.value.reason == "not_a_picture"
        assert good.result().format == "PNG"


def test_what_a_library_writes_about_an_image_does_not_reach_the_terminal(capfd: pytest.CaptureFixture[str]):
    packed = encoded(noise(), "TIFF", compression="tiff_lzw")
    packed = packed[:9] + b"\xff" * 900 + packed[909:]
    with Workers(PREPARATION, 1) as pool, pytest.raises(BadImage, match="damaged or cut short"):
        pool.submit(packed, name="fax.tiff").result()

    assert capfd.readouterr().err == ""


def test_no_process_starts_before_there_is_an_image_and_none_is_left_afterwards():
    with Workers(PREPARATION, 2) as pool:
        assert pids(pool) == []
        for done in [pool.submit(png(), name="red.png") for _ in range(9)]:
            done.result()
        started = pids(pool)
        assert 1 <= len(started) <= 2

    assert all(is_gone(pid) for pid in started)


def is_decoding(pid: int) -> bool:
    """Return whether a worker holds the large part of `slow_file`'s 120 MB of pixels."""
    return memory_mib(pid) > LARGE_MIB


def test_a_worker_that_dies_is_replaced_and_its_image_prepared(slow_file: bytes):
    with Workers(PREPARATION, 1) as pool:
        pool.submit(png(), name="red.png").result()
        [pid] = pids(pool)

        waiting = pool.submit(slow_file, name="slow.png")
        os.kill(pid, signal.SIGKILL)

        assert waiting.result().format == "PNG"
        assert pids(pool) != [pid]


def test_an_image_that_ends_its_worker_twice_is_a_bad_one(slow_file: bytes):
    with Workers(PREPARATION, 1) as pool:
        waiting = pool.submit(slow_file, name="evil.png")
        while not waiting.done():
            for pid in filter(is_decoding, pids(pool)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

        with pytest.raises(
            BadImage, match=r"evil\.png: its decoder crashed twice \(signal SIGKILL\)"
        ) as caught:
            waiting.result()
        assert caught.value.reason == "crashed_decoder"
        assert pool.submit(png(), name="red.png").result().format == "PNG"


def test_workers_end_with_the_process_that_started_them():
    command = [sys.executable, "-c", STARTS_AND_WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        started = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()

    assert started
    wait_until(lambda: all(is_gone(pid) for pid in started))


def test_a_worker_that_does_not_start_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_pool.sys, "executable", "false")

    with Workers(PREPARATION, 1) as pool, pytest.raises(WorkersFailed, match=r"did not start \(exit status"):
        pool.submit(png(), name="red.png").result()


def test_leaving_with_images_still_waiting_does_not_wait_for_them(slow_file: bytes):
    with Workers(PREPARATION, 1) as pool:
        waiting = [pool.submit(slow_file, name="slow.png") for _ in range(50)]
        begun = threading.Event()
        waiting[0].add_done_callback(lambda _: begun.set())
        begun.wait()

    assert waiting[-1].cancelled()


def test_images_wait_only_for_as_long_as_there_is_room_for_their_bytes(monkeypatch: pytest.MonkeyPatch):
    """Limit the bytes of waiting images."""
    [data] = files(1)
    monkeypatch.setattr(worker_pool, "MAX_WAITING_BYTES", 3 * len(data))
    with Workers(PREPARATION, 1) as pool:
        pool.submit(data, name="first.png").result()
        [pid] = pids(pool)
        os.kill(pid, signal.SIGSTOP)
        begun: list[Future[PreparedImage]] = []
        sender = threading.Thread(
            target=lambda: begun.extend(pool.submit(data, name=f"{n}.png") for n in range(6))
        )
        sender.start()
        sender.join(0.5)

        assert (sender.is_alive(), len(begun)) == (True, 3)
        os.kill(pid, signal.SIGCONT)
        sender.join(30)

        assert [one.result().format for one in begun] == ["PNG"] * 6
        huge = pool.submit(data * 4, name="huge.png")  # alone it has room
        assert huge.result().format == "PNG"
