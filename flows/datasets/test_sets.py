"""Build the test sets that models are evaluated on.

A test set holds stored records, held-out ones, those of another manifest, or relevance judgments.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from embedding.evaluation.ranks import Direction, Modality, Positions
from embedding.training.splits import Split
from flows.config.settings import Limits, Settings
from flows.datasets.near_duplicates import duplicate_groups
from flows.datasets.relevance_judgments import read_judgments
from flows.datasets.splits import image_split
from flows.resources.connections import Stores
from storage import qdrant
from storage.errors import InvalidInput
from storage.postgres import catalog, model_registry
from storage.records import Origin, Record, Text, item_id
from storage.sources import read_source, source_name

MIN_SUBSET_QUERIES = 10
MAX_TEST_RECORDS = 5000
"""Records for the promotion gate and schedules: more take longer, and hardly narrow an interval."""

Languages = Sequence[str] | None
"""Tags of the captions that are queries, or `all`; None for those that are embedded."""


class NothingToEvaluate(InvalidInput):
    """Report a test set without a query that has a right answer."""

    refusal = True


@dataclass(frozen=True, slots=True)
class EvaluationImage:
    """Locate an image of a test set."""

    origin: Origin
    id: UUID | None = None
    """Item of the image; None if it is not stored."""

    sha256: str | None = None
    content_hash: str | None = None
    """Content hash of the item's point."""


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """Hold a record of a test set: its image and query captions."""

    id: UUID
    image: EvaluationImage | None
    captions: tuple[Text, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """Hold a query and the relevance of items to it."""

    query: str | EvaluationImage
    gains: Mapping[UUID, float]


@dataclass(frozen=True, slots=True)
class TestSet:
    """Hold the records of a test set, in id order.

    Their captions and images are the queries, unless there are judgments.
    """

    __test__ = False  # pytest must not collect it

    name: str
    entries: tuple[EvaluationRecord, ...]
    judged_queries: tuple[JudgedQuery, ...] = ()
    langs: str | None = None
    """Requested languages of the captions; None for the embedded ones."""

    @property
    def texts(self) -> list[str]:
        """Rows of the side `texts`."""
        if self.judged_queries:
            return [one.query for one in self.judged_queries if isinstance(one.query, str)]
        return [text.text for entry in self.entries for text in entry.captions]

    @property
    def possible_queries(self) -> int:
        """Number of queries if each had a right answer."""
        return len(self.judged_queries) or len(self.texts) + len(self.images)

    @property
    def images(self) -> list[EvaluationImage]:
        """Rows of the side `pictures`: first the gallery, then the queries."""
        asked = [one.query for one in self.judged_queries if isinstance(one.query, EvaluationImage)]
        return [entry.image for entry in self.entries if entry.image] + asked


@dataclass(frozen=True, slots=True)
class EvaluationChoice:
    """Choose a test set: at most one of the first four.

    Without any, all records are chosen.
    """

    keys: Path | None = None
    held_out: bool = False
    manifest: Path | None = None
    judgments: Path | None = None
    langs: Languages = None


def choose_test_set(
    stores: Stores,
    settings: Settings,
    choice: EvaluationChoice,
    models: Sequence[str],
    *,
    at_most: int | None = None,
) -> TestSet:
    """Return the chosen test set.

    The held-out records depend on the models and on their lineage.

    Args:
        at_most: limits the held-out records.

    Raises:
        NoCollection: nothing has been ingested yet, and no manifest is named.
        BadSource: there is no manifest.
        BadJudgments: a line of the file of judgments cannot be used.
    """
    if choice.manifest is not None:
        return of_manifest(choice.manifest, settings.langs, choice.langs)
    if qdrant.active_collection(stores.vectors) is None:
        raise qdrant.NoCollection
    if choice.judgments is not None:
        return of_judgments(stores, choice.judgments)
    if choice.held_out:
        splits = training_splits(stores, _fingerprints(stores, models))
        return of_held_out(stores, settings.limits, splits, choice.langs, at_most=at_most)
    if choice.keys is not None:
        return of_records(stores, choice.keys.name, read_lines(choice.keys), choice.langs)
    return of_records(stores, "all", None, choice.langs)


def training_splits(stores: Stores, fingerprints: Sequence[str]) -> list[Split]:
    """Return the training splits of models and of their lineage.

    No record was seen by a model that was not trained here: then a fifth of the records is enough.

    Of models that were not trained here no record was seen by any: then a fifth of them is enough.
    """
    with stores.sessions() as session:
        models = [model for one in fingerprints for model in model_registry.lineage(session, one)]
    found = [Split.from_json(model.training["split"]) for model in models if model.training]
    return found or [Split()]


def _fingerprints(stores: Stores, names: Sequence[str]) -> list[str]:
    """Return the fingerprints of recorded models or collections.

    Without names it is the active one.
    """
    if not names:
        active = qdrant.active_collection(stores.vectors)
        return [] if active is None else [active.fingerprint]
    with stores.sessions() as session:
        models = [model_registry.model_named(session, name) for name in names]
        collections = {one.name: one.fingerprint for one in model_registry.known_collections(session)}
    return [one.fingerprint for one in models if one] + [collections[n] for n in names if n in collections]


def read_lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a file that are not empty."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return tuple(line for line in lines if line)


def of_records(stores: Stores, name: str, keys: Sequence[str] | None, langs: Languages) -> TestSet:
    """Return all records, or those with one of `keys`."""
    with stores.sessions() as session:
        entries = tuple(_entries(catalog.living_items(session, keys), langs))
    return TestSet(name, entries, langs=_language_label(langs))


def of_held_out(
    stores: Stores, limits: Limits, splits: Sequence[Split], langs: Languages, *, at_most: int | None = None
) -> TestSet:
    """Return the captioned images that every split holds out.

    Near duplicates of training images are not among them.

    Args:
        splits: of the compared models and their lineage: an evaluation on training data says little.
        at_most: limits the records, chosen by a hash of their ids.
    """
    groups = duplicate_groups(stores, limits)
    image_splits = [image_split(stores, groups, split) for split in splits]
    with stores.sessions() as session:
        entries = [
            entry
            for entry in _entries(catalog.living_items(session), langs)
            if entry.captions
            and entry.image is not None
            and all(one.part_of(entry.image.sha256 or "") == "held-out" for one in image_splits)
        ]
    drawn = sorted(entries, key=lambda entry: hashlib.sha256(entry.id.bytes).digest())[:at_most]
    return TestSet("held-out", tuple(sorted(drawn, key=lambda entry: entry.id)), langs=_language_label(langs))


def of_manifest(path: Path, embedded: Sequence[str], langs: Languages) -> TestSet:
    """Return the records of a manifest or folder, without ingesting them.

    Args:
        embedded: languages whose captions would be embedded, beside those without a tag.

    Raises:
        BadSource: the location is no folder of images and no manifest.
    """
    name = source_name(path)
    records = {row.key: row for row in read_source(path) if isinstance(row, Record)}
    entries = (
        EvaluationRecord(
            item_id(name, record.key),
            None if record.image is None else EvaluationImage(Origin(record.image, folder=record.folder)),
            _query_captions(record.select_languages(embedded).texts, langs),
            record.metadata,
        )
        for record in records.values()
    )
    return TestSet(name, tuple(sorted(entries, key=lambda entry: entry.id)), langs=_language_label(langs))


def of_judgments(stores: Stores, path: Path) -> TestSet:
    """Return the queries of a file of judgments.

    The gallery is all stored images.

    Raises:
        BadJudgments: a line of the file cannot be used.
    """
    gains: dict[str | EvaluationImage, dict[UUID, float]] = defaultdict(dict)
    with stores.sessions() as session:
        entries = tuple(entry for entry in _entries(catalog.living_items(session), None) if entry.image)
        there = {entry.id for entry in entries}
        for one in read_judgments(path):
            query = one.text if one.text is not None else EvaluationImage(Origin(str(one.image)))
            own = gains[query]  # also of a query none of whose items is here: it is counted
            for item in catalog.items_with_key(session, one.key, one.source):
                if item.id in there and one.relevance > 0:
                    own[item.id] = max(one.relevance, own.get(item.id, 0.0))
    return TestSet(path.name, entries, tuple(JudgedQuery(query, own) for query, own in gains.items()))


def directions_of(test_set: TestSet, present: NDArray[np.bool_], by: Sequence[str]) -> list[Direction]:
    """Return the retrieval directions of a test set.

    Args:
        present: shape (images,), whether every model has encoded the image; the others are left out.
        by: metadata fields whose values define subsets of the queries.

    Raises:
        NothingToEvaluate: there is no query with a right answer.
    """
    found = (
        _judged_directions(test_set, present)
        if test_set.judged_queries
        else _caption_directions(test_set, present, by)
    )
    if not found:
        what = (
            "none of its items has a stored image; check its keys"
            if test_set.judged_queries
            else "no record has both an image and such a caption; check --keys and --langs"
        )
        raise NothingToEvaluate(f"{test_set.name}: {what}")
    return found


def _caption_directions(test_set: TestSet, present: NDArray[np.bool_], by: Sequence[str]) -> list[Direction]:
    entries = test_set.entries
    captions = [(number, text) for number, entry in enumerate(entries) for text in entry.captions]
    pictured = (number for number, entry in enumerate(entries) if entry.image is not None)
    shown = {number: row for row, number in enumerate(pictured) if present[row]}
    column = {number: place for place, number in enumerate(shown)}
    captioned = {number: place for place, number in enumerate(dict.fromkeys(own for own, _ in captions))}
    texts = [row for row, (own, _) in enumerate(captions) if own in shown]
    owners = [captions[row][0] for row in texts]
    pictures = [number for number in captioned if number in shown]
    if not pictures:
        return []
    return [
        Direction(
            "text_to_image",
            "texts",
            _positions(texts),
            "images",
            _positions(shown.values()),
            np.arange(len(shown)),
            np.arange(len(texts)),
            _positions(column[number] for number in owners),
            np.ones(len(texts)),
            _positions(owners),
            _subsets(
                [
                    {f"lang={captions[row][1].lang or 'none'}", *_metadata_tags(entries[own], by)}
                    for row, own in zip(texts, owners, strict=True)
                ]
            ),
        ),
        Direction(
            "image_to_text",
            "images",
            _positions(shown[number] for number in pictures),
            "texts",
            np.arange(len(captions)),
            _positions(accumulate((len(entries[number].captions) for number in captioned), initial=0))[:-1],
            np.arange(len(pictures)),
            _positions(captioned[number] for number in pictures),
            np.ones(len(pictures)),
            _positions(pictures),
            _subsets([_metadata_tags(entries[number], by) for number in pictures]),
        ),
    ]


def _judged_directions(test_set: TestSet, present: NDArray[np.bool_]) -> list[Direction]:
    gallery = [row for row in range(len(test_set.entries)) if present[row]]
    column = {test_set.entries[row].id: place for place, row in enumerate(gallery)}
    words = [one for one in test_set.judged_queries if isinstance(one.query, str)]
    pictures = [one for one in test_set.judged_queries if isinstance(one.query, EvaluationImage)]
    seen = present[len(test_set.entries) :]
    directions = [
        _judged_direction("text_to_image", "texts", dict(enumerate(words)), gallery, column),
        _judged_direction(
            "image_to_image",
            "images",
            {len(test_set.entries) + row: one for row, one in enumerate(pictures) if seen[row]},
            gallery,
            column,
        ),
    ]
    return [direction for direction in directions if len(direction.queries)]


def _judged_direction(
    name: str,
    query_side: Modality,
    queries: Mapping[int, JudgedQuery],
    gallery: Sequence[int],
    column: Mapping[UUID, int],
) -> Direction:
    """Return a direction with the queries that have an answer.

    The queries are given by their rows.
    """
    gains = {
        row: {column[id]: gain for id, gain in one.gains.items() if id in column}
        for row, one in queries.items()
    }
    answers = {row: sorted(own.items()) for row, own in gains.items() if own}
    counts = [len(own) for own in answers.values()]
    flat = list(chain.from_iterable(answers.values()))
    return Direction(
        name,
        query_side,
        _positions(answers),
        "images",
        _positions(gallery),
        np.arange(len(gallery)),
        np.repeat(np.arange(len(answers)), counts),
        _positions(place for place, _ in flat),
        np.array([gain for _, gain in flat], np.float64),
        np.arange(len(answers)),
    )


def _entries(items: Iterable[tuple[Any, Any]], langs: Languages) -> Iterator[EvaluationRecord]:
    for item, digest in items:
        stored = item.image
        image = stored and EvaluationImage(stored.origin, item.id, stored.sha256, digest.content)
        yield EvaluationRecord(item.id, image, _query_captions(item.texts, langs), item.metadata)


def _language_label(langs: Languages) -> str | None:
    return None if langs is None else ",".join(langs)


def _query_captions(texts: Sequence[Text], langs: Languages) -> tuple[Text, ...]:
    if langs is None:
        return tuple(text for text in texts if text.embedded)
    if "all" in langs:
        return tuple(texts)
    return tuple(text for text in texts if text.lang in langs)


def _positions(numbers: Iterable[int]) -> Positions:
    return np.fromiter(numbers, np.int64)


def _metadata_tags(entry: EvaluationRecord, by: Sequence[str]) -> set[str]:
    """Return a tag such as `kind=fruit` for each metadata value."""
    values = ((name, entry.metadata[name]) for name in by if name in entry.metadata)
    return {
        f"{name}={one}" for name, value in values for one in (value if isinstance(value, list) else [value])
    }


def _subsets(tags: Sequence[set[str]]) -> dict[str, NDArray[np.bool_]]:
    """Return the queries with each tag that divides the queries."""
    counts = Counter(chain.from_iterable(tags))
    return {
        tag: np.array([tag in own for own in tags])
        for tag in sorted(counts)
        if MIN_SUBSET_QUERIES <= counts[tag] < len(tags)
    }
