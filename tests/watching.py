"""How much memory a test takes, in its own process and in those that it starts."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20


def memory_mib(pid: int | str) -> float:
    """Return the resident memory of a process, 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)


def children() -> set[str]:
    """Return the processes that any thread of this one has started."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in _read(file).split()}


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # a thread that has ended meanwhile


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Yield the most MiB that this process has gained, that a child of it has had, and all of them."""
    most = {"own": 0.0, "worker": 0.0, "workers": 0.0}
    before, ended = memory_mib(os.getpid()), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            found = [memory_mib(pid) for pid in children()]
            most["own"] = max(most["own"], memory_mib(os.getpid()) - before)
            most["worker"] = max(most["worker"], *found, 0.0)
            most["workers"] = max(most["workers"], sum(found))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
