"""Read image folders: images, with texts and metadata in files beside them."""

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from storage.errors import InvalidInput
from storage.records import Ignored, Record, Rejected
from storage.sources.caption_files import SUBFOLDERS, layout_of
from storage.sources.caption_index import CaptionIndex
from storage.sources.folder_walk import Entry, FolderWalk, Listing, place_of
from storage.sources.image_kinds import HEAD_BYTES, TEXTS, is_image_head, is_image_name, reason_of
from storage.sources.open_files import open_file
from storage.sources.read_options import DEFAULTS, ReadOptions
from storage.sources.row_estimate import RowEstimate
from storage.sources.sidecars import (
    TEXT_SUFFIXES,
    Sidecars,
    lines_of,
    object_of,
    read_sidecar,
    sidecars_of,
    texts_in,
)
from storage.sources.validation import (
    BadRow,
    checked_key,
    checked_texts,
    fitting_metadata,
    inside,
    printable,
    rejected,
)

Row = Record | Rejected | Ignored


def read_folder(root: Path, estimate: RowEstimate, options: ReadOptions = DEFAULTS) -> Iterator[Row]:
    """Read the images under `root`, folder by folder.

    Names are in code point order. A file whose suffix is not that of an image is one if it begins like one.

    Args:
        root: resolved.

    Raises:
        BadSource: a pattern to exclude is invalid, raised at once; or, while iterating: a folder cannot be
            listed.
    """
    walk = FolderWalk(root, options)
    return _FolderReader(root, options.bounds(root), estimate).rows(walk)


class _FolderReader:
    """Read the folders of one source."""

    def __init__(self, root: Path, bounds: Path, estimate: RowEstimate) -> None:
        self._root, self._bounds, self._estimate = root, bounds, estimate
        self._captions = CaptionIndex()
        self._caption_files: set[str] = set()
        """Paths of files of captions that were read before their folder."""

        self._images = 0

    def rows(self, walk: FolderWalk) -> Iterator[Row]:
        try:
            for listing in walk:
                yield from self._folder(listing)
            for place in self._captions.unmet():
                yield Ignored(printable(place), "missing_image")
        finally:
            self._captions.close()

    def _folder(self, listing: Listing) -> Iterator[Row]:
        images = {entry.name for entry in listing.files if self._is_image(entry)}
        self._images += len(images)
        self._estimate.set_rows(self._images if listing.is_last else 0)
        others = [entry for entry in listing.files if entry.name not in images]
        beside = sidecars_of((entry for entry in listing.files if entry.name in images), others)
        yield from self._read_captions(listing, beside)
        for entry in listing.files:
            if entry.name in images:
                yield self._image_record(entry, beside)
            elif entry.name not in beside.used and entry.path not in self._caption_files:
                yield Ignored(printable(place_of(self._root, entry.path)), reason_of(entry.name))
        yield from listing.left_out
        if listing.is_excluded:
            return
        yield from (self._folder_reject(entry) for entry in listing.folders if is_image_name(entry.name))

    def _is_image(self, entry: Entry) -> bool:
        if is_image_name(entry.name):
            return True
        if os.path.splitext(entry.name)[1].lower() in TEXTS or not entry.is_file():
            return False
        try:
            with open_file(entry.path, self._bounds) as file:
                return is_image_head(file.read(HEAD_BYTES))
        except OSError:
            return False  # it is named as ignored

    def _read_captions(self, listing: Listing, beside: Sidecars) -> Iterator[Ignored]:
        """Read the files of captions here, and those that COCO keeps below."""
        below = (
            os.path.join(folder.path, name)
            for folder in listing.folders
            if folder.name.lower() in SUBFOLDERS
            for name in sorted(os.listdir(folder.path))
        )
        here = (entry.path for entry in listing.files if entry.name not in beside.used)
        for path in chain(here, below):
            reader = layout_of(os.path.basename(path))
            if reader is None or path in self._caption_files:
                continue
            self._caption_files.add(path)
            try:
                self._captions.add(reader(self._root, Path(path)))
            except (InvalidInput, OSError) as error:
                place = printable(place_of(self._root, path))
                yield Ignored(place, "captions_not_understood", printable(str(error), 300))

    def _image_record(self, entry: Entry, beside: Sidecars) -> Record | Rejected:
        place = place_of(self._root, entry.path)
        key, raw = None, ""
        try:
            key = checked_key(place)
            self._check_link(entry)
            texts, metadata = self._captions.find(place)
            found: list[tuple[object, object]] = list(texts)
            for suffix in TEXT_SUFFIXES:
                for sidecar in beside.of(entry.name, suffix):
                    raw = read_sidecar(sidecar, self._bounds)
                    found += lines_of(raw)
            own: dict[str, Any] = {}
            for sidecar in beside.of(entry.name, ".json"):
                raw = read_sidecar(sidecar, self._bounds)
                own |= object_of(raw)
            if not found:
                found += texts_in(own, entry.name)
            kept, dropped = fitting_metadata(metadata | own)
            return Record(
                key, place, checked_texts(found), entry.path, kept, folder=self._bounds, dropped=dropped
            )
        except BadRow as bad:
            bad.key, bad.in_doubt = key or place, False  # a name is certain, whatever is wrong with it
            return rejected(place, bad, raw)

    def _check_link(self, entry: Entry) -> None:
        if entry.is_symlink():
            try:
                inside(entry.path, self._bounds)
            except BadRow as bad:
                why = f"{bad}, or name a folder above both in SIGHTLINE_LINKS_WITHIN"
                raise BadRow(bad.reason, why) from bad

    def _folder_reject(self, folder: Entry) -> Rejected:
        """Return the reject of a folder with the name of an image."""
        place = place_of(self._root, folder.path)
        bad = BadRow("unreadable", "a folder with the name of an image; rename it", key=place)
        return rejected(place, bad, "")
