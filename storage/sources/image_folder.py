"""Read image folders: images, with texts and metadata in sidecar files."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from os.path import splitext
from pathlib import Path
from typing import Any

from storage.records import Ignored, Record, Rejected
from storage.sources.bounded_lines import MAX_LINE_BYTES
from storage.sources.manifest_rows import BadSource
from storage.sources.open_files import OutsideFolder, open_file
from storage.sources.row_estimate import RowEstimate
from storage.sources.unicode_marks import composed, has_many_marks
from storage.sources.validation import (
    BadRow,
    checked_key,
    checked_metadata,
    checked_texts,
    inside,
    printable,
    rejected,
)

Entry = os.DirEntry[str]
Beside = dict[tuple[str, str], Entry]
"""Texts and metadata by the stem of their images and by `.txt` or `.json`."""

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif")
)
NEWLINE = re.compile(r"\r\n|\r|\n")
TRANSLATION = re.compile(r"([A-Za-z]{2,3}(?:[_@-][A-Za-z0-9@_-]+)?)\.utf8=(.*)")


def read_folder(root: Path, estimate: RowEstimate) -> Iterator[Record | Rejected | Ignored]:
    """Read the images under `root`, folder by folder, without opening them.

    Names are in code point order.

    Hidden names are left out, and links to folders are not followed.

    Args:
        root: resolved.

    Raises:
        BadSource: while iterating: a folder cannot be listed.
    """
    listed = 0
    for files, folders, is_last in _listings(root):
        listed += sum(is_image_file(entry.name) for entry in files)
        estimate.set_rows(listed if is_last else 0)
        beside = _beside(files)
        used = set(map(id, beside.values()))
        for entry in files:
            if is_image_file(entry.name):
                yield _image_record(root, entry, beside)
            elif id(entry) not in used:
                yield Ignored(printable(_relative(root, entry)))
        yield from (_folder_reject(root, entry) for entry in folders if is_image_file(entry.name))


def is_image_file(name: str) -> bool:
    """Return whether the suffix of a file is that of an image."""
    return splitext(name)[1].lower() in SUFFIXES


def _listings(root: Path) -> Iterator[tuple[list[Entry], list[Entry], bool]]:
    """Yield the files and folders of each folder, and the last-one flag.

    A stack holds the folders, as they can be nested deeper than calls.
    """
    waiting = [str(root)]
    while waiting:
        files, folders = _listing(waiting.pop())
        waiting.extend(entry.path for entry in reversed(folders))
        yield files, folders, not waiting


def _listing(folder: str) -> tuple[list[Entry], list[Entry]]:
    """Return the sorted files and subfolders of one folder.

    Raises:
        BadSource: it cannot be listed, or not to its end.
    """
    try:
        with os.scandir(folder) as scanned:
            shown = [entry for entry in scanned if not entry.name.startswith(".")]
        folders = [entry for entry in shown if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise BadSource(
            f"{printable(folder)}: this folder cannot be listed ({error.strerror}); check its permissions "
            "and that its drive is there, then run it again"
        ) from error
    names = {entry.name for entry in folders}
    files = [entry for entry in shown if entry.name not in names]
    return sorted(files, key=_name), sorted(folders, key=_name)


def _name(entry: Entry) -> str:
    return entry.name


def _beside(entries: Iterable[Entry]) -> Beside:
    stems = {splitext(entry.name)[0] for entry in entries if is_image_file(entry.name)}
    beside: Beside = {}
    for entry in entries:
        stem, suffix = splitext(entry.name)
        if suffix.lower() in (".txt", ".json") and stem in stems:
            beside.setdefault((stem, suffix.lower()), entry)
    return beside


def _image_record(root: Path, entry: Entry, beside: Beside) -> Record | Rejected:
    place, stem = _relative(root, entry), splitext(entry.name)[0]
    key, raw = None, None
    try:
        key = checked_key(place)
        _check_link(entry, root)
        raw = _sidecar(beside.get((stem, ".txt")), root)
        texts = checked_texts(_lines(raw or ""))
        raw = _sidecar(beside.get((stem, ".json")), root)
        return Record(key, place, texts, entry.path, checked_metadata(_object(raw)), folder=root)
    except BadRow as bad:
        bad.key, bad.in_doubt = key or place, False  # a name is certain, whatever is wrong with it
        return rejected(place, bad, raw or "")


def _folder_reject(root: Path, folder: Entry) -> Rejected:
    """Return the reject of a folder with the name of an image."""
    place = _relative(root, folder)
    bad = BadRow("unreadable", "a folder with the name of an image; rename it", key=place)
    return rejected(place, bad, "")


def _relative(root: Path, entry: Entry) -> str:
    place = Path(entry.path).relative_to(root).as_posix()
    return place if has_many_marks(place) else composed(place)  # such a name is rejected as a key


def _check_link(entry: Entry, root: Path) -> None:
    if entry.is_symlink():
        inside(entry.path, root)


def _sidecar(entry: Entry | None, root: Path) -> str | None:
    if entry is None:
        return None
    _check_link(entry, root)
    try:
        with open_file(entry.path, root) as file:
            content = file.read(MAX_LINE_BYTES + 1)
    except OutsideFolder as error:
        raise BadRow("outside_source", f"{entry.name} {error.strerror}; copy it into that folder") from error
    except FileNotFoundError as error:
        raise BadRow("unreadable", f"{entry.name} is not a regular file; replace or remove it") from error
    except OSError as error:
        why = f"{entry.name} cannot be read ({error.strerror}); check its permissions"
        raise BadRow("unreadable", why) from error
    if len(content) > MAX_LINE_BYTES:
        raise BadRow("too_large", f"{entry.name} has over {MAX_LINE_BYTES:,} bytes; shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        why = f"{entry.name} is not UTF-8 ({error.reason}, byte {error.start + 1}); re-save it as UTF-8"
        raise BadRow("not_utf8", why) from error


def _lines(sidecar: str) -> Iterator[tuple[str, str | None]]:
    """Yield the text and language of each line.

    `de.utf8=Ein Apfel.` is the notation of Tux Paint for a translation.
    """
    for line in NEWLINE.split(sidecar):
        translation = TRANSLATION.fullmatch(line.strip())
        yield (translation[2], translation[1]) if translation else (line, None)


def _object(sidecar: str | None) -> dict[str, Any]:
    if sidecar is None:
        return {}
    try:
        found = json.loads(sidecar)
    except (ValueError, RecursionError) as error:
        raise BadRow("bad_metadata", f"its .json is not JSON ({error}); write one object") from error
    if not isinstance(found, dict):
        raise BadRow("bad_metadata", f"its .json is a {type(found).__name__}; write one object")
    return found
