"""Measure the throughput of a run and name its bottleneck."""

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BUSY = 0.5
"""A stage that is busy for a smaller share of the time is no bottleneck."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Report the rates of one run and the load of its stages."""

    records_per_s: float
    pictures_per_s: float
    busy: dict[str, float]
    """Share of the time by stage, in [0, 1], busiest first; of decoding, the share of its processes."""

    bottleneck: str
    advice: str
    peak_mib: float
    """Peak memory of the process, without the decoding workers."""

    peak_device_mib: float | None
    """Peak memory of the model's tensors on a GPU; None on a CPU."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def throughput_of(
    stages: Mapping[str, float],
    *,
    seconds: float,
    records: int,
    pictures: int,
    workers: int,
    peak_device_mib: float | None,
) -> Throughput:
    """Return the throughput of a run.

    Args:
        stages: busy seconds; of `decode`, CPU seconds of all workers.
        seconds: from the first row to the last mark.
        records: rows that were read.
        pictures: images among the embedded records.
        workers: decoding processes; 0 for one that is shared with searches.
        peak_device_mib: None on a CPU.
    """
    elapsed = max(seconds, 1e-9)
    shares = {
        name: busy / elapsed / (workers or 1 if name == "decode" else 1) for name, busy in stages.items()
    }
    ordered = sorted(shares.items(), key=lambda share: (-share[1], share[0]))
    busy = {name: round(min(1.0, share), 3) for name, share in ordered}
    bottleneck = next(iter(busy), "none")
    return Throughput(
        records_per_s=round(records / elapsed, 1),
        pictures_per_s=round(pictures / elapsed, 1),
        busy=busy,
        bottleneck=bottleneck,
        advice=_advice(bottleneck, busy.get(bottleneck, 0.0), workers, on_gpu=peak_device_mib is not None),
        peak_mib=round(peak_memory_mib(), 1),
        peak_device_mib=peak_device_mib,
    )


def peak_memory_mib() -> float:
    """Return the peak memory of this process, in MiB."""
    status = Path("/proc/self/status")  # getrusage may report the parent process
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _advice(bottleneck: str, busy: float, workers: int, *, on_gpu: bool) -> str:
    if busy < BUSY:
        return "no stage was at work half of the time: the run was too short to fill them all"
    match bottleneck:
        case "embed" if on_gpu:
            return "the model was the limit, as it should be: only a faster GPU or a smaller model helps"
        case "embed":
            return "the model was the limit, as it should be: a GPU or a smaller model helps"
        case "decode":
            return (
                f"decoding was the limit: raise SIGHTLINE_DECODE_WORKERS above {workers}, with cores to match"
            )
        case "read":
            return "reading the source was the limit: a faster disk or network helps"
        case "upsert":
            return "Qdrant was the limit: a server of its own, or a faster one, helps"
    return "Postgres was the limit: a larger SIGHTLINE_BATCH_SIZE or a faster disk for it helps"
