"""Read the texts and metadata in files beside an image."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os.path import splitext
from pathlib import Path
from typing import Any

from storage.sources.bounded_lines import MAX_LINE_BYTES
from storage.sources.folder_walk import Entry
from storage.sources.open_files import OutsideFolder, open_file
from storage.sources.unicode_marks import composed, has_many_marks
from storage.sources.validation import BadRow, inside

TEXT_SUFFIXES = (".txt", ".caption")
SUFFIXES = (*TEXT_SUFFIXES, ".json")
TAKEOUT = ".supplemental-metadata"
"""Google Takeout inserts it before `.json`, and cuts it where the name grows too long."""

NEWLINE = re.compile(r"\r\n|\r|\n")
TRANSLATION = re.compile(r"([A-Za-z]{2,3}(?:[_@-][A-Za-z0-9@_-]+)?)\.utf8=(.*)")

Found = Iterator[tuple[object, object]]


@dataclass(frozen=True, slots=True)
class Sidecars:
    """Hold the files beside the images of one folder."""

    by_name: dict[tuple[str, str], Entry] = field(default_factory=dict)
    """By the name of an image, with or without its suffix, and the file's suffix."""

    used: frozenset[str] = frozenset()
    """Names of these files."""

    def of(self, image: str, suffix: str) -> Iterator[Entry]:
        """Yield the files of one suffix that belong to an image."""
        for name in dict.fromkeys((splitext(one_form(image))[0], one_form(image))):
            if (entry := self.by_name.get((name, suffix))) is not None:
                yield entry


def sidecars_of(images: Iterable[Entry], others: Iterable[Entry]) -> Sidecars:
    """Match `others` with the images of their folder, as `a.txt` and `a.png.txt`."""
    names = {name for entry in images for name in (one_form(entry.name), splitext(one_form(entry.name))[0])}
    found: dict[tuple[str, str], Entry] = {}
    for entry in others:
        name, suffix = splitext(one_form(entry.name))
        if suffix.lower() not in SUFFIXES:
            continue
        if name not in names and suffix.lower() == ".json":
            name = _without_takeout(name)
        if name in names:
            found.setdefault((name, suffix.lower()), entry)
    return Sidecars(found, frozenset(entry.name for entry in found.values()))


def _without_takeout(name: str) -> str:
    image, dot, rest = name.rpartition(".")
    return image if dot and TAKEOUT.startswith(f".{rest}") else name


def one_form(name: str) -> str:
    """Return a name in composed form.

    Systems decompose names when they copy them.
    """
    return name if has_many_marks(name) else composed(name)


def read_sidecar(entry: Entry, bounds: Path) -> str:
    """Return the content of one file.

    Raises:
        BadRow: it cannot be read, is too large, or not UTF-8.
    """
    if entry.is_symlink():
        inside(entry.path, bounds)
    try:
        with open_file(entry.path, bounds) as file:
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


def lines_of(content: str) -> Found:
    """Yield the text and language of each line.

    `de.utf8=Ein Apfel.` is the notation of Tux Paint for a translation.
    """
    for line in NEWLINE.split(content):
        translation = TRANSLATION.fullmatch(line.strip())
        yield (translation[2], translation[1]) if translation else (line, None)


def object_of(content: str) -> dict[str, Any]:
    """Return the JSON object in a file of metadata.

    Raises:
        BadRow: it is no object.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRow("bad_metadata", f"its .json is not JSON ({error}); write one object") from error
    if not isinstance(found, dict):
        raise BadRow("bad_metadata", f"its .json is a {type(found).__name__}; write one object")
    return found


def texts_in(metadata: dict[str, Any], image: str) -> Found:
    """Yield the texts among metadata that Takeout or img2dataset wrote."""
    if "photoTakenTime" in metadata or "googlePhotosOrigin" in metadata:
        title = metadata.get("title")
        if isinstance(title, str) and one_form(title) not in (one_form(image), splitext(one_form(image))[0]):
            yield title, None
        yield metadata.get("description"), None
    elif isinstance(metadata.get("caption"), str):
        yield metadata["caption"], None
