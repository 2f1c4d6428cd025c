"""Cut a write-ahead log before the first record that cannot be replayed.

The engine does not name that record, and some make it panic or abort. So separate processes try to open the
shard with the first half of the log, with three quarters of it, and so on: replaying the same records again
is harmless, because each point stores the number of its last change.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import qdrant_edge as edge

from storage.embedded.qdrant.engine import write_ahead_log
from storage.embedded.qdrant.engine.bindings import EngineFault, engine_errors
from storage.files import atomic_write

LOG = "wal"
UNREADABLE = "wal.unreadable"
"""The log while it is being cut; its presence marks an interrupted cut."""

SEGMENTS = "segments"
MACHINE_FAULT = re.compile(r"\(os error (?:5|11|12|13|23|24|28|30|122)\)|Out of memory")
"""Temporary faults: a lock, no access, no memory, no descriptors, no space, a failing disk."""

MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class Cut:
    """Describe the position of a cut."""

    number: int
    kind: str
    following: int
    """Number of distinguishable records after it."""

    reason: str
    file: Path
    """File with the record and all after it."""


def is_machine_fault(reason: str) -> bool:
    """Return whether a fault comes from a temporary shortage of the machine."""
    return MACHINE_FAULT.search(reason) is not None


def is_cut_unfinished(shard: Path) -> bool:
    """Return whether a process ended while it cut the log."""
    return (shard / UNREADABLE).exists()


def is_damaged(shard: Path) -> bool:
    """Return whether the log has bytes that the engine would silently drop.

    A record that a killed process left unfinished was never acknowledged: it is overwritten here.
    """
    found = write_ahead_log.check_log(shard / LOG)
    if found.unfinished is not None and not found.is_damaged:
        write_ahead_log.erase(found.unfinished)
    return found.is_damaged


def probe_failure(shard: Path) -> str | None:
    """Open a shard in another process; return the error, or None."""
    module = "storage.embedded.qdrant.process.shard_probe"
    tried = subprocess.run(
        [sys.executable, "-P", "-m", module, str(shard)], capture_output=True, text=True, check=False
    )
    if tried.returncode == 0:
        return None
    lines = tried.stderr.strip().splitlines()
    return lines[-1] if lines and tried.returncode > 0 else f"the engine died of signal {-tried.returncode}"


def cut_log(shard: Path, aside: Path) -> Cut:
    """Cut the log before the record that stops it; save the rest.

    The caller records the cut, and then calls `remove_cut_log`: until then, the next process repeats it.

    Raises:
        EngineFault: the log is not at fault, or not alone; the shard is as it was.
    """
    unreadable = shard / UNREADABLE
    if not is_cut_unfinished(shard):
        (shard / LOG).rename(unreadable)
    try:
        good, reason = _find_replayable(shard, unreadable)
        cut = _save_remainder(unreadable, good, reason, aside / shard.name)
        _replace_log(shard, partial(write_ahead_log.write_prefix, unreadable, count=good))
        _flush_segments(shard)
        _replace_log(shard, partial(write_ahead_log.create_empty, segments=shard / SEGMENTS))
    except BaseException:
        shutil.rmtree(shard / LOG, ignore_errors=True)
        unreadable.rename(shard / LOG)
        raise
    return cut


def remove_cut_log(shard: Path) -> None:
    """Remove a log that was cut and saved."""
    shutil.rmtree(shard / UNREADABLE)


def _find_replayable(shard: Path, unreadable: Path) -> tuple[int, str]:
    """Find the number of replayable records, and the error of the next.

    It bisects, with a process for each attempt.
    """
    good, bad = -1, write_ahead_log.check_log(unreadable).intact + 1
    reason = "its bytes are damaged"
    while bad - good > 1:
        middle = (good + bad) // 2 if good >= 0 else 0
        _replace_log(shard, partial(write_ahead_log.write_prefix, unreadable, count=middle))
        why = probe_failure(shard)
        if why is None:
            good = middle
        elif middle == 0 or is_machine_fault(why):
            raise EngineFault(why)
        else:
            bad, reason = middle, why
    return good, reason


def _save_remainder(unreadable: Path, good: int, reason: str, aside: Path) -> Cut:
    """Save the log from record `good` on, and describe the cut."""
    found = write_ahead_log.records(unreadable)
    stopped = found[good] if good < len(found) else None
    before = found[good - 1].number if good else -1
    number = stopped.number if stopped else before + 1
    file = aside.with_name(f"{aside.name}-from-{number}.log")
    aside.parent.mkdir(mode=0o700, exist_ok=True)
    atomic_write(file, write_ahead_log.remainder(unreadable, good))
    return Cut(
        number=number,
        kind=stopped.kind if stopped else "of an unknown kind",
        following=max(len(found) - good - 1, 0),
        reason=reason[:MAX_REASON_CHARS],
        file=file,
    )


def _replace_log(shard: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(shard / LOG, ignore_errors=True)
    make(shard / LOG)


def _flush_segments(shard: Path) -> None:
    """Apply the remaining log to the segments."""
    with engine_errors():
        opened = edge.EdgeShard.load(str(shard))
        opened.flush()
        opened.close()
