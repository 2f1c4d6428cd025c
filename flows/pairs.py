"""The pairs that a model is trained on: from the records themselves, and from judgments; ids in a file."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from uuid import UUID

import pyarrow as pa
from datasets import Dataset

from embedding.batches import Row
from embedding.images import BadImage
from embedding.pairs import Part, Split
from embedding.preparation import Features, Prepared
from embedding.workers import Workers
from flows.deps import Stores
from flows.duplicates import picture_groups
from flows.rows import kept_picture
from flows.settings import Limits
from storage import catalog
from storage.records import Item

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("picture", pa.string()),
        ("text_group", pa.int64()),
        ("picture_group", pa.int64()),
        ("negatives", pa.list_(pa.string())),
        ("negative_groups", pa.list_(pa.int64())),
    ]
)
ROWS_A_BATCH = 1000
OF_ITEM, OF_QUERY = "item", "query"


class TooFewPairs(ValueError):
    """There is not enough to learn from, or nothing to tell when to stop."""


class BadJudgments(ValueError):
    """A line of a file of judgments cannot be used."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """What somebody, or a click, says of a query and an item."""

    query: str
    key: str
    source: str | None
    relevance: float
    """From 0, not relevant, upwards."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Which pictures may be learned from: by SHA-256 their group, by group its part."""

    groups: Mapping[str, str]
    split: Split
    named: frozenset[str]
    """Groups with an item that the split names by its key."""

    def part_of(self, sha256: str) -> Part:
        group = self.groups.get(sha256, sha256)
        return self.split.part_of(group, named=group in self.named)

    def number_of(self, sha256: str) -> int:
        """Return the number of a picture's group."""
        return _number(self.groups.get(sha256, sha256))


def divide(stores: Stores, limits: Limits, split: Split) -> Sides:
    """Look at all pictures, those that are new for the first time, and divide them."""
    groups = picture_groups(stores, limits)
    with stores.sessions() as session:
        named = catalog.pictures_of_keys(session, split.keys or ())
    return Sides(groups, split, frozenset(groups.get(sha256, sha256) for sha256 in named))


def pairs_of_records(stores: Stores, sides: Sides) -> Iterator[tuple[Part, Row]]:
    """Yield a pair for each embedded text of each item with a picture, in id order."""
    with stores.sessions() as session:
        for item in catalog.captioned_pictures(session):
            if item.picture is not None:
                part = sides.part_of(item.picture.sha256)
                for number, text in enumerate(item.embedded_texts):
                    yield part, row_of(sides, text_name(item.id, number), text, item.picture.sha256)


def pairs_of_judgments(
    stores: Stores, sides: Sides, judgments: Iterable[Judgment]
) -> Iterator[tuple[Part, Row]]:
    """Yield a pair for each relevant item with a picture; what is judged irrelevant is its negative.

    The queries of held-out pictures are held out with them.
    """
    by_query: dict[str, list[tuple[str, float]]] = {}
    with stores.sessions() as session:
        for judgment in judgments:
            for item in catalog.items_with_key(session, judgment.key, judgment.source):
                if item.picture is not None:
                    judged = by_query.setdefault(judgment.query, [])
                    judged.append((item.picture.sha256, judgment.relevance))
    for query, judged in by_query.items():
        irrelevant = [sha for sha, relevance in judged if relevance == 0 and sides.part_of(sha) == "train"]
        for sha256 in sorted({sha for sha, relevance in judged if relevance > 0}):
            row = row_of(sides, f"{OF_QUERY}:{query}", query, sha256)
            row["negatives"] = irrelevant
            row["negative_groups"] = [sides.number_of(sha) for sha in irrelevant]
            yield sides.part_of(sha256), row


def read_judgments(path: Path) -> Iterator[Judgment]:
    """Yield the judgments of a file of JSON lines: query, key, relevance, and a source where keys need one.

    Raises:
        BadJudgments: a line is something else.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _judgment(line, f"{path.name}, line {number}")


def _judgment(line: str, place: str) -> Judgment:
    try:
        document = json.loads(line)
        query, key = document["query"], document["key"]
        relevance = float(document.get("relevance", 1))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = '{"query": "a red apple", "key": "4711", "relevance": 1}'
        raise BadJudgments(f"{place}: not a judgment ({error!r}); expected such as {expected}") from error
    if not isinstance(query, str) or not isinstance(key, str) or not relevance >= 0:
        raise BadJudgments(f"{place}: query and key are texts, relevance a number from 0 upwards")
    return Judgment(query, key, document.get("source"), relevance)


def row_of(sides: Sides, name: str, text: str, sha256: str) -> Row:
    """Return the pair of a text, known by `name`, and a picture; without mined negatives."""
    return Row(
        text=name,
        picture=sha256,
        text_group=text_number(text),
        picture_group=sides.number_of(sha256),
        negatives=[],
        negative_groups=[],
    )


def text_name(id: UUID, number: int) -> str:
    """Return what the text is known by: ids, so that what is deleted leaves nothing behind."""
    return f"{OF_ITEM}:{id}:{number}"


def text_number(text: str) -> int:
    """Return a number that texts with the same words have in common."""
    return _number(" ".join(text.casefold().split()))


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def write_pairs(folder: Path, pairs: Iterable[tuple[Part, Row]]) -> dict[Part, int]:
    """Write the pairs to a file for each part, and return how many each has."""
    parts: tuple[Part, ...] = get_args(Part)
    counts: dict[Part, int] = dict.fromkeys(parts, 0)
    waiting: dict[Part, list[Row]] = {part: [] for part in parts}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = {
            part: stack.enter_context(pa.ipc.new_stream(str(_file(folder, part)), SCHEMA)) for part in parts
        }

        def write(part: Part) -> None:
            files[part].write_batch(pa.RecordBatch.from_pylist(waiting[part], SCHEMA))
            counts[part] += len(waiting[part])
            waiting[part].clear()

        for part, row in pairs:
            waiting[part].append(row)
            if len(waiting[part]) == ROWS_A_BATCH:
                write(part)
        for part in parts:
            write(part)
    return counts


def read_pairs(folder: Path, part: Part) -> Dataset:
    """Return the pairs that `write_pairs` wrote, mapped from the file."""
    return Dataset.from_file(str(_file(folder, part)))


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.arrow"


class StoredMaterial:
    """Texts and pictures as the stores have them, pictures decoded by workers, some at a time."""

    def __init__(self, stores: Stores, workers: Workers, limits: Limits) -> None:
        self._stores, self._workers, self._limits = stores, workers, limits

    def texts(self, names: Sequence[str]) -> list[str | None]:
        """Return each text; None for one whose item is deleted or has other texts now."""
        ids = {UUID(name.split(":")[1]) for name in names if name.startswith(f"{OF_ITEM}:")}
        with self._stores.sessions() as session:
            items = catalog.items_with_digests(session, sorted(ids))
        return [_text_of(name, {id: item for id, (item, _) in items.items()}) for name in names]

    def pictures(self, shas: Sequence[str]) -> list[Features | None]:
        """Return each picture as the model takes it; None for one that cannot be had."""
        with self._stores.sessions() as session:
            uris = catalog.uris_of(session, set(shas))
        shown: dict[str, Future[Prepared]] = {}
        for sha256 in dict.fromkeys(shas):
            data = kept_picture(self._stores, sha256, uris[sha256], self._limits) if sha256 in uris else None
            if data is not None:
                shown[sha256] = self._workers.submit(data, name=uris[sha256])
        return [_features(shown.get(sha256)) for sha256 in shas]


def _text_of(name: str, items: Mapping[UUID, Item]) -> str | None:
    kind, _, rest = name.partition(":")
    if kind == OF_QUERY:
        return rest
    id, _, number = rest.partition(":")
    item = items.get(UUID(id))
    texts = () if item is None else item.embedded_texts
    return texts[int(number)] if int(number) < len(texts) else None


def _features(decoding: "Future[Prepared] | None") -> Features | None:
    if decoding is None:
        return None
    try:
        return decoding.result().features
    except BadImage:
        return None
