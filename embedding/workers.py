"""Decoding in processes of their own, so that it needs neither the interpreter nor the time of the model.

Each worker is a plain process that imports no torch and ends when the one that started it is gone. Bytes go
to it through a socket; what it makes of them comes back through memory that both map, which has no name
and so cannot be left behind.
"""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap
from multiprocessing.connection import Pipe
from signal import Signals
from tempfile import TemporaryFile
from typing import IO, Any, Self

from PIL import Image

from embedding.images import BadImage
from embedding.preparation import Preparation, Prepared, prepare
from embedding.worker import ALIGNMENT, take

PROBE_SIDE = 1000
"""Above what most models look at, so that their features find room in shared memory."""


class WorkersFailed(RuntimeError):
    """A worker did not start; nothing is wrong with any picture."""


class Workers:
    """Prepares pictures beside the model, in as many processes as asked for; they start when first used.

    Args:
        preparation: what is done to each picture.
        processes: how many; 0 prepares them in a thread of this process, which suits a few pictures.
    """

    def __init__(self, preparation: Preparation, processes: int) -> None:
        self._preparation = preparation
        self._processes = processes
        self._own = threading.local()
        self._started: list[_Worker] = []
        self._own_seconds = 0.0
        # a thread for each process: it sends, waits and copies; the pool keeps the order of a queue
        self._threads = ThreadPoolExecutor(max(1, processes), thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for worker in self._started:
            worker.close()

    @property
    def seconds(self) -> float:
        """Time on a processor that pictures have taken so far, added up over all workers."""
        return self._own_seconds + sum(worker.seconds for worker in self._started)

    def submit(self, data: bytes, *, name: str) -> "Future[Prepared]":
        """Begin to prepare a picture; its future may raise `BadImage`, or `WorkersFailed`.

        Bytes that end a worker twice, by a fault of a decoder, are a bad picture too.
        """
        work = self._prepare if self._processes else self._prepare_here
        return self._threads.submit(work, data, name)

    def _prepare_here(self, data: bytes, name: str) -> Prepared:
        start = time.thread_time()
        try:
            return prepare(self._preparation, data, name=name)
        finally:
            self._own_seconds += time.thread_time() - start

    def _prepare(self, data: bytes, name: str) -> Prepared:
        try:
            return self._worker().prepare(data, name)
        except Ended:
            self._discard()
        try:
            return self._worker().prepare(data, name)
        except Ended as error:
            self._discard()
            problem = f"its decoder crashed twice ({error}); export it again, or leave it out"
            raise BadImage("crashed_decoder", name, problem) from error

    def _worker(self) -> "_Worker":
        """Return the worker of this thread, which is started if need be."""
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _Worker(self._preparation)
            self._started.append(worker)
        return worker

    def _discard(self) -> None:
        worker = self._own.worker
        self._own.worker = None
        self._started.remove(worker)
        worker.close()


class Ended(RuntimeError):
    """The process of a worker is gone."""


class _Worker:
    """One process, which prepares one picture at a time."""

    def __init__(self, preparation: Preparation) -> None:
        probe = preparation(Image.new("RGB", (PROBE_SIDE, PROBE_SIDE)))
        room = sum(array.nbytes + ALIGNMENT for array in probe.values())
        self.seconds = 0.0
        self._connection, theirs = Pipe()
        with theirs, _nameless_file(room) as file:
            fds = theirs.fileno(), file.fileno()
            self._memory = mmap(file.fileno(), room)
            command = [sys.executable, "-P", "-m", "embedding.worker", *map(str, (*fds, room))]
            self._process = subprocess.Popen(command, pass_fds=fds)
        try:
            self._ask(preparation)
        except Ended as error:
            self.close()
            raise WorkersFailed(f"a worker that decodes pictures did not start ({error})") from error

    def prepare(self, data: bytes, name: str) -> Prepared:
        """Return `data` prepared.

        Raises:
            BadImage: it is no picture that a model could be shown.
            Ended: the process ended instead of answering.
        """
        answer, self.seconds = self._ask(name, data)
        if isinstance(answer, BadImage):
            raise answer
        return take(self._memory, *answer)

    def close(self) -> None:
        """End the process: without a connection it has nothing to do."""
        self._connection.close()
        self._process.wait()
        self._memory.close()

    def _ask(self, *messages: Any) -> Any:
        try:
            for message in messages:
                if isinstance(message, bytes):
                    self._connection.send_bytes(message)
                else:
                    self._connection.send(message)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise Ended(_how(self._process.wait())) from error


def _nameless_file(size: int) -> IO[bytes]:
    """Return a file of `size` bytes in memory where the system can do that, else in its folder for them."""
    named = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("sightline"), "r+b") if named else TemporaryFile()  # noqa: SIM115
    file.truncate(size)
    return file


def _how(status: int) -> str:
    return f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
