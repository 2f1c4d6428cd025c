"""Decide which items of a source may be deleted because a run has not met them. Pure: it reads no store."""

from dataclasses import dataclass, field

from flows.tracking.text import many
from storage.records import Record, Rejected

USUAL_SHARE = 0.05
"""Of a source's items: more than that missing at once is a mistake more often than a wish."""

HANDFUL = 5
"""So many may always be deleted: of a small source any one of them is a large share."""

FIRST = 3
"""How many rows or keys a sentence names."""


@dataclass(frozen=True, slots=True)
class DeleteLimit:
    """How many missing items a run may delete."""

    max_share: float = USUAL_SHARE
    """Of the items that the source had before, in [0, 1]."""

    yes: bool = False
    """Whether any number may be deleted."""

    def allows(self, missing: int, known: int) -> bool:
        """Whether so many of the known items may be deleted.

        >>> DeleteLimit().allows(5, known=6), DeleteLimit().allows(6, known=100), DeleteLimit().allows(6, 120)
        (True, False, True)
        """
        return self.yes or missing <= max(HANDFUL, self.max_share * known)


@dataclass(slots=True)
class Reading:
    """How much of a source was read and understood: any item may be in a row that was not."""

    rows: int = 0
    unclear: int = 0
    """Rows of which it is not known for certain which item they are, or whether they hold others."""

    first: list[str] = field(default_factory=list)
    """Place and reason of the first few of them."""

    more: bool = False
    """Whether there are more than these."""

    def add(self, row: Record | Rejected) -> None:
        """Count a row of the source, whether or not it is wanted."""
        if isinstance(row, Record):
            self.rows += 1
            return
        self.rows += row.rows
        if row.is_understood:
            return
        self.unclear += row.rows
        if len(self.first) < FIRST:
            self.first.append(f"{row.place} ({row.reason})")
        else:
            self.more = True

    @property
    def doubt(self) -> str | None:
        """Say what could not be understood; None where all was."""
        if not self.unclear:
            return None
        rows = f"{many(self.unclear, 'row')} could not be understood: {', '.join(self.first)}"
        return f"{rows}, …" if self.more else rows


@dataclass(frozen=True, slots=True)
class Missing:
    """The items of a source that a run has not met."""

    source: str
    items: int
    known: int
    """How many items the source had before."""

    first: tuple[str, ...] = ()
    """The keys of the first few."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run does with missing items: it deletes all of them, or none."""

    deletes: int = 0
    leaves: int = 0
    why: str | None = None
    """Why they are left."""

    refused: bool = False
    """Whether the run fails for it: the source was understood, and too many are missing."""


def judge(missing: Missing, reading: Reading, limit: DeleteLimit) -> Verdict:
    """Decide whether missing items may be deleted; no limit overrides a doubt about the source."""
    if reading.doubt is not None:
        return left(missing, f"{reading.doubt}; correct them, and run it again")
    if not limit.allows(missing.items, missing.known):
        return Verdict(leaves=missing.items, why=_too_many(missing, limit), refused=True)
    return Verdict(deletes=missing.items)


def left(missing: Missing, why: str) -> Verdict:
    """Return that nothing is deleted, and why, without failing the run."""
    return Verdict(
        leaves=missing.items, why=f"nothing was deleted, {many(missing.items, 'item')} not met: {why}"
    )


def _too_many(missing: Missing, limit: DeleteLimit) -> str:
    dots = ", …" if missing.items > len(missing.first) else ""
    return (
        f"{missing.items:,} of {max(missing.known, missing.items):,} items of source {missing.source!r} are "
        f"missing from it, more than {limit.max_share:.0%}: {', '.join(missing.first)}{dots}; is the source "
        "complete? None of them was deleted, and all else is kept; --yes deletes them, --max-delete sets the "
        "limit"
    )
