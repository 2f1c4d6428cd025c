"""Counts of one run, and the limits that they must stay within."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

from embedding.pipeline import Clock
from flows.ingestion.left_out import LeftOut, lines_of_ignored
from flows.ingestion.missing_items import DeleteDecision, SourceCoverage
from flows.ingestion.report import COUNTS, BatchReport, IngestReport, as_report
from flows.ingestion.request import EmptySource, Request, RowSelection
from flows.ingestion.source_batches import IngestRun, Row
from flows.ingestion.throughput import throughput_of
from flows.tracking.run_log import Totals
from flows.tracking.text import count_of
from storage.errors import SightlineError
from storage.records import Ignored, Record


class LimitExceeded(SightlineError):
    """Report a run that fails at its end; valid records are kept.

    Attributes:
        report: of the run.
    """

    def __init__(self, message: str, report: IngestReport) -> None:
        super().__init__(message)
        self.report = report


class TooManyRejects(LimitExceeded):
    """Report a share of rejects above the limit."""


class TooManyMissing(LimitExceeded):
    """Report more missing items than may be deleted at once; none was."""


@dataclass(slots=True)
class RunState:
    """Accumulate the counts and durations of one run."""

    run: IngestRun
    done: BatchReport = field(default_factory=BatchReport)
    extra: Counter[str] = field(default_factory=Counter)
    """Counts outside of batches: ignored files, deleted items."""

    keeps_excluded: bool = False
    """Whether items of files that are excluded now are not deleted as missing."""

    left_out: LeftOut = field(default_factory=LeftOut)
    coverage: SourceCoverage = field(default_factory=SourceCoverage)
    decision: DeleteDecision = field(default_factory=DeleteDecision)
    """Decision about missing items."""

    clock: Clock = field(default_factory=Clock)
    started: float = field(default_factory=perf_counter)

    peak_device_mib: float | None = None
    workers: int = 0

    def count_rows(
        self, rows: Iterator[Row | Ignored], selection: RowSelection | None = None
    ) -> Iterator[Row | Ignored]:
        """Yield the selected records and rejects, and count all rows.

        An excluded file is yielded where its item must not be deleted as missing.
        """
        for row in rows:
            if isinstance(row, Ignored):
                self.extra["ignored"] += self.left_out.add(row)
                if row.key is not None and self.keeps_excluded:
                    yield row
                continue
            if isinstance(row, Record):
                self.left_out.add_fields(row)
            self.coverage.add(row)
            if selection is None or selection.has(row):
                yield row

    def report(self, outcome: str) -> IngestReport:
        """Return the report of the run so far."""
        seconds = perf_counter() - self.started
        done = self.done + BatchReport(self.extra)
        speed = throughput_of(
            self.clock.seconds,
            seconds=seconds,
            records=done.counts["read"],
            pictures=done.counts["pictures"],
            workers=self.workers,
            peak_device_mib=self.peak_device_mib,
        )
        return as_report(
            self.run.id,
            self.run.source,
            done,
            outcome=outcome,
            seconds=seconds,
            stages=self.clock.seconds,
            speed=speed,
            not_deleted_because=self.decision.why or self._kept_excluded(done),
            left_out=self.left_out.as_json(),
        )

    def _kept_excluded(self, done: BatchReport) -> str | None:
        count = done.counts["not_deleted"]
        if not count:
            return None
        return f"{count_of(count, 'item')} of files that are excluded now stay; --yes deletes them"

    def totals(self) -> Totals:
        """Return the counts and durations for the table `runs`."""
        report = self.report("running")
        counts = report.as_json()
        shown = {name: counts[name] for name in (*COUNTS, "reasons", "speed", "left_out")}
        if self.decision.why is not None:
            shown["not_deleted_because"] = self.decision.why
        return Totals(shown, dict(report.stages))


def check_rows_read(report: IngestReport, request: Request) -> None:
    """Check that the source has rows.

    Raises:
        EmptySource: nothing was read.
    """
    if not report.read:
        ignored = "".join(f"; {line}" for line in lines_of_ignored(report.left_out))
        raise EmptySource(f"{request.location}: no record in it; is it the right folder or file?{ignored}")


def check_rejects(report: IngestReport, max_share: float) -> None:
    """Check the share of rejects among the rows read.

    Raises:
        TooManyRejects: it is above `max_share`.
    """
    if report.rejected > max_share * report.read:
        reason, count = max(report.reasons.items(), key=lambda entry: (entry[1], entry[0]))
        raise TooManyRejects(
            f"{report.rejected:,} of {report.read:,} records were rejected, {count:,} of them as {reason}; "
            f"the other {report.read - report.rejected:,} are kept; see: sightline rejects",
            report,
        )


def check_missing(report: IngestReport, decision: DeleteDecision) -> None:
    """Check the number of missing items.

    Raises:
        TooManyMissing: more are missing than may be deleted.
    """
    if decision.exceeds_limit:
        raise TooManyMissing(decision.why or "", report)
