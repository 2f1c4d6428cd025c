"""Overlap the stages of a pipeline: in order, with bounded queues.

A pipeline is written as plain iterators. `prefetch` reads one of them in its own thread, `in_background` runs
the last stage in one. An error is raised in place of its item, and no thread is left running, unless the
process is to stop (KeyboardInterrupt and the like): then nothing waits for the step that a thread is at.
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
def executor(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that end with the block.

    A step in a thread may take as long as a slow server likes. Every step can be repeated, so a process that
    stops (KeyboardInterrupt and the like) does not wait for it.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    except (Exception, GeneratorExit):
        pool.shutdown()
        raise
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def prefetch(source: Iterable[Item], *, depth: int = 1) -> Iterator[Iterator[Item]]:
    """Yield an iterator over `source`, which is read in its own thread.

    Args:
        depth: the number of items that are read in advance.
    """
    items = iter(source)
    with executor(1) as thread:
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
def in_background(work: Callable[[Item], object], *, depth: int = 1) -> Iterator[Callable[[Item], None]]:
    """Yield a function that submits items to `work` in a thread.

    All submitted items are done at exit.

    Args:
        depth: the number of items that may wait. An error of `work` is raised at the next
            submission or at exit; the items behind it are dropped.
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

    with executor(1) as thread:
        waiting: deque[Future[None]] = deque()

        def submit(item: Item) -> None:
            waiting.append(thread.submit(work_on, item))
            while len(waiting) > depth:
                waiting.popleft().result()

        try:
            yield submit
            while waiting:
                waiting.popleft().result()
        finally:
            _cancel(waiting)


def map_in_order(
    work: Callable[[Item], Result], source: Iterable[Item], *, threads: int, slow: Callable[[Item], bool]
) -> Iterator[Result]:
    """Yield `work(item)` for each item in order; run slow items in threads."""
    with executor(threads) as pool:
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
    """Measure the working time of stages, each in one thread."""

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
        """Yield the items of `source`, and measure the time to read them."""
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
