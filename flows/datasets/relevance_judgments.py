"""Read relevance judgments from a file of JSON lines."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import InvalidInput


class BadJudgments(InvalidInput):
    """Report a line of a judgment file that cannot be used."""

    refusal = True


@dataclass(frozen=True, slots=True)
class Judgment:
    """Judge the relevance of an item to a text or an image."""

    text: str | None
    image: Path | None
    key: str
    source: str | None
    relevance: float
    """From 0, not relevant, upwards."""


def read_judgments(path: Path) -> Iterator[Judgment]:
    """Yield the judgments of a file.

    Each line is a JSON object with a query or an image, a key, a relevance and an optional source.

    An image is a path, relative to the file.

    Raises:
        BadJudgments: a line is something else.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _judgment(line, path.parent, f"{path.name}, line {number}")


def _judgment(line: str, folder: Path, place: str) -> Judgment:
    try:
        document = json.loads(line)
        key, text, name = document["key"], document.get("query"), document.get("image")
        relevance = float(document.get("relevance", 1))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = '{"query": "a red apple", "key": "4711", "relevance": 1}'
        raise BadJudgments(f"{place}: not a judgment ({error!r}); expected such as {expected}") from error
    if not isinstance(key, str) or not 0 <= relevance < float("inf"):
        raise BadJudgments(f"{place}: key is a text, relevance a number from 0 upwards")
    if not isinstance(text if name is None else name, str) or (text is not None and name is not None):
        raise BadJudgments(f"{place}: give a query, which is a text, or an image, which is a path")
    image = None if name is None else folder / name
    if image is not None and not image.is_file():
        raise BadJudgments(f"{place}: there is no file {image}; correct the path")
    return Judgment(text, image, key, document.get("source"), relevance)


def query_images(judgments: Sequence[Judgment]) -> dict[str, str]:
    """Return the paths of the query images, by SHA-256."""
    return {file_sha256(one.image): str(one.image) for one in judgments if one.image is not None}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
