"""The pairs that a model is trained on: from the records themselves, and from judgments; ids in a file."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import get_args
from uuid import UUID

import pyarrow as pa
from datasets import Dataset

from embedding.batches import Row
from embedding.images import BadImage, decode_image
from embedding.likeness import perceptual_hash
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
    """What somebody, or a click, says of a query, which is a text or a picture, and an item."""

    text: str | None
    image: Path | None
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


def divide(stores: Stores, limits: Limits, split: Split, judgments: Sequence[Judgment] = ()) -> Sides:
    """Look at all pictures, those that are new for the first time, and divide them.

    Raises:
        BadJudgments: a picture that is a query cannot be read.
    """
    hashes = _hashes(judgments)
    groups = picture_groups(stores, limits, others=hashes)
    return sides_of(stores, groups | _beside_their_items(stores, groups, set(hashes), judgments), split)


def _beside_their_items(
    stores: Stores, groups: Mapping[str, str], queries: AbstractSet[str], judgments: Sequence[Judgment]
) -> dict[str, str]:
    """Return the group of each judged picture that is like no stored one: that of its first relevant item."""
    stored = {group for sha256, group in groups.items() if sha256 not in queries}
    moved: dict[str, str] = {}
    with stores.sessions() as session:
        for one in judgments:
            own = None if one.image is None else groups[_sha256_of(one.image)]
            if own is None or own in stored or own in moved or one.relevance == 0:
                continue
            for item in catalog.items_with_key(session, one.key, one.source):
                if item.picture is not None:
                    moved.setdefault(own, groups.get(item.picture.sha256, item.picture.sha256))
    return {sha256: moved[groups[sha256]] for sha256 in queries if groups[sha256] in moved}


def sides_of(stores: Stores, groups: Mapping[str, str], split: Split) -> Sides:
    """Divide pictures whose groups are known."""
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
    stores: Stores, sides: Sides, judgments: Sequence[Judgment]
) -> Iterator[tuple[Part, Row]]:
    """Yield pairs of what is judged relevant.

    A text makes a pair with the picture of each relevant item, and those of irrelevant ones are its
    negatives. A picture makes one with each embedded text of a relevant item, unless that item's own
    picture is on another side of the split.
    """
    texts: dict[str, list[tuple[str, float]]] = {}
    with stores.sessions() as session:
        for judgment in judgments:
            for item in catalog.items_with_key(session, judgment.key, judgment.source):
                if judgment.image is not None:
                    yield from _pairs_of_picture(sides, judgment, item)
                elif judgment.text is not None and item.picture is not None:
                    judged = texts.setdefault(judgment.text, [])
                    judged.append((item.picture.sha256, judgment.relevance))
    for query, judged in texts.items():
        irrelevant = [sha for sha, relevance in judged if relevance == 0 and sides.part_of(sha) == "train"]
        for sha256 in sorted({sha for sha, relevance in judged if relevance > 0}):
            row = row_of(sides, f"{OF_QUERY}:{query}", query, sha256)
            row["negatives"] = irrelevant
            row["negative_groups"] = [sides.number_of(sha) for sha in irrelevant]
            yield sides.part_of(sha256), row


def _pairs_of_picture(sides: Sides, judgment: Judgment, item: Item) -> Iterator[tuple[Part, Row]]:
    if judgment.image is None or judgment.relevance == 0:
        return
    sha256 = _sha256_of(judgment.image)
    part = sides.part_of(sha256)
    if item.picture is not None and sides.part_of(item.picture.sha256) != part:
        return  # to learn from one side would be to learn what the other is judged by
    for number, text in enumerate(item.embedded_texts):
        yield part, row_of(sides, text_name(item.id, number), text, sha256)


def pictures_of(judgments: Sequence[Judgment]) -> dict[str, str]:
    """Return where the pictures that are queries lie, by SHA-256."""
    return {_sha256_of(one.image): str(one.image) for one in judgments if one.image is not None}


def _hashes(judgments: Sequence[Judgment]) -> dict[str, int]:
    """Return what pictures that are queries look like, by SHA-256, as `perceptual_hash` has it."""
    hashes = {}
    for sha256, path in pictures_of(judgments).items():
        try:
            hashes[sha256] = perceptual_hash(decode_image(Path(path).read_bytes(), name=path).image)
        except BadImage as error:
            raise BadJudgments(f"the picture of a judgment cannot be used: {error}") from error
    return hashes


def _sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_judgments(path: Path) -> Iterator[Judgment]:
    """Yield the judgments of a file of JSON lines: query or image, key, relevance, and perhaps a source.

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
    """Texts and pictures as the stores have them, pictures decoded by workers, some at a time.

    Args:
        others: where pictures lie that no item has, by SHA-256.
    """

    def __init__(
        self,
        stores: Stores,
        workers: Workers,
        limits: Limits,
        others: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._stores, self._workers, self._limits = stores, workers, limits
        self._others = others

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
            if sha256 in uris:
                data = kept_picture(self._stores, sha256, uris[sha256], self._limits)
            else:
                data = self._other(sha256)
            if data is not None:
                shown[sha256] = self._workers.submit(data, name=uris.get(sha256, sha256))
        return [_features(shown.get(sha256)) for sha256 in shas]

    def _other(self, sha256: str) -> bytes | None:
        try:
            return Path(self._others[sha256]).read_bytes()
        except (KeyError, FileNotFoundError):
            return None


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
