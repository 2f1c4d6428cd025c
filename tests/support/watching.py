"""How much memory a test takes, in its own process and in those that it starts."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20


def memory_mib(pid: int | str, line: str = "VmRSS") -> float:
    """Return the resident memory of a process, 0 where it has ended."""
    status = _read(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(one.split()[1]) / 1024 for one in status if one.startswith(line)), 0)


def peak_mib(pid: int | str) -> float:
    """Return the most resident memory that a process has had since `forget_peak`, 0 where it has ended."""
    return memory_mib(pid, "VmHWM")


def forget_peak(pid: int | str) -> None:
    """Have the peak of a process begin with what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def children(pid: int | str = "self") -> set[str]:
    """Return the processes that any thread of one has started."""
    return {child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in _read(file).split()}


def command_of(pid: int | str) -> str:
    """Return the command line of a process, empty where it has ended."""
    return _read(Path(f"/proc/{pid}/cmdline"))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # a thread that has ended meanwhile


@contextmanager
def repeated(look: Callable[[], None], *, every_s: float) -> Iterator[None]:
    """Call `look` again and again, in a thread of its own, until this ends."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Yield the most MiB that this process has gained, that a child of it has had, and all of them."""
    most = {"own": 0.0, "worker": 0.0, "workers": 0.0}
    before, own = memory_mib(os.getpid()), command_of(os.getpid())

    def look() -> None:
        # a child has the memory of this process, and its command, until it begins to run its own
        found = [memory_mib(pid) for pid in children() if command_of(pid) != own]
        most["own"] = max(most["own"], memory_mib(os.getpid()) - before)
        most["worker"] = max(most["worker"], *found, 0.0)
        most["workers"] = max(most["workers"], sum(found))

    with repeated(look, every_s=0.02):
        yield most
