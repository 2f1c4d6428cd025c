"""From records to a candidate: pairs, training, a folder that any program can load, a row that says so."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, get_args
from uuid import UUID

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from embedding.encoders.fingerprint import fingerprint_of
from embedding.encoders.head import PictureHead
from embedding.encoders.lora import add_lora, merge_lora
from embedding.encoders.sentence_encoder import SentenceEncoder, load_encoder
from embedding.images.worker_pool import Workers
from embedding.training.batches import Fresh, Frozen, Row
from embedding.training.frozen_features import freeze
from embedding.training.losses import LossName
from embedding.training.splits import Part, Split
from embedding.training.trainer import (
    Collate,
    Options,
    Trained,
    What,
    fine_tune,
    measure,
    only_head,
    options_of,
)
from flows.config.settings import Settings
from flows.datasets.hard_negatives import add_negatives
from flows.datasets.relevance_judgments import Judgment, query_images, read_judgments
from flows.datasets.splits import split_images
from flows.datasets.test_sets import lines_of
from flows.datasets.training_pairs import (
    StoredTrainingData,
    TooFewPairs,
    pairs_of_judgments,
    pairs_of_records,
    read_pairs,
    write_pairs,
)
from flows.resources.connections import Stores
from flows.resources.model_loader import active_model, models_folder, open_model
from flows.tracking.progress import Progress, no_progress, stage_steps
from flows.tracking.run_log import tracked_run
from flows.training.model_card import model_card
from storage.files import atomic_write, durable_rename
from storage.postgres import model_registry
from storage.postgres.locks import flow_lock

CHUNK = 32
"""Texts or images that a tower sees at once while it is trained; a larger batch is embedded in chunks."""

LEAST_PAIRS = 8
COUNTS = "pairs.json"
OWN_NAME = re.compile(r"-[0-9a-f]{8}$")
"""How the name of a model ends that was trained here."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained, and on what."""

    options: Options = field(default_factory=Options)
    split: Split = field(default_factory=Split)
    model: str | None = None
    """What to begin with; None for the active model."""

    hard_negatives: int = 0
    judgments: Path | None = None


def order_of(
    *,
    model: str | None,
    what: What,
    losses: Mapping[LossName, float] | None,
    held_out: float,
    held_out_keys: Path | None,
    judgments: Path | None,
    hard_negatives: int,
    epochs: int | None,
    batch_size: int,
    learning_rate: float | None,
    seed: int,
) -> Order:
    """Return the order that the options of `sightline finetune` stand for.

    Args:
        losses: their weights; None for InfoNCE alone.
        held_out: share of the images that no training sees, in [0, 1).
        held_out_keys: a file with the keys of those instead, one a line.
        epochs, learning_rate: None for what suits `what`.

    Raises:
        OSError, UnicodeDecodeError: `held_out_keys` cannot be read.
    """
    keys = None if held_out_keys is None else lines_of(held_out_keys)
    options = options_of(what, losses, epochs, batch_size, learning_rate, seed)
    return Order(options, Split(seed, held_out, keys=keys), model, hard_negatives, judgments)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that was trained here."""

    name: str
    folder: Path
    fingerprint: str
    parent: str
    pairs: dict[Part, int]
    trained: Trained
    before: dict[str, dict[str, float]]
    """Figures of the held-out pairs with the model that the training began with, by direction."""

    after: dict[str, dict[str, float]]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


def train_candidate(
    stores: Stores,
    settings: Settings,
    order: Order,
    *,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> Candidate:
    """Fine-tune a model on what the stores hold, and keep the result as a candidate.

    A training that was killed is taken up where it was, by the same order, with the same pairs.

    Raises:
        TooFewPairs: there is not enough to learn from.
        BadJudgments: a line of the file of judgments cannot be used.
        ModelUnavailable: the model to begin with cannot be loaded.
        ModelMismatch: negatives are to be mined, but another model made the collection.
        Busy: another training is running.
    """
    with tracked_run(
        stores.sessions,
        flow_lock(stores.engine, "training"),
        "finetune",
        for_s=settings.retry_for_s,
        prefect_run_id=prefect_run_id,
        progress=progress,
    ) as run:
        encoder = open_model(settings, order.model or active_model(stores.vectors, stores.sessions, settings))
        work = settings.home / "training" / _digest(order, encoder.fingerprint)
        judgments = [] if order.judgments is None else list(read_judgments(order.judgments))
        with Workers(encoder.preparation, settings.decode_workers) as workers:
            material = StoredTrainingData(stores, workers, settings.limits, query_images(judgments))
            counts = _gather(stores, settings, order, judgments, encoder, material, work, run.progress)
            run.counts = {"pairs": counts}
            candidate = _train(order, encoder, material, work, settings, counts, run.progress)
        run.counts |= {"candidate": candidate.name, "before": candidate.before, "after": candidate.after}
        run.seconds = dict(candidate.seconds)
        run.persist(partial(_put_on_record, stores, encoder, order, candidate))
        shutil.rmtree(work)
    return candidate


def _digest(order: Order, fingerprint: str) -> str:
    """Return what tells this training from others: the same order over the same model is the same one."""
    judged = None
    if order.judgments is not None:
        judged = hashlib.sha256(order.judgments.read_bytes()).hexdigest()
    asked = [order.options.as_json(), order.split.as_json(), order.hard_negatives, judged, fingerprint]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _gather(
    stores: Stores,
    settings: Settings,
    order: Order,
    judgments: Sequence[Judgment],
    encoder: SentenceEncoder,
    material: StoredTrainingData,
    work: Path,
    progress: Progress,
) -> dict[Part, int]:
    """Write the pairs of a training to its folder, unless an earlier attempt has; return how many."""
    known = work / COUNTS
    if known.exists():
        counts: dict[Part, int] = json.loads(known.read_text())
        return counts
    progress("hash images", 0, 0)
    sides = split_images(stores, settings.limits, order.split, judgments)
    pairs: Iterator[tuple[Part, Row]] = chain(
        pairs_of_records(stores, sides), pairs_of_judgments(stores, sides, judgments)
    )
    if order.hard_negatives:
        progress("mine negatives", 0, 0)
        pairs = add_negatives(stores, encoder, sides, material, pairs, order.hard_negatives)
    counts = write_pairs(work, pairs)
    if counts["train"] < LEAST_PAIRS or not counts["validation"]:
        shutil.rmtree(work)
        raise TooFewPairs(
            f"there are {counts['train']} pairs of a text and a picture to learn from, and "
            f"{counts['validation']} to tell when to stop; at least {LEAST_PAIRS} and 1 are needed: take in "
            "more captioned pictures, or hold out fewer"
        )
    atomic_write(known, json.dumps(counts).encode())
    return counts


def _train(
    order: Order,
    encoder: SentenceEncoder,
    material: StoredTrainingData,
    work: Path,
    settings: Settings,
    counts: dict[Part, int],
    progress: Progress,
) -> Candidate:
    """Train on the pairs in `work`, and write the result to a folder of its own."""
    options, parent, base = order.options, encoder.fingerprint, encoder.name
    started = perf_counter()
    with _prepared(options, encoder, material, work, progress) as (model, collate, rows):
        prepared = perf_counter()
        before = measure(model, rows["held-out"], collate, options.batch_size)
        trained = fine_tune(
            model,
            rows["train"],
            rows["validation"],
            collate,
            work,
            options,
            advance=partial(progress, "train"),
        )
        after = measure(model, rows["held-out"], collate, options.batch_size)
    ended = perf_counter()
    fingerprint = fingerprint_of(encoder.model)
    name = f"{candidate_stem(base)}-{fingerprint[:8]}"
    candidate = Candidate(
        name,
        models_folder(settings) / name,
        fingerprint,
        parent,
        counts,
        trained,
        before,
        after,
        {"prepare": round(prepared - started, 3), "train": round(ended - prepared, 3)},
    )
    own = any(type(module).__module__.startswith("embedding.") for module in encoder.model.modules())
    _write(encoder, candidate, model_card(base, order, candidate, own_classes=own), work / "runs")
    return candidate


def candidate_stem(base: str) -> str:
    """Return how the name of a candidate begins, after the model that it comes from.

    >>> candidate_stem("/models/my clip"), candidate_stem("starter-0123abcd")
    ('my-clip', 'starter')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(OWN_NAME, "", Path(base).name))


@contextmanager
def _prepared(
    options: Options, encoder: SentenceEncoder, material: StoredTrainingData, work: Path, progress: Progress
) -> Iterator[tuple[SentenceTransformer, Collate, dict[Part, Dataset]]]:
    """Yield what is trained, what makes its batches and the pairs; afterwards `encoder` has been trained."""
    rows = {part: read_pairs(work, part) for part in get_args(Part)}
    model, what = encoder.model, options.what
    if what == "head":
        own = model[-1]
        if isinstance(own, PictureHead):
            model.pop(-1)
        texts = sorted({name for part in rows.values() for name in part["text"]})
        pictures = sorted({sha256 for part in rows.values() for sha256 in _pictures_of(part)})
        advance = stage_steps(progress, "embed", len(texts) + len(pictures))
        frozen = freeze(encoder, texts, pictures, material, work / "frozen", advance=advance)
        new = PictureHead(frozen.inputs.shape[1], frozen.texts.shape[1])
        head = own if isinstance(own, PictureHead) else new
        present = {part: _present(pairs, frozen) for part, pairs in rows.items()}
        yield only_head(model, head), frozen, present
        model.append(head)
        return
    if what == "lora":
        add_lora(model, options.seed)
    yield model, Fresh(encoder, material, CHUNK), rows
    if what == "lora":
        merge_lora(model)


def _pictures_of(pairs: Dataset) -> Iterator[str]:
    yield from pairs["picture"]
    for negatives in pairs["negatives"]:
        yield from negatives


def _present(pairs: Dataset, frozen: Frozen) -> Dataset:
    """Return the pairs of which neither side is gone."""
    return pairs.select([number for number, row in enumerate(pairs) if frozen.has(row)])


def _write(encoder: SentenceEncoder, candidate: Candidate, card: str, logs: Path) -> None:
    """Write the model to its folder, whole or not at all, after reading it back."""
    folder = candidate.folder
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    encoder.model.save(str(unfinished), create_model_card=False)
    (unfinished / "README.md").write_text(card, "utf-8")
    shutil.copytree(logs, unfinished / "runs")
    read = load_encoder(candidate.name, device="cpu", folder=unfinished).fingerprint
    if read != candidate.fingerprint:
        raise RuntimeError(f"model {candidate.name} has fingerprint {read} once it is read back; a bug")
    shutil.rmtree(folder, ignore_errors=True)
    durable_rename(unfinished, folder)


def _put_on_record(stores: Stores, encoder: SentenceEncoder, order: Order, candidate: Candidate) -> None:
    training = {
        "base": encoder.name,
        "options": order.options.as_json(),
        "split": order.split.as_json(),
        "hard_negatives": order.hard_negatives,
        "judgments": None if order.judgments is None else order.judgments.name,
        "pairs": candidate.pairs,
        "trained": asdict(candidate.trained),
        "before": candidate.before,
        "after": candidate.after,
    }
    with stores.sessions.begin() as session:
        model_registry.save_model(session, fingerprint=candidate.parent, name=encoder.name, dim=encoder.dim)
        model_registry.save_model(
            session,
            fingerprint=candidate.fingerprint,
            name=candidate.name,
            dim=encoder.dim,
            parent=candidate.parent,
            training=training,
        )
