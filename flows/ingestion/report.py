"""Report the results of a batch and of a run as counts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from flows.ingestion.throughput import Throughput

COUNTS = (
    "read",
    "unchanged",
    "embedded",
    "updated",
    "rejected",
    "still_deleted",
    "deleted",
    "not_deleted",
    "ignored",
    "truncated",
    "reused",
    "pictures",
)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Count the results of one batch.

    It holds no arrays, so that Prefect can carry it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    """By `COUNTS`; `read` is the sum of `unchanged`, `embedded`, `updated`, `rejected`, `still_deleted`."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Rejects by reason code."""

    def __add__(self, other: "BatchReport") -> "BatchReport":
        return BatchReport(self.counts + other.counts, self.reasons + other.reasons)


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Report the results of one run.

    `read` is the sum of the five counts that follow it.
    """

    run: UUID
    source: str
    outcome: str
    read: int
    unchanged: int
    embedded: int
    updated: int
    rejected: int
    still_deleted: int
    """Records of the source whose items a user deleted."""

    deleted: int
    not_deleted: int
    """Items that the run has not met, and that stay."""

    ignored: int
    truncated: int
    reused: int
    """Images whose vector existed, or came from the same bytes of another record."""

    pictures: int
    """Of the embedded records, those with an image."""

    reasons: dict[str, int]
    seconds: float
    stages: dict[str, float]
    """Busy seconds by stage; of decoding, CPU seconds of all workers."""

    speed: Throughput
    not_deleted_because: str | None = None
    """Sentence that says why missing items stay."""

    left_out: dict[str, Any] = field(default_factory=dict)
    """Ignored files and lost fields: counts by reason and suffix, and the first by name."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"run": str(self.run)}


def as_report(
    run_id: UUID,
    source: str,
    done: BatchReport,
    *,
    outcome: str,
    seconds: float,
    stages: Mapping[str, float],
    speed: Throughput,
    not_deleted_because: str | None = None,
    left_out: dict[str, Any] | None = None,
) -> IngestReport:
    """Return the report of a run from its counts."""
    return IngestReport(
        run=run_id,
        source=source,
        outcome=outcome,
        reasons=dict(done.reasons.most_common()),
        seconds=round(seconds, 3),
        stages={name: round(busy, 3) for name, busy in stages.items()},
        speed=speed,
        not_deleted_because=not_deleted_because,
        left_out=left_out or {},
        **{name: done.counts[name] for name in COUNTS},
    )


def as_markdown(report: IngestReport) -> str:
    """Return a report as Markdown, for the artifact in Prefect."""
    counts = [(name, f"{getattr(report, name):,}") for name in COUNTS]
    reasons = [(f"rejected: {reason}", f"{many:,}") for reason, many in report.reasons.items()]
    for reason, kinds in report.left_out.get("kinds", {}).items():
        reasons += [(f"{reason}: {kind}", f"{many:,}") for kind, many in kinds.items()]
    stages = [(f"seconds: {name}", f"{seconds:.1f}") for name, seconds in report.stages.items()]
    busy = [(f"busy: {name}", f"{share:.0%}") for name, share in report.speed.busy.items()]
    rows = "\n".join(f"| {name} | {value} |" for name, value in [*counts, *reasons, *stages, *busy])
    title = f"# {report.source}: {report.outcome} in {report.seconds:.1f} s"
    kept = () if report.not_deleted_because is None else (f"**{report.not_deleted_because}**\n",)
    summary = "\n".join([*kept, *as_sentences(report.speed)])
    return f"{title}\n\n{summary}\n\n| count | value |\n|---|---:|\n{rows}\n"


def as_sentences(speed: Throughput) -> tuple[str, str]:
    """Return the rates and memory of a run, and the advice."""
    device = "" if speed.peak_device_mib is None else f", {speed.peak_device_mib:,.0f} MiB on the GPU"
    rates = f"{speed.records_per_s:,.0f} records a second, {speed.pictures_per_s:,.0f} images a second"
    return f"{rates}; {speed.peak_mib:,.0f} MiB at most{device}", speed.advice
