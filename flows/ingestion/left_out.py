"""Count and name the ignored files and fields of an ingest."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os.path import splitext
from typing import Any

from storage.records import Ignored, Record
from storage.sources.ignored_reasons import IGNORED_REASONS, NOTES

MAX_NAMED = 100
MAX_KINDS = 50
"""Suffixes counted by name for one reason; the others are counted together."""

MAX_SUFFIXES = 8
OTHERS = "others"


@dataclass(slots=True)
class LeftOut:
    """Count ignored files by reason and suffix, and name the first."""

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    first: list[dict[str, str]] = field(default_factory=list)

    def add(self, ignored: Ignored) -> int:
        """Count one file or field, and return how many files it is."""
        kind = ignored.place.rpartition(": ")[2] if ignored.reason == "metadata_field" else ignored.place
        self._count(ignored.reason, kind if ignored.reason == "metadata_field" else suffix_of(kind))
        if len(self.first) < MAX_NAMED:
            named = {"place": ignored.place, "reason": ignored.reason, "detail": ignored.detail}
            self.first.append({name: value for name, value in named.items() if value})
        return ignored.reason not in NOTES

    def add_fields(self, record: Record) -> None:
        """Count the metadata fields that a record has lost."""
        for name, why in record.dropped:
            self.add(Ignored(f"{record.place}: {name}", "metadata_field", why))

    def as_json(self) -> dict[str, Any]:
        """Return the counts, and the first files by name."""
        kinds = {reason: dict(found.most_common()) for reason, found in self.kinds.items()}
        return {"kinds": kinds, "first": list(self.first)}

    def _count(self, reason: str, kind: str) -> None:
        found = self.kinds.setdefault(reason, Counter())
        found[kind if kind in found or len(found) < MAX_KINDS else OTHERS] += 1


def lines_of_ignored(left_out: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each reason, with counts by suffix.

    >>> list(lines_of_ignored({"kinds": {"archive": {".tar": 2}}}))
    ['archive: 2 .tar (archives; unpack them and ingest the folder)']
    """
    for reason, kinds in left_out.get("kinds", {}).items():
        shown = ", ".join(f"{count:,} {kind}" for kind, count in list(kinds.items())[:MAX_SUFFIXES])
        more = sum(list(kinds.values())[MAX_SUFFIXES:])
        rest = f", {more:,} others" if more else ""
        yield f"{reason}: {shown}{rest} ({IGNORED_REASONS.get(reason, reason)})"


def suffix_of(place: str) -> str:
    """Return the suffix of a file, or its bare name.

    >>> suffix_of("a/b.OGG"), suffix_of("a/.DS_Store"), suffix_of("README")
    ('.ogg', '.DS_Store', 'without a suffix')
    """
    name = place.rpartition("/")[2]
    if name.startswith("."):
        return name[:40]
    return splitext(name)[1].lower()[:40] or "without a suffix"
