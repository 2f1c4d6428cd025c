"""Build the training pairs of records and judgments.

Files hold ids and hashes, so that no content outlives a delete.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import get_args
from uuid import UUID

import pyarrow as pa
from datasets import Dataset

from embedding.images.decode import BadImage
from embedding.images.preparation import Features, PreparedImage
from embedding.images.worker_pool import Workers
from embedding.training.batches import PairRow
from embedding.training.splits import SplitName
from flows.config.settings import Limits
from flows.datasets.relevance_judgments import Judgment, file_sha256
from flows.datasets.splits import ImageSplit, stable_number
from flows.resources.connections import Stores
from flows.resources.images import decode_many, load_image
from storage.errors import InvalidInput
from storage.postgres import catalog
from storage.records import Item, Origin

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


class TooFewPairs(InvalidInput):
    """Report too few pairs to train on or to validate with."""

    refusal = True


def pairs_of_records(stores: Stores, split: ImageSplit) -> Iterator[tuple[SplitName, PairRow]]:
    """Yield a pair for each embedded text of an image's item.

    The pairs are in id order.
    """
    with stores.sessions() as session:
        for item in catalog.captioned_images(session):
            if item.image is not None and item.image.sha256 not in split.unreadable:
                part = split.part_of(item.image.sha256)
                for number, text in enumerate(item.embedded_texts):
                    yield part, pair_row(split, text_name(item.id, number), text, item.image.sha256)


def pairs_of_judgments(
    stores: Stores, split: ImageSplit, judgments: Sequence[Judgment]
) -> Iterator[tuple[SplitName, PairRow]]:
    """Yield the pairs of relevance judgments.

    A text makes a pair with the image of each relevant item; the images of irrelevant items are its
    negatives. An image makes a pair with each embedded text of a relevant item, unless the image of that
    item is in another part of the split.
    """
    texts: dict[str, list[tuple[str, float]]] = {}
    with stores.sessions() as session:
        for judgment in judgments:
            for item in catalog.items_with_key(session, judgment.key, judgment.source):
                if judgment.image is not None:
                    yield from _pairs_of_picture(split, judgment, item)
                elif judgment.text is not None and item.image is not None:
                    judged = texts.setdefault(judgment.text, [])
                    if item.image.sha256 not in split.unreadable:
                        judged.append((item.image.sha256, judgment.relevance))
    for query, judged in texts.items():
        irrelevant = [sha for sha, relevance in judged if relevance == 0 and split.part_of(sha) == "train"]
        for sha256 in sorted({sha for sha, relevance in judged if relevance > 0}):
            row = pair_row(split, f"{OF_QUERY}:{query}", query, sha256)
            row["negatives"] = irrelevant
            row["negative_groups"] = [split.group_number(sha) for sha in irrelevant]
            yield split.part_of(sha256), row


def _pairs_of_picture(
    split: ImageSplit, judgment: Judgment, item: Item
) -> Iterator[tuple[SplitName, PairRow]]:
    if judgment.image is None or judgment.relevance == 0:
        return
    sha256 = file_sha256(judgment.image)
    part = split.part_of(sha256)
    if item.image is not None and split.part_of(item.image.sha256) != part:
        return  # a pair across the parts would leak held-out images into training
    for number, text in enumerate(item.embedded_texts):
        yield part, pair_row(split, text_name(item.id, number), text, sha256)


def pair_row(split: ImageSplit, name: str, text: str, sha256: str) -> PairRow:
    """Return the pair of a text and an image, without mined negatives."""
    return PairRow(
        text=name,
        picture=sha256,
        text_group=text_number(text),
        picture_group=split.group_number(sha256),
        negatives=[],
        negative_groups=[],
    )


def text_name(id: UUID, number: int) -> str:
    """Return the name of a text: ids, which outlive no content."""
    return f"{OF_ITEM}:{id}:{number}"


def text_number(text: str) -> int:
    """Return a number shared by texts with the same words."""
    return stable_number(" ".join(text.casefold().split()))


def write_pairs(folder: Path, pairs: Iterable[tuple[SplitName, PairRow]]) -> dict[SplitName, int]:
    """Write the pairs of each part to a file; return their counts."""
    parts: tuple[SplitName, ...] = get_args(SplitName)
    counts: dict[SplitName, int] = dict.fromkeys(parts, 0)
    waiting: dict[SplitName, list[PairRow]] = {part: [] for part in parts}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = {
            part: stack.enter_context(pa.ipc.new_stream(str(_file(folder, part)), SCHEMA)) for part in parts
        }

        def write(part: SplitName) -> None:
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


def read_pairs(folder: Path, part: SplitName) -> Dataset:
    """Return the pairs of a part, mapped from their file."""
    return Dataset.from_file(str(_file(folder, part)))


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.arrow"


class StoredTrainingData:
    """Load texts and images from the stores, decoded by workers.

    Args:
        others: paths of images without an item, by SHA-256.
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
        """Return each text, or None if it is deleted or changed."""
        ids = {UUID(name.split(":")[1]) for name in names if name.startswith(f"{OF_ITEM}:")}
        with self._stores.sessions() as session:
            items = catalog.items_with_digests(session, sorted(ids))
        return [_text_of(name, {id: item for id, (item, _) in items.items()}) for name in names]

    def images(self, shas: Sequence[str]) -> list[Features | None]:
        """Return the features of each image, or None if unavailable."""
        with self._stores.sessions() as session:
            stored = catalog.image_origins(session, set(shas))
        files = {sha256: Origin(self._others[sha256]) for sha256 in shas if sha256 in self._others}

        def load(sha256: str, origin: Origin) -> bytes | None:
            or_origin = sha256 not in stored
            return load_image(self._stores, sha256, origin, self._limits, or_origin=or_origin)

        decoding = decode_many(self._workers, files | stored, load)
        return [_features(decoding.get(sha256)) for sha256 in shas]


def _text_of(name: str, items: Mapping[UUID, Item]) -> str | None:
    kind, _, rest = name.partition(":")
    if kind == OF_QUERY:
        return rest
    id, _, number = rest.partition(":")
    item = items.get(UUID(id))
    texts = () if item is None else item.embedded_texts
    return texts[int(number)] if int(number) < len(texts) else None


def _features(decoding: "Future[PreparedImage] | None") -> Features | None:
    if decoding is None:
        return None
    try:
        return decoding.result().features
    except BadImage:
        return None
