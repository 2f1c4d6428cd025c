"""Work that goes on at once: in order, never far ahead of whoever wants it, and nothing left running.

A pipeline is written as the iterators it would be without any of this. `ahead` has one of them read in a
thread of its own, `behind` does the last step in one; errors come out where the item would have.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
END: Any = object()


@contextmanager
def ahead(source: Iterable[Item], *, depth: int = 1) -> Iterator[Iterator[Item]]:
    """Yield an iterator over `source`, which is read in a thread of its own.

    Args:
        depth: how many items are made before they are wanted.
    """
    items = iter(source)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, END) for _ in range(depth))

        def taken() -> Iterator[Item]:
            while (item := waiting.popleft().result()) is not END:
                waiting.append(thread.submit(next, items, END))
                yield item

        try:
            yield taken()
        finally:
            _cancel(waiting)


@contextmanager
def behind(work: Callable[[Item], object], *, depth: int = 1) -> Iterator[Callable[[Item], None]]:
    """Yield what hands an item on to `work`, which is done in a thread of its own.

    All that was handed on is done on the way out.

    Args:
        depth: how many items may wait to be worked on. An error of `work` is raised when the next item is
            handed on, or on the way out; what waits behind it is not worked on.
    """
    failed = Event()

    def work_on(item: Item) -> None:
        if failed.is_set():
            return
        try:
            work(item)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[None]] = deque()

        def hand_on(item: Item) -> None:
            waiting.append(thread.submit(work_on, item))
            while len(waiting) > depth:
                waiting.popleft().result()

        try:
            yield hand_on
            while waiting:
                waiting.popleft().result()
        finally:
            _cancel(waiting)


def side_by_side(
    work: Callable[[Item], Result], source: Iterable[Item], *, threads: int, slow: Callable[[Item], bool]
) -> Iterator[Result]:
    """Yield `work(item)` for each item in order; of the slow ones, each thread works on one."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in source:
                waiting.append(pool.submit(work, item) if slow(item) else _done(work(item)))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            _cancel(waiting)


def _done(result: Result) -> Future[Result]:
    done: Future[Result] = Future()
    done.set_result(result)
    return done


class Clock:
    """How long each stage was at work; a stage belongs to one thread at a time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def reading(self, stage: str, source: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of `source`, and count the time that it takes to make them."""
        items = iter(source)
        while True:
            with self(stage):
                item = next(items, END)
            if item is END:
                return
            yield item


def _cancel(waiting: Iterable[Future[Any]]) -> None:
    for one in waiting:
        one.cancel()
