"""Exclude thumbnails, bins and files that match a pattern."""

from collections.abc import Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

from storage.sources.manifest_rows import BadSource
from storage.sources.open_files import open_file

IGNORE_FILE = ".sightlineignore"
MAX_BYTES = 64 * 1024
MAX_STARS = 12
"""Wildcards of one pattern: each multiplies the time of a comparison."""

GENERATED = (
    *("@eaDir/", "#recycle/", "@Recycle/", "@Recently-Snapshot/", "#snapshot/"),  # Synology, QNAP
    *("$RECYCLE.BIN/", "$Recycle.Bin/", "RECYCLER/", "System Volume Information/"),  # Windows
    *("__MACOSX/", "iPod Photo Cache/", "*.photoslibrary/resources/", "*.photoslibrary/private/"),  # Apple
    *("*.aplibrary/Thumbnails/", "*.aplibrary/Previews/", "*.migratedphotolibrary/Thumbnails/"),
    *("*.lrdata/", "*.lrcat-data/", "*.cocatalogdb/", "CaptureOne/Cache/"),  # Lightroom, Capture One
    *("lost+found/", "Trash-[0-9]*/"),  # Unix
)
"""Folders that programs fill with thumbnails or deleted files."""


def exclusions(root: Path, patterns: Sequence[str]) -> GitIgnoreSpec:
    """Return the patterns of a folder: built-in, ignore file, given.

    A later one overrides an earlier one, and `!` takes a name in again.

    Raises:
        BadSource: a pattern is invalid, or the ignore file cannot be read.
    """
    own = _ignore_file(root)
    lines = [f"**/{_escaped(line)}" for line in GENERATED] + own + list(patterns)
    for line in (*own, *patterns):
        if line.count("*") > MAX_STARS:
            raise BadSource(f"the pattern {line[:100]!r} has over {MAX_STARS} wildcards; write a shorter one")
    try:
        return GitIgnoreSpec.from_lines(lines)
    except (GitIgnorePatternError, ValueError) as error:
        raise BadSource(f"a pattern to exclude is invalid ({error}); correct it") from error


def _escaped(line: str) -> str:
    return line.replace("#", "\\#")


def _ignore_file(root: Path) -> list[str]:
    path = root / IGNORE_FILE
    try:
        with open_file(str(path), root) as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadSource(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(content) > MAX_BYTES:
        raise BadSource(f"{path}: over {MAX_BYTES:,} bytes; shorten it")
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadSource(f"{path}: not UTF-8 (byte {error.start + 1}); re-save it") from error
