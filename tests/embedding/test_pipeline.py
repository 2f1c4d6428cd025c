"""Test order, bounded queues and clean failures of overlapped stages."""

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import count, islice
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding.pipeline import Clock, in_background, map_in_order, prefetch

PATIENCE_S = 10


class Failed(Exception):
    pass


def failing_after(many: int) -> Iterator[int]:
    yield from range(many)
    raise Failed


def no_thread_left(before: set[threading.Thread]) -> bool:
    return set(threading.enumerate()) <= before


@given(items=st.lists(st.integers()), depth=st.integers(1, 5))
def test_prefetched_items_are_those_of_the_source(items: list[int], depth: int):
    with prefetch(items, depth=depth) as taken:
        assert list(taken) == items


def test_a_source_is_read_while_its_reader_works():
    second_is_made = Event()

    def source() -> Iterator[int]:
        yield 1
        second_is_made.set()
        yield 2

    with prefetch(source()) as taken:
        assert next(taken) == 1
        assert second_is_made.wait(PATIENCE_S)  # nobody has asked for it yet


@pytest.mark.parametrize("depth", [1, 3])
def test_a_source_is_never_further_ahead_than_its_depth(depth: int):
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    with prefetch(source(), depth=depth) as taken:
        for number in islice(taken, 20):
            assert len(made) <= number + 1 + depth
    assert len(made) <= 20 + depth


def test_an_error_of_a_source_comes_out_after_the_items_before_it():
    before = set(threading.enumerate())
    with prefetch(failing_after(3), depth=5) as items:
        assert list(islice(items, 3)) == [0, 1, 2]
        with pytest.raises(Failed):
            next(items)

    assert no_thread_left(before)


def test_a_source_that_nobody_wants_any_more_is_read_no_further():
    before = set(threading.enumerate())
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    def take_one_and_fail() -> None:
        with prefetch(source()) as taken:
            next(taken)
            raise Failed

    with pytest.raises(Failed):
        take_one_and_fail()
    many = len(made)
    time.sleep(0.05)

    assert len(made) == many
    assert no_thread_left(before)


def test_three_stages_in_a_row_are_at_work_at_once():
    together = threading.Barrier(3)

    def stage(source: Iterable[int], *, meets_at: int) -> Iterator[int]:
        for item in source:
            if item == meets_at:
                together.wait(PATIENCE_S)  # breaks unless all three have their item at one moment
            yield item

    with (
        prefetch(stage(range(5), meets_at=2)) as first,
        prefetch(stage(first, meets_at=1)) as second,
        prefetch(stage(second, meets_at=0)) as third,
    ):
        assert list(third) == list(range(5))


@given(items=st.lists(st.integers()), depth=st.integers(1, 5))
def test_background_work_is_done_in_order(items: list[int], depth: int):
    done: list[int] = []
    with in_background(done.append, depth=depth) as hand_on:
        for item in items:
            hand_on(item)

    assert done == items


def test_submissions_faster_than_the_work_wait():
    may_go = Event()
    done: list[int] = []

    def work(item: int) -> None:
        assert may_go.wait(PATIENCE_S)
        done.append(item)

    handed_on: list[int] = []

    def hand_all_on() -> None:
        with in_background(work, depth=2) as hand_on:
            for number in range(10):
                hand_on(number)
                handed_on.append(number)

    other = threading.Thread(target=hand_all_on)
    other.start()
    time.sleep(0.1)
    waiting = list(handed_on)
    may_go.set()
    other.join(PATIENCE_S)

    assert waiting == [0, 1]  # the third waits in `hand_on`
    assert done == list(range(10))


def test_after_a_failure_behind_nothing_more_is_done():
    tried: list[int] = []

    def work(item: int) -> None:
        tried.append(item)
        if item == 1:
            raise Failed

    def hand_all_on() -> None:
        with in_background(work, depth=3) as hand_on:
            for number in range(4):
                hand_on(number)

    with pytest.raises(Failed):
        hand_all_on()
    assert tried == [0, 1]


def test_after_a_failure_waiting_items_are_not_begun():
    before = set(threading.enumerate())
    begun, may_go = Event(), Event()
    done: list[int] = []

    def work(item: int) -> None:
        begun.set()
        assert may_go.wait(PATIENCE_S)
        done.append(item)

    def fail_in_front() -> None:
        with in_background(work, depth=3) as hand_on:
            for number in range(3):
                hand_on(number)
            assert begun.wait(PATIENCE_S)
            threading.Timer(0.05, may_go.set).start()
            raise Failed

    with pytest.raises(Failed):
        fail_in_front()
    assert done == [0]
    assert no_thread_left(before | {one for one in threading.enumerate() if isinstance(one, threading.Timer)})


@given(items=st.lists(st.integers(-5, 5)), threads=st.integers(1, 4))
def test_mapped_results_come_in_order(items: list[int], threads: int):
    def work(item: int) -> int:
        time.sleep(0.0001 * abs(item))
        return item * 2

    found = list(map_in_order(work, items, threads=threads, slow=lambda item: item > 0))

    assert found == [item * 2 for item in items]


def test_slow_items_are_mapped_concurrently():
    together = threading.Barrier(3)

    def work(item: int) -> int:
        together.wait(PATIENCE_S)
        return item

    assert list(map_in_order(work, range(6), threads=3, slow=lambda _: True)) == list(range(6))


def test_an_error_of_a_mapped_item_comes_in_place_of_its_result():
    def work(item: int) -> int:
        if item == 2:
            raise Failed
        return item

    answers = map_in_order(work, range(9), threads=4, slow=lambda _: True)

    assert [next(answers), next(answers)] == [0, 1]
    with pytest.raises(Failed):
        next(answers)


def test_a_clock_adds_up_the_time_of_each_stage_and_not_that_of_its_reader():
    clock = Clock()

    def source() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.01)
            yield number

    for _ in clock.reading("read", source()):
        with clock("work"):
            time.sleep(0.03)

    assert 0.03 <= clock.seconds["read"] < clock.seconds["work"]
    assert clock.seconds["work"] >= 0.09


def test_a_clock_counts_the_time_before_a_failure():
    clock = Clock()

    def fail() -> None:
        with clock("work"):
            time.sleep(0.01)
            raise Failed

    with pytest.raises(Failed):
        fail()
    assert clock.seconds["work"] >= 0.01
