"""Fine-tune a model on stored pairs, and register the candidate."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import get_args
from uuid import UUID

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from embedding.encoders.fingerprint import fingerprint_of
from embedding.encoders.head import PictureHead
from embedding.encoders.lora import add_lora, merge_lora
from embedding.encoders.sentence_encoder import SentenceEncoder, load_encoder
from embedding.images.worker_pool import Workers
from embedding.training.batches import FrozenFeatures, LiveBatches, PairRow
from embedding.training.frozen_features import encode_frozen
from embedding.training.splits import SplitName
from embedding.training.trainer import (
    Collate,
    TrainingOptions,
    fine_tune,
    head_alone,
    measure,
)
from flows.config.settings import Settings
from flows.datasets.hard_negatives import add_negatives
from flows.datasets.relevance_judgments import Judgment, query_images, read_judgments
from flows.datasets.splits import split_images
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
from flows.training.spec import Candidate, TrainingSpec
from storage.files import atomic_write, durable_rename
from storage.postgres import model_registry
from storage.postgres.locks import flow_lock

CHUNK = 32
"""Texts or images that a tower encodes at once in training; a larger batch is encoded in chunks."""

MIN_PAIRS = 8
COUNTS = "pairs.json"
CANDIDATE_NAME = re.compile(r"-[0-9a-f]{8}$")
"""Suffix of the name of a model that was trained here."""


def train_candidate(
    stores: Stores,
    settings: Settings,
    spec: TrainingSpec,
    *,
    prefect_run_id: UUID | None = None,
    progress: Progress = no_progress,
) -> Candidate:
    """Fine-tune a model on the stored pairs, and save the candidate.

    An interrupted training resumes with the same spec and the same pairs.

    Raises:
        TooFewPairs: there are too few pairs to train on.
        BadJudgments: a line of the file of judgments cannot be used.
        ModelUnavailable: the base model cannot be loaded.
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
        encoder = open_model(settings, spec.model or active_model(stores.vectors, stores.sessions, settings))
        work = settings.home / "training" / _digest(spec, encoder.fingerprint)
        judgments = [] if spec.judgments is None else list(read_judgments(spec.judgments))
        with Workers(encoder.preparation, settings.decode_workers) as workers:
            material = StoredTrainingData(stores, workers, settings.limits, query_images(judgments))
            counts = _gather(stores, settings, spec, judgments, encoder, material, work, run.progress)
            run.counts = {"pairs": counts}
            candidate = _train(spec, encoder, material, work, settings, counts, run.progress)
        run.counts |= {"candidate": candidate.name, "before": candidate.before, "after": candidate.after}
        run.seconds = dict(candidate.seconds)
        run.persist(partial(_register, stores, encoder, spec, candidate))
        shutil.rmtree(work)
    return candidate


def _digest(spec: TrainingSpec, fingerprint: str) -> str:
    """Hash the spec and the base model as the training's identity."""
    judged = None
    if spec.judgments is not None:
        judged = hashlib.sha256(spec.judgments.read_bytes()).hexdigest()
    identity = [spec.options.as_json(), spec.split.as_json(), spec.hard_negatives, judged, fingerprint]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _gather(
    stores: Stores,
    settings: Settings,
    spec: TrainingSpec,
    judgments: Sequence[Judgment],
    encoder: SentenceEncoder,
    material: StoredTrainingData,
    work: Path,
    progress: Progress,
) -> dict[SplitName, int]:
    """Write the pairs of a training unless present; return their number."""
    known = work / COUNTS
    if known.exists():
        counts: dict[SplitName, int] = json.loads(known.read_text())
        return counts
    progress("hash images", 0, 0)
    splits = split_images(stores, settings.limits, spec.split, judgments)
    pairs: Iterator[tuple[SplitName, PairRow]] = chain(
        pairs_of_records(stores, splits), pairs_of_judgments(stores, splits, judgments)
    )
    if spec.hard_negatives:
        progress("mine negatives", 0, 0)
        pairs = add_negatives(stores, encoder, splits, material, pairs, spec.hard_negatives)
    counts = write_pairs(work, pairs)
    if counts["train"] < MIN_PAIRS or not counts["validation"]:
        shutil.rmtree(work)
        raise TooFewPairs(
            f"there are {counts['train']} pairs of a text and an image to train on, and "
            f"{counts['validation']} to validate with; at least {MIN_PAIRS} and 1 are needed: ingest more "
            "captioned images, or hold out fewer"
        )
    atomic_write(known, json.dumps(counts).encode())
    return counts


def _train(
    spec: TrainingSpec,
    encoder: SentenceEncoder,
    material: StoredTrainingData,
    work: Path,
    settings: Settings,
    counts: dict[SplitName, int],
    progress: Progress,
) -> Candidate:
    """Train on the pairs in `work`, and save the candidate."""
    options, parent, base = spec.options, encoder.fingerprint, encoder.name
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
    _write(encoder, candidate, model_card(base, spec, candidate, own_classes=own), work / "runs")
    return candidate


def candidate_stem(base: str) -> str:
    """Return the prefix of a candidate's name, from its base model.

    >>> candidate_stem("/models/my clip"), candidate_stem("starter-0123abcd")
    ('my-clip', 'starter')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(CANDIDATE_NAME, "", Path(base).name))


@contextmanager
def _prepared(
    options: TrainingOptions,
    encoder: SentenceEncoder,
    material: StoredTrainingData,
    work: Path,
    progress: Progress,
) -> Iterator[tuple[SentenceTransformer, Collate, dict[SplitName, Dataset]]]:
    """Yield the module to train, the collator and the pairs.

    The result is merged into `encoder` afterwards.
    """
    rows = {part: read_pairs(work, part) for part in get_args(SplitName)}
    model, what = encoder.model, options.what
    if what == "head":
        own = model[-1]
        if isinstance(own, PictureHead):
            model.pop(-1)
        texts = sorted({name for part in rows.values() for name in part["text"]})
        pictures = sorted({sha256 for part in rows.values() for sha256 in _pictures_of(part)})
        advance = stage_steps(progress, "embed", len(texts) + len(pictures))
        frozen = encode_frozen(encoder, texts, pictures, material, work / "frozen", advance=advance)
        new = PictureHead(frozen.inputs.shape[1], frozen.texts.shape[1])
        head = own if isinstance(own, PictureHead) else new
        present = {part: _present(pairs, frozen) for part, pairs in rows.items()}
        yield head_alone(model, head), frozen, present
        model.append(head)
        return
    if what == "lora":
        add_lora(model, options.seed)
    yield model, LiveBatches(encoder, material, CHUNK), rows
    if what == "lora":
        merge_lora(model)


def _pictures_of(pairs: Dataset) -> Iterator[str]:
    yield from pairs["picture"]
    for negatives in pairs["negatives"]:
        yield from negatives


def _present(pairs: Dataset, frozen: FrozenFeatures) -> Dataset:
    """Return the pairs with an available text and image."""
    return pairs.select([number for number, row in enumerate(pairs) if frozen.has(row)])


def _write(encoder: SentenceEncoder, candidate: Candidate, card: str, logs: Path) -> None:
    """Save the model to its folder atomically, after loading it for verification."""
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


def _register(stores: Stores, encoder: SentenceEncoder, spec: TrainingSpec, candidate: Candidate) -> None:
    training = {
        "base": encoder.name,
        "options": spec.options.as_json(),
        "split": spec.split.as_json(),
        "hard_negatives": spec.hard_negatives,
        "judgments": None if spec.judgments is None else spec.judgments.name,
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
