"""List the folders of a source, and their ignored files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pathspec import GitIgnoreSpec

from storage.records import Ignored
from storage.sources.exclusions import IGNORE_FILE, exclusions
from storage.sources.manifest_rows import BadSource
from storage.sources.read_options import ReadOptions
from storage.sources.unicode_marks import composed, has_many_marks
from storage.sources.validation import printable

Entry = os.DirEntry[str]


@dataclass(slots=True)
class Listing:
    """Hold the sorted entries of one folder."""

    path: str
    files: list[Entry] = field(default_factory=list)
    folders: list[Entry] = field(default_factory=list)
    """Folders to list later."""

    left_out: list[Ignored] = field(default_factory=list)
    is_excluded: bool = False
    is_last: bool = False


class FolderWalk:
    """List a folder and those below it, in order of their names.

    A stack holds the folders, as they can be nested deeper than calls.
    """

    def __init__(self, root: Path, options: ReadOptions) -> None:
        self._root = root
        self._bounds = options.bounds(root)
        self._follows = options.follows_links(root)
        self._excluded: GitIgnoreSpec = exclusions(root, options.exclude)
        self._followed: set[str] = set()

    def __iter__(self) -> Iterator[Listing]:
        """Yield each folder.

        Raises:
            BadSource: one cannot be listed.
        """
        waiting = [(str(self._root), False)]
        while waiting:
            path, is_excluded = waiting.pop()
            listing = self._list_excluded(path) if is_excluded else self._list(path)
            bins = [] if is_excluded else self._bins(listing)
            below = [(entry.path, is_excluded or entry in bins) for entry in listing.folders]
            waiting.extend(reversed(below))
            if not is_excluded:
                listing.folders = [entry for entry in listing.folders if entry not in bins]
            listing.is_last = not waiting
            yield listing

    def _bins(self, listing: Listing) -> list[Entry]:
        return [entry for entry in listing.folders if self._is_excluded(entry, folder=True)]

    def _is_excluded(self, entry: Entry, *, folder: bool) -> bool:
        place = Path(entry.path).relative_to(self._root).as_posix()
        return self._excluded.match_file(f"{place}/" if folder else place)

    def _list(self, path: str) -> Listing:
        listing = Listing(path)
        for entry in _entries(path):
            place = place_of(self._root, entry.path)
            if entry.name.startswith("."):
                if entry.name != IGNORE_FILE:
                    listing.left_out.append(Ignored(printable(place), "hidden"))
            elif entry.is_dir(follow_symlinks=False):
                listing.folders.append(entry)
            elif entry.is_symlink() and entry.is_dir():
                if (reason := self._reason_not_to_follow(entry)) is None:
                    listing.folders.append(entry)
                else:
                    listing.left_out.append(Ignored(printable(place), reason))
            elif self._is_excluded(entry, folder=False):
                listing.left_out.append(Ignored(printable(place), "excluded", key=place))
            else:
                listing.files.append(entry)
        return listing

    def _list_excluded(self, path: str) -> Listing:
        """List an excluded folder; its files are never read."""
        listing = Listing(path, is_excluded=True)
        try:
            entries = _entries(path)
        except BadSource:  # such as lost+found, which is open to root alone
            listing.left_out.append(Ignored(printable(place_of(self._root, path)), "excluded"))
            return listing
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                listing.folders.append(entry)
            else:
                place = place_of(self._root, entry.path)
                listing.left_out.append(Ignored(printable(place), "excluded", key=place))
        return listing

    def _reason_not_to_follow(self, entry: Entry) -> str | None:
        if not self._follows:
            return "link_to_folder"
        real, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
        if not Path(real).is_relative_to(self._bounds):
            return "link_outside"
        if real in self._followed or Path(here).is_relative_to(real):
            return "link_loop"
        self._followed.add(real)
        return None


def place_of(root: Path, path: str) -> str:
    """Return the path relative to the source, in one Unicode form."""
    place = Path(path).relative_to(root).as_posix()
    return place if has_many_marks(place) else composed(place)  # such a name is rejected as a key


def _entries(folder: str) -> list[Entry]:
    """Return the sorted entries of a folder.

    Raises:
        BadSource: it cannot be listed, or not to its end.
    """
    try:
        with os.scandir(folder) as scanned:
            return sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        raise BadSource(
            f"{printable(folder)}: this folder cannot be listed ({error.strerror}); check its permissions "
            "and that its drive is there, then run it again"
        ) from error
