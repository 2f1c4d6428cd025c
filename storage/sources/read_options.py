"""Define the options of reading a source."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Hold the options of reading one source."""

    exclude: tuple[str, ...] = ()
    """Patterns of files and folders to leave out, in the syntax of gitignore."""

    columns: tuple[tuple[str, str], ...] = ()
    """Pairs of a content column (`key`, `image`, `text`, `texts`) and its name in the manifest."""

    links_within: Path | None = None
    """Folder that links may lead into, resolved; None: links stay in the source, and none to a folder."""

    def as_json(self) -> dict[str, Any]:
        """Return the options that a later run of the same source repeats."""
        given = {"exclude": list(self.exclude), "columns": dict(self.columns)}
        return {name: value for name, value in given.items() if value}

    @classmethod
    def of_json(cls, data: Mapping[str, Any], links_within: Path | None = None) -> "ReadOptions":
        """Return the options that `as_json` wrote."""
        columns = data.get("columns", {})
        return cls(tuple(data.get("exclude", ())), tuple(columns.items()), links_within)

    def bounds(self, root: Path) -> Path:
        """Return the folder that no link of a source may leave."""
        wide = self.links_within
        return wide if wide is not None and root.is_relative_to(wide) else root

    def follows_links(self, root: Path) -> bool:
        """Return whether links to folders are followed below `root`."""
        return self.links_within is not None and root.is_relative_to(self.links_within)


DEFAULTS = ReadOptions()
