"""Decide which missing items a run may delete, without reading a store."""

from dataclasses import dataclass, field

from flows.tracking.text import count_of
from storage.records import Record, Rejected

DEFAULT_MAX_SHARE = 0.05
"""Share of a source's items: a larger part that is missing at once is a mistake more often than not."""

ALWAYS_ALLOWED = 5
"""Items that any run may delete: in a small source each one of them is a large share."""

EXAMPLES = 3
"""Rows or keys that a message names."""


@dataclass(frozen=True, slots=True)
class DeleteLimit:
    """Limit how many missing items a run may delete."""

    max_share: float = DEFAULT_MAX_SHARE
    """Of the items that the source had before, in [0, 1]."""

    yes: bool = False
    """Whether any number may be deleted."""

    def allows(self, missing: int, known: int) -> bool:
        """Return whether so many of the known items may be deleted.

        >>> DeleteLimit().allows(5, known=6), DeleteLimit().allows(6, known=100), DeleteLimit().allows(6, 120)
        (True, False, True)
        """
        return self.yes or missing <= max(ALWAYS_ALLOWED, self.max_share * known)


@dataclass(slots=True)
class SourceCoverage:
    """Count the rows of a source, and those not understood.

    Any item may be in a row that was not understood.
    """

    rows: int = 0
    unclear: int = 0
    """Rows of which it is not known for certain which item they are, or whether they hold others."""

    first: list[str] = field(default_factory=list)
    """Place and reason of the first few of them."""

    more: bool = False
    """Whether there are more than these."""

    def add(self, row: Record | Rejected) -> None:
        """Count one row of the source."""
        if isinstance(row, Record):
            self.rows += 1
            return
        self.rows += row.rows
        if row.is_understood:
            return
        self.unclear += row.rows
        if len(self.first) < EXAMPLES:
            self.first.append(f"{row.place} ({row.reason})")
        else:
            self.more = True

    @property
    def doubt(self) -> str | None:
        """Sentence about the rows that were not understood; None without any."""
        if not self.unclear:
            return None
        rows = f"{count_of(self.unclear, 'row')} could not be understood: {', '.join(self.first)}"
        return f"{rows}, …" if self.more else rows


@dataclass(frozen=True, slots=True)
class MissingItems:
    """Count the items of a source that a run has not met."""

    source: str
    items: int
    known: int
    """Items that the source had before."""

    first: tuple[str, ...] = ()
    """Keys of the first few."""


@dataclass(frozen=True, slots=True)
class DeleteDecision:
    """Decide about missing items: a run deletes all of them, or none."""

    deletes: int = 0
    leaves: int = 0
    why: str | None = None
    """Reason why the items are not deleted."""

    exceeds_limit: bool = False
    """Whether the run fails: the source was understood, and too many items are missing."""


def decide(missing: MissingItems, coverage: SourceCoverage, limit: DeleteLimit) -> DeleteDecision:
    """Decide whether missing items may be deleted.

    No limit overrides a doubt about the source.
    """
    if coverage.doubt is not None:
        return keep_missing(missing, f"{coverage.doubt}; correct them, and run it again")
    if not limit.allows(missing.items, missing.known):
        return DeleteDecision(leaves=missing.items, why=_too_many(missing, limit), exceeds_limit=True)
    return DeleteDecision(deletes=missing.items)


def keep_missing(missing: MissingItems, why: str) -> DeleteDecision:
    """Decide to delete nothing, without failing the run."""
    return DeleteDecision(
        leaves=missing.items, why=f"nothing was deleted, {count_of(missing.items, 'item')} not met: {why}"
    )


def _too_many(missing: MissingItems, limit: DeleteLimit) -> str:
    dots = ", …" if missing.items > len(missing.first) else ""
    return (
        f"{missing.items:,} of {max(missing.known, missing.items):,} items of source {missing.source!r} are "
        f"missing from it, more than {limit.max_share:.0%}: {', '.join(missing.first)}{dots}; is the source "
        "complete? None of them was deleted, and all else is kept; --yes deletes them, --max-delete sets the "
        "limit"
    )
