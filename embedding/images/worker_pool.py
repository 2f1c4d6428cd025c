"""Decode untrusted images in worker processes, beside the model.

Each worker is a plain process that imports no torch and ends with its parent. Bytes go to it through a
socket; the result comes back through shared memory without a name, which cannot be left behind. A worker
that crashes, or exceeds the memory or time limit of one image, is replaced, and the image is rejected.
"""

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from mmap import mmap
from multiprocessing.connection import Pipe
from signal import Signals
from tempfile import TemporaryFile
from typing import IO, Any, Self

from embedding.errors import EmbeddingError, EncoderUnavailable
from embedding.images.decode import DECODE_BYTES, BadImage
from embedding.images.preparation import Preparation, PreparedImage
from embedding.images.worker_process import CPU_S, OUT_OF_MEMORY, PREPARE, READY, USE, read_arrays

SHARED_BYTES = 16 * 2**20
"""Shared memory of a worker: more than most models need for one image; allocated as it is written."""

INGEST_NICENESS = 19
"""Niceness of workers beside a model: on a CPU, one waiting thread of the model stops the others too."""

REQUEST_NICENESS = 5
"""Niceness of the workers that serve requests."""

SHARED_WORKERS = 2
MAX_WAITING = 8
WAIT_S = 10.0
MAX_WAITING_BYTES = 256 * 2**20
"""Of images that wait in `Workers` to be decoded."""

STUCK_S = 300
"""A worker without an answer for so long is ended; `CPU_S` ends a busy one far earlier."""


class WorkersFailed(EncoderUnavailable):
    """Report that no worker is available now; no image is at fault."""


class WorkersBusy(WorkersFailed):
    """Report that too many images wait to be decoded."""

    def __init__(self) -> None:
        super().__init__("too many images wait to be decoded; try again in a few seconds")


class WorkerExit(EmbeddingError):
    """Report that the process of a worker has ended.

    Attributes:
        is_slow: whether an image exceeded the time limit.
        is_large: whether an image exceeded the memory limit.
    """

    def __init__(self, status: int, *, is_stuck: bool = False) -> None:
        super().__init__(f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}")
        self.is_slow = is_stuck or status == -Signals.SIGXCPU
        self.is_large = status == OUT_OF_MEMORY

    def as_bad_image(self, name: str) -> BadImage:
        """Return the error of an image that ends its workers."""
        if self.is_slow:
            return BadImage("too_costly", name, f"decoding it takes over {CPU_S} s; export it again, smaller")
        if self.is_large:
            why = f"decoding it takes over {DECODE_BYTES // 2**20} MiB of memory; resize it at the source"
            return BadImage("too_costly", name, why)
        problem = f"its decoder crashed twice ({self}); export it again, or leave it out"
        return BadImage("crashed_decoder", name, problem)


class Pool:
    """Manage worker processes, each for one thread at a time.

    They start on first use.

    Args:
        processes: the number of processes, at most.
        niceness: of each process.
    """

    def __init__(self, processes: int, niceness: int) -> None:
        self._niceness = niceness
        self._free = threading.BoundedSemaphore(processes)
        self._requests = threading.BoundedSemaphore(processes + MAX_WAITING)
        self._turn = threading.Lock()
        self._idle: list[_Worker] = []
        self.started: list[_Worker] = []
        self._is_over = False

    def prepare(
        self, preparation: Preparation, data: bytes, *, name: str, wait_s: float | None = None
    ) -> tuple[PreparedImage, float]:
        """Return a prepared image, and the processor time that it took.

        Bytes that end a worker twice, by a fault of a decoder, are a bad image too.

        Args:
            wait_s: the limit of waiting for a free worker; None for no limit.

        Raises:
            BadImage: the image cannot be encoded.
            WorkersBusy: no worker was free in time.
            WorkersFailed: no worker starts.
        """
        try:
            with self._leased(preparation, wait_s) as worker:
                return worker.prepare(data, name)
        except WorkerExit as error:
            if error.is_slow:
                raise error.as_bad_image(name) from error
        try:
            with self._leased(
                preparation, wait_s
            ) as worker:  # a new process may succeed where an old one failed
                return worker.prepare(data, name)
        except WorkerExit as error:
            raise error.as_bad_image(name) from error

    def prepare_soon(self, preparation: Preparation, data: bytes, *, name: str) -> PreparedImage:
        """Prepare an image for a request, after a short wait at most.

        Raises:
            BadImage, WorkersBusy, WorkersFailed: as `prepare`.
        """
        if not self._requests.acquire(blocking=False):
            raise WorkersBusy
        try:
            return self.prepare(preparation, data, name=name, wait_s=WAIT_S)[0]
        finally:
            self._requests.release()

    def close(self) -> None:
        """End all processes; the next image starts one again."""
        with self._turn:
            ending, self.started, self._idle = self.started, [], []
        for worker in ending:
            worker.close()

    def kill(self) -> None:
        """Kill all processes for good, while threads may wait for them."""
        with self._turn:
            self._is_over = True
            ending, self.started, self._idle = self.started, [], []
        for worker in ending:
            worker.kill()

    @contextmanager
    def _leased(self, preparation: Preparation, wait_s: float | None) -> Iterator["_Worker"]:
        """Yield a worker with `preparation`; discard it after a failure."""
        if not self._free.acquire(timeout=wait_s):
            raise WorkersBusy
        try:
            worker = self._taken(preparation)
            try:
                worker.use(preparation)
                yield worker
            except BadImage:
                self._put_back(worker)
                raise
            except BaseException:
                self._discard(worker)
                raise
            self._put_back(worker)
        finally:
            self._free.release()

    def _taken(self, preparation: Preparation) -> "_Worker":
        with self._turn:
            for place, worker in enumerate(self._idle):
                if worker.preparation == preparation:
                    return self._idle.pop(place)
            if self._idle:
                return self._idle.pop()
        worker = _Worker(self._niceness)
        with self._turn:
            if not self._is_over:
                self.started.append(worker)
                return worker
        worker.kill()
        raise WorkersFailed("the process is to stop")

    def _put_back(self, worker: "_Worker") -> None:
        with self._turn:
            if worker in self.started:
                self._idle.append(worker)

    def _discard(self, worker: "_Worker") -> None:
        with self._turn:
            if worker in self.started:
                self.started.remove(worker)
        worker.close()


_shared = Pool(SHARED_WORKERS, REQUEST_NICENESS)
atexit.register(_shared.close)


def prepare_soon(preparation: Preparation, data: bytes, *, name: str) -> PreparedImage:
    """Prepare one image in a worker shared by this process.

    At most `SHARED_WORKERS` images are decoded at once, for requests, pages and commands together. A few
    others wait, each for `WAIT_S` at most.

    Raises:
        BadImage: the image cannot be encoded.
        WorkersBusy: too many others wait already, or none was done in time.
        WorkersFailed: no worker starts.
    """
    return _shared.prepare_soon(preparation, data, name=name)


class Workers:
    """Prepare images in worker processes beside the model; started on first use.

    Args:
        preparation: the step for each image.
        processes: the number of processes; 0 prepares images one by one in the workers that this process
            shares, which suits a few images.
    """

    def __init__(self, preparation: Preparation, processes: int) -> None:
        self._preparation = preparation
        self._own = Pool(processes, INGEST_NICENESS) if processes else None
        self._pool = _shared if self._own is None else self._own
        self._turn = threading.Condition()
        self._waiting_bytes = 0
        self.seconds = 0.0
        """Processor time of all workers for images so far."""

        # a thread for each process: it sends, waits and copies; the pool keeps the order of a queue
        self._threads = ThreadPoolExecutor(max(1, processes), thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_stop = kind is not None and not issubclass(kind, Exception | GeneratorExit)
        self._threads.shutdown(wait=not is_stop, cancel_futures=True)
        if self._own is not None and is_stop:
            self._own.kill()
        elif self._own is not None:
            self._own.close()

    @property
    def pids(self) -> list[int]:
        """The ids of the current processes."""
        return [worker.pid for worker in self._pool.started]

    def submit(self, data: bytes, *, name: str) -> "Future[PreparedImage]":
        """Submit an image, once the waiting ones leave room for its bytes.

        Its future may raise `BadImage` or `WorkersFailed`.
        """
        with self._turn:
            self._turn.wait_for(lambda: not self._waiting_bytes or self._has_room(data))
            self._waiting_bytes += len(data)
        future = self._threads.submit(self._prepare, data, name)
        future.add_done_callback(partial(self._forget, len(data)))
        return future

    def _has_room(self, data: bytes) -> bool:
        return self._waiting_bytes + len(data) <= MAX_WAITING_BYTES

    def _forget(self, size: int, _: "Future[PreparedImage]") -> None:
        with self._turn:
            self._waiting_bytes -= size
            self._turn.notify_all()

    def _prepare(self, data: bytes, name: str) -> PreparedImage:
        prepared, seconds = self._pool.prepare(self._preparation, data, name=name)
        with self._turn:
            self.seconds += seconds
        return prepared


class _Worker:
    """Control one process, which prepares one image at a time."""

    def __init__(self, niceness: int) -> None:
        self.preparation: Preparation | None = None
        self._connection, theirs = Pipe()
        with theirs, _nameless_file(SHARED_BYTES) as file:
            fds = theirs.fileno(), file.fileno()
            self._memory = mmap(file.fileno(), SHARED_BYTES)
            command = [
                sys.executable,
                "-P",
                "-m",
                "embedding.images.worker_process",
                *map(str, (*fds, SHARED_BYTES, niceness)),
            ]
            self._process = subprocess.Popen(command, pass_fds=fds)
        self._begin()

    @property
    def pid(self) -> int:
        return self._process.pid

    def use(self, preparation: Preparation) -> None:
        """Load the preparation of the next images, if it is not loaded.

        Raises:
            WorkersFailed: the process cannot load it.
        """
        if self.preparation != preparation:
            self._begin((USE, "", pickle.dumps(preparation)))
            self.preparation = preparation

    def prepare(self, data: bytes, name: str) -> tuple[PreparedImage, float]:
        """Return a prepared image, and the processor time that it took.

        Raises:
            BadImage: the image cannot be encoded.
            Ended: the process ended instead of answering.
        """
        answer, seconds = self._ask((PREPARE, name, data))
        if isinstance(answer, BadImage):
            raise answer
        return read_arrays(self._memory, *answer), seconds

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self.kill()
        self._memory.close()

    def kill(self) -> None:
        """Kill the process; a thread that waits for it gets `WorkerExit`."""
        self._process.kill()
        self._process.wait()

    def _begin(self, *messages: Any) -> None:
        try:
            if self._ask(*messages) != READY:
                raise WorkersFailed("a worker that decodes images is out of step")
        except WorkerExit as error:
            self.close()
            raise WorkersFailed(f"a worker that decodes images did not start ({error})") from error

    def _ask(self, *messages: Any) -> Any:
        try:
            for message in messages:
                self._connection.send(message)
            if self._connection.poll(STUCK_S):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerExit(self._process.wait()) from error
        self._process.kill()
        raise WorkerExit(self._process.wait(), is_stuck=True)


def _nameless_file(size: int) -> IO[bytes]:
    """Return an unnamed file of `size` bytes, if possible in memory."""
    named = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("sightline"), "r+b") if named else TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file
