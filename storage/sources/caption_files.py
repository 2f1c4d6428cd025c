"""Read files that hold the captions of many images, in known layouts."""

import json
import re
from collections.abc import Callable, Iterator
from os.path import exists, isdir, join, normpath
from pathlib import Path
from typing import Any

from storage.records import Record
from storage.sources.bounded_lines import numbered_lines
from storage.sources.caption_index import Caption
from storage.sources.csv_manifest import read_csv
from storage.sources.folder_walk import place_of
from storage.sources.jsonl_manifest import read_jsonl
from storage.sources.manifest_rows import BadSource
from storage.sources.open_files import open_file
from storage.sources.parquet_manifest import read_parquet
from storage.sources.read_options import DEFAULTS
from storage.sources.row_estimate import RowEstimate
from storage.sources.sidecars import one_form

MAX_COCO_BYTES = 128 * 2**20
MAX_COCO_BRACKETS = 4_000_000
SUBFOLDERS = ("annotations", "captions")
"""Folders of COCO's layout, read before the images beside them."""

NOT_COCO = "no COCO captions: lists `images` and `annotations` with `caption`"
TOKEN = re.compile(r"(.+?)#\d+\t(.*)")
Reader = Callable[[Path, Path], Iterator[Caption]]


def _read_coco(root: Path, file: Path) -> Iterator[Caption]:
    with open_file(str(file), root) as opened:
        content = opened.read(MAX_COCO_BYTES + 1)
    if len(content) > MAX_COCO_BYTES or content.count(b"{") + content.count(b"[") > MAX_COCO_BRACKETS:
        raise BadSource(f"over {MAX_COCO_BYTES:,} bytes or {MAX_COCO_BRACKETS:,} objects; split it")
    try:
        found = json.loads(content)
        names = {image["id"]: str(image["file_name"]) for image in found["images"]}
        captions = [(names.get(one["image_id"]), str(one["caption"])) for one in found["annotations"]]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise BadSource(NOT_COCO) from error
    place, base = place_of(root, str(file)), _coco_base(file)
    for name, caption in captions:
        if name is not None:
            yield _caption(root, place, base, name, [(caption, None)], {}, by_name=True)


def folder_of(file: Path) -> Path:
    """Return the folder of images that a file of captions belongs to."""
    return file.parent.parent if file.parent.name.lower() in SUBFOLDERS else file.parent


def _coco_base(file: Path) -> str:
    """Return the folder of the images that captions describe."""
    folder = folder_of(file)
    split = file.stem.rpartition("_")[2]
    for inner in (split, join("images", split)):
        if split and isdir(folder / inner):
            return str(folder / inner)
    return str(folder)


def _read_tokens(root: Path, file: Path) -> Iterator[Caption]:
    place = place_of(root, str(file))
    with open_file(str(file), root) as opened:
        for line in numbered_lines(opened):
            found = TOKEN.fullmatch(line.content.decode("utf-8", "replace").strip())
            if found is None:
                if line.content.strip():
                    raise BadSource(f"line {line.number} is not `image#number`, a tab and a caption")
                continue
            where = f"{place} line {line.number}"
            yield _caption(root, where, str(file.parent), found[1], [(found[2], None)], {}, by_name=True)


def _from_manifest(read: Callable[..., Iterator[Any]], *, by_name: bool) -> Reader:
    def read_rows(root: Path, file: Path) -> Iterator[Caption]:
        place = place_of(root, str(file))
        with open_file(str(file), root):
            pass  # a link that leads out of the source is not read
        for row in read(file, RowEstimate(), DEFAULTS):
            if not isinstance(row, Record):
                raise BadSource(getattr(row, "message", "") or getattr(row, "detail", ""))
            texts = [(text.text, text.lang) for text in row.texts]
            where = f"{place} {row.place}"
            yield _caption(root, where, str(file.parent), row.key, texts, dict(row.metadata), by_name=by_name)

    return read_rows


LAYOUTS: tuple[tuple[re.Pattern[str], Reader], ...] = (
    (re.compile(r"(?i)metadata\.jsonl"), _from_manifest(read_jsonl, by_name=False)),
    (re.compile(r"(?i)metadata\.csv"), _from_manifest(read_csv, by_name=False)),
    (re.compile(r"(?i)metadata\.parquet"), _from_manifest(read_parquet, by_name=False)),
    (re.compile(r"(?i)captions\.txt|results\.csv"), _from_manifest(read_csv, by_name=True)),
    (re.compile(r"(?i).+\.token(\.txt)?"), _read_tokens),
    (re.compile(r"(?i).*captions.*\.json"), _read_coco),
)
"""By name: image folders of Hugging Face, Flickr8k and Flickr30k, COCO."""


def layout_of(name: str) -> Reader | None:
    """Return the reader of a file of captions, by its name."""
    return next((reader for pattern, reader in LAYOUTS if pattern.fullmatch(name)), None)


def _caption(
    root: Path,
    place: str,
    base: str,
    name: str,
    texts: list[tuple[str, str | None]],
    metadata: dict[str, Any],
    *,
    by_name: bool,
) -> Caption:
    """Return a caption; an image elsewhere is found by name."""
    below = Path(base).relative_to(root).as_posix()
    prefix = "" if below == "." else f"{one_form(below)}/"
    anywhere = prefix if by_name and not exists(join(base, name)) else None
    return Caption(place, normpath(prefix + one_form(name)), tuple(texts), metadata, anywhere)
