"""What models are judged on: our own records, some held out, a manifest from outside, or judgments."""

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

from embedding.evaluation.ranks import Direction, Positions, Side
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
"""Records that the gate and schedules look at: more cost time, and hardly narrow an interval."""

Languages = Sequence[str] | None
"""Tags of the captions that are queries, or `all`; None for those that are embedded."""


class NothingToEvaluate(InvalidInput):
    """There is no query with a right answer in what was asked for."""


@dataclass(frozen=True, slots=True)
class EvaluationImage:
    """A image that is judged, and where it can be had."""

    origin: Origin
    id: UUID | None = None
    """The item that it belongs to; None for one from outside."""

    sha256: str | None = None
    content_hash: str | None = None
    """What the item's point was made from."""


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """A record of a test set: its image, if it has one, and those of its captions that are queries."""

    id: UUID
    shot: EvaluationImage | None
    captions: tuple[Text, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query, and how relevant some items are to it."""

    query: str | EvaluationImage
    gains: Mapping[UUID, float]


@dataclass(frozen=True, slots=True)
class TestSet:
    """Records in id order; their captions and images are the queries, unless there are judgments."""

    __test__ = False  # not one of pytest's, whatever its name

    name: str
    entries: tuple[EvaluationRecord, ...]
    judged: tuple[JudgedQuery, ...] = ()
    langs: str | None = None
    """The languages of the captions that were asked for; None for those that are embedded."""

    @property
    def texts(self) -> list[str]:
        """The rows of the side `texts`."""
        if self.judged:
            return [one.query for one in self.judged if isinstance(one.query, str)]
        return [text.text for entry in self.entries for text in entry.captions]

    @property
    def most_queries(self) -> int:
        """How many queries there would be if each had a right answer."""
        return len(self.judged) or len(self.texts) + len(self.shots)

    @property
    def shots(self) -> list[EvaluationImage]:
        """The rows of the side `pictures`: the gallery, and then the queries."""
        asked = [one.query for one in self.judged if isinstance(one.query, EvaluationImage)]
        return [entry.shot for entry in self.entries if entry.shot] + asked


@dataclass(frozen=True, slots=True)
class EvaluationChoice:
    """What a person wants to know of some models: at most one of the first four, else all records."""

    keys: Path | None = None
    held_out: bool = False
    manifest: Path | None = None
    judgments: Path | None = None
    langs: Languages = None


def choose_test_set(
    stores: Stores,
    settings: Settings,
    question: EvaluationChoice,
    models: Sequence[str],
    *,
    at_most: int | None = None,
) -> TestSet:
    """Return what answers the question; what is held out depends on the models and where they come from.

    Args:
        at_most: so many records of what is held out.

    Raises:
        NoCollection: nothing has been ingested yet, and no manifest is named.
        BadSource: there is no manifest.
        BadJudgments: a line of the file of judgments cannot be used.
    """
    if question.manifest is not None:
        return of_manifest(question.manifest, settings.langs, question.langs)
    if qdrant.active_collection(stores.vectors) is None:
        raise qdrant.NoCollection
    if question.judgments is not None:
        return of_judgments(stores, question.judgments)
    if question.held_out:
        splits = splits_of(stores, _fingerprints(stores, models))
        return of_held_out(stores, settings.limits, splits, question.langs, at_most=at_most)
    if question.keys is not None:
        return of_records(stores, question.keys.name, lines_of(question.keys), question.langs)
    return of_records(stores, "all", None, question.langs)


def splits_of(stores: Stores, fingerprints: Sequence[str]) -> list[Split]:
    """Return how the records were divided for these models and those that they come from.

    Of models that were not trained here no record was seen by any: then a fifth of them is enough.
    """
    with stores.sessions() as session:
        models = [model for one in fingerprints for model in model_registry.lineage(session, one)]
    found = [Split.from_json(model.training["split"]) for model in models if model.training]
    return found or [Split()]


def _fingerprints(stores: Stores, names: Sequence[str]) -> list[str]:
    """Return the fingerprints of models or collections that are on record; without names the active one."""
    if not names:
        active = qdrant.active_collection(stores.vectors)
        return [] if active is None else [active.fingerprint]
    with stores.sessions() as session:
        models = [model_registry.model_named(session, name) for name in names]
        collections = {one.name: one.fingerprint for one in model_registry.known_collections(session)}
    return [one.fingerprint for one in models if one] + [collections[n] for n in names if n in collections]


def lines_of(path: Path) -> tuple[str, ...]:
    """Return the lines of a file that are not empty."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return tuple(line for line in lines if line)


def of_records(stores: Stores, name: str, keys: Sequence[str] | None, langs: Languages) -> TestSet:
    """Return all records, or those with one of `keys`."""
    with stores.sessions() as session:
        entries = tuple(_entries(catalog.living_items(session, keys), langs))
    return TestSet(name, entries, langs=_named(langs))


def of_held_out(
    stores: Stores, limits: Limits, splits: Sequence[Split], langs: Languages, *, at_most: int | None = None
) -> TestSet:
    """Return the captioned images that are held out by every one of `splits`, near duplicates included.

    Args:
        splits: those of the models that are compared, and of the models that these come from: what one of
            them was trained on says little about it.
        at_most: so many of them, chosen by a hash of their ids.
    """
    groups = duplicate_groups(stores, limits)
    sides = [image_split(stores, groups, split) for split in splits]
    with stores.sessions() as session:
        entries = [
            entry
            for entry in _entries(catalog.living_items(session), langs)
            if entry.captions
            and entry.shot is not None
            and all(side.part_of(entry.shot.sha256 or "") == "held-out" for side in sides)
        ]
    drawn = sorted(entries, key=lambda entry: hashlib.sha256(entry.id.bytes).digest())[:at_most]
    return TestSet("held-out", tuple(sorted(drawn, key=lambda entry: entry.id)), langs=_named(langs))


def of_manifest(path: Path, embedded: Sequence[str], langs: Languages) -> TestSet:
    """Return the records of a manifest or folder, none of which is taken in.

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
            _chosen(record.select_languages(embedded).texts, langs),
            record.metadata,
        )
        for record in records.values()
    )
    return TestSet(name, tuple(sorted(entries, key=lambda entry: entry.id)), langs=_named(langs))


def of_judgments(stores: Stores, path: Path) -> TestSet:
    """Return the queries of a file of judgments, with all stored images as gallery.

    Raises:
        BadJudgments: a line of the file cannot be used.
    """
    gains: dict[str | EvaluationImage, dict[UUID, float]] = defaultdict(dict)
    with stores.sessions() as session:
        entries = tuple(entry for entry in _entries(catalog.living_items(session), None) if entry.shot)
        there = {entry.id for entry in entries}
        for one in read_judgments(path):
            query = one.text if one.text is not None else EvaluationImage(Origin(str(one.image)))
            own = gains[query]  # also of a query none of whose items is here: it is counted
            for item in catalog.items_with_key(session, one.key, one.source):
                if item.id in there and one.relevance > 0:
                    own[item.id] = max(one.relevance, own.get(item.id, 0.0))
    return TestSet(path.name, entries, tuple(JudgedQuery(query, own) for query, own in gains.items()))


def directions_of(test_set: TestSet, present: NDArray[np.bool_], by: Sequence[str]) -> list[Direction]:
    """Return what is asked of a test set.

    Args:
        present: which of its images every model has seen; the others are in no gallery, and no queries.
        by: metadata fields by whose values the queries are divided as well.

    Raises:
        NothingToEvaluate: there is no query with a right answer.
    """
    found = _judged(test_set, present) if test_set.judged else _captioned(test_set, present, by)
    if not found:
        what = (
            "no item that it names has a picture here; check its keys"
            if test_set.judged
            else "no record has both a picture and such a caption; check --keys and --langs"
        )
        raise NothingToEvaluate(f"{test_set.name}: {what}")
    return found


def _captioned(test_set: TestSet, present: NDArray[np.bool_], by: Sequence[str]) -> list[Direction]:
    entries = test_set.entries
    captions = [(number, text) for number, entry in enumerate(entries) for text in entry.captions]
    pictured = (number for number, entry in enumerate(entries) if entry.shot is not None)
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
            "pictures",
            _positions(shown.values()),
            np.arange(len(shown)),
            np.arange(len(texts)),
            _positions(column[number] for number in owners),
            np.ones(len(texts)),
            _positions(owners),
            _parts(
                [
                    {f"lang={captions[row][1].lang or 'none'}", *_values(entries[own], by)}
                    for row, own in zip(texts, owners, strict=True)
                ]
            ),
        ),
        Direction(
            "image_to_text",
            "pictures",
            _positions(shown[number] for number in pictures),
            "texts",
            np.arange(len(captions)),
            _positions(accumulate((len(entries[number].captions) for number in captioned), initial=0))[:-1],
            np.arange(len(pictures)),
            _positions(captioned[number] for number in pictures),
            np.ones(len(pictures)),
            _positions(pictures),
            _parts([_values(entries[number], by) for number in pictures]),
        ),
    ]


def _judged(test_set: TestSet, present: NDArray[np.bool_]) -> list[Direction]:
    gallery = [row for row in range(len(test_set.entries)) if present[row]]
    column = {test_set.entries[row].id: place for place, row in enumerate(gallery)}
    words = [one for one in test_set.judged if isinstance(one.query, str)]
    pictures = [one for one in test_set.judged if isinstance(one.query, EvaluationImage)]
    seen = present[len(test_set.entries) :]
    directions = [
        _of_judged("text_to_image", "texts", dict(enumerate(words)), gallery, column),
        _of_judged(
            "image_to_image",
            "pictures",
            {len(test_set.entries) + row: one for row, one in enumerate(pictures) if seen[row]},
            gallery,
            column,
        ),
    ]
    return [direction for direction in directions if len(direction.queries)]


def _of_judged(
    name: str,
    asks: Side,
    queries: Mapping[int, JudgedQuery],
    gallery: Sequence[int],
    column: Mapping[UUID, int],
) -> Direction:
    """Return a direction; queries, given by their rows, without an answer in the gallery are left out."""
    gains = {
        row: {column[id]: gain for id, gain in one.gains.items() if id in column}
        for row, one in queries.items()
    }
    answers = {row: sorted(own.items()) for row, own in gains.items() if own}
    counts = [len(own) for own in answers.values()]
    flat = list(chain.from_iterable(answers.values()))
    return Direction(
        name,
        asks,
        _positions(answers),
        "pictures",
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
        yield EvaluationRecord(item.id, image, _chosen(item.texts, langs), item.metadata)


def _named(langs: Languages) -> str | None:
    return None if langs is None else ",".join(langs)


def _chosen(texts: Sequence[Text], langs: Languages) -> tuple[Text, ...]:
    if langs is None:
        return tuple(text for text in texts if text.embedded)
    if "all" in langs:
        return tuple(texts)
    return tuple(text for text in texts if text.lang in langs)


def _positions(numbers: Iterable[int]) -> Positions:
    return np.fromiter(numbers, np.int64)


def _values(entry: EvaluationRecord, by: Sequence[str]) -> set[str]:
    """Return such as `kind=fruit` for each value of these metadata fields."""
    values = ((name, entry.metadata[name]) for name in by if name in entry.metadata)
    return {
        f"{name}={one}" for name, value in values for one in (value if isinstance(value, list) else [value])
    }


def _parts(tags: Sequence[set[str]]) -> dict[str, NDArray[np.bool_]]:
    """Return which queries have which tag, for tags that tell some queries from others."""
    counts = Counter(chain.from_iterable(tags))
    return {
        tag: np.array([tag in own for own in tags])
        for tag in sorted(counts)
        if MIN_SUBSET_QUERIES <= counts[tag] < len(tags)
    }
