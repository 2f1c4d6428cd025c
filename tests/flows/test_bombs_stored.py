"""Pass bombs through every flow, from a source and from the stores."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
from sqlalchemy import text

from embedding.encoders.sentence_encoder import load_encoder
from embedding.images.decode import DECODE_BYTES
from embedding.training.trainer import TrainedPart, options_of
from flows.config.settings import Settings
from flows.datasets.near_duplicates import near_duplicates
from flows.datasets.test_sets import EvaluationChoice, choose_test_set
from flows.evaluation.evaluate import evaluate
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.ingestion.retry_rejects import retry_rejects
from flows.maintenance.repair import repair
from flows.reindexing.reindex import MissingImages
from flows.resources.connections import Deps
from flows.search.gallery import render
from flows.search.query import Query, gallery_page, search
from flows.training.finetune import train_candidate
from flows.training.spec import TrainingSpec
from storage import qdrant
from storage.postgres import perceptual_hashes, rejects
from tests.flows.test_bombs import OWN_MIB
from tests.flows.test_finetune import a_set as a_set_to_learn_from
from tests.flows.test_reindex import a_set, forced, with_models
from tests.support import bombs
from tests.support.builders import a_folder, png
from tests.support.tiny_clip import write_tiny_clip
from tests.support.trainer import an_order
from tests.support.watching import MIB, watched

pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")

FEW = ("flat.webp", "more-scans.jpg", "large.gif", "tile.tiff")
GROWN_MIB = 150
REJECTED = tuple(name for name, reason in bombs.OUTCOMES.items() if reason)
few_or_all = pytest.mark.parametrize(
    "names", [FEW, pytest.param(tuple(bombs.OUTCOMES), marks=pytest.mark.full)], ids=["few", "all"]
)


@pytest.fixture
def lenient(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_reject_share": 1.0})


def planted(deps: Deps, images: Iterable[bytes]) -> set[str]:
    """Have the first items of a set be stored with bombs, as a release accepted them that knew no limits."""
    assert deps.blobs is not None
    planted = set()
    for number, data in enumerate(images):
        sha256 = hashlib.sha256(data).hexdigest()
        planted.add(sha256)
        deps.blobs.put(sha256, data)
        with deps.sessions.begin() as session:
            changed = session.execute(
                text("update items set image_sha256 = :sha256 where key = :key returning 1"),
                {"sha256": sha256, "key": str(number)},
            )
            assert changed.all() == [(1,)]
    return planted


def of(names: tuple[str, ...]) -> list[bytes]:
    return [bombs.image(name) for name in names]


def open_rejects(deps: Deps) -> dict[str, str]:
    with deps.sessions() as session:
        return {reject.place: reject.reason for reject in rejects.open_rejects(session)}


def is_bounded(most: dict[str, float]) -> bool:
    return most["own"] < GROWN_MIB and most["worker"] < DECODE_BYTES / MIB + OWN_MIB


@few_or_all
def test_an_ingest_rejects_each_bomb_for_its_reason_and_so_does_a_retry(
    deps: Deps, lenient: Settings, tmp_path: Path, names: tuple[str, ...]
):
    reasons = {name: reason for name in names if (reason := bombs.OUTCOMES[name])}
    images = {name: bombs.image(name) for name in names}
    good = {f"good{number}.png": png(size=(16, 17 + number)) for number in range(8)}
    folder = a_folder(tmp_path / "shop", {**images, **good})

    with watched() as most:
        report = ingest_source(deps, lenient, Request(folder))
        rejected = open_rejects(deps)
        a_folder(folder, {"flat.webp": png("green")})
        [retried] = retry_rejects(deps, lenient)

    assert rejected == reasons
    assert report.embedded == len(good) + len(names) - len(reasons)
    assert (retried.tried, retried.open) == (len(reasons), len(reasons) - 1)
    assert open_rejects(deps) == {name: reason for name, reason in reasons.items() if name != "flat.webp"}
    assert is_bounded(most)


@few_or_all
def test_a_reindex_leaves_stored_bombs_behind_or_says_which_they_are(
    deps: Deps, settings: Settings, tmp_path: Path, names: tuple[str, ...]
):
    ingest_source(deps, settings, Request(a_set(tmp_path / "shop", 15)))
    planted(deps, of(names))
    bad = sum(name in REJECTED for name in names)

    with watched() as most:
        with pytest.raises(MissingImages, match=f"{bad} items have no usable image"):
            forced(deps, settings)
        switched = forced(deps, settings, max_missing=bad)

    assert len(switched.missing) == bad
    assert not any("gone" in why for why in switched.missing)
    assert qdrant.count(deps.vectors, switched.collection) == 15 - bad
    assert is_bounded(most)


def able_to_learn(deps: Deps, settings: Settings, folder: Path) -> tuple[Deps, Settings]:
    """Stores with 60 captioned images, embedded by a model that can be trained."""
    model = write_tiny_clip(folder / "tiny")
    learning = settings.model_copy(update={"model": str(model), "batch_size": 64})
    deps = replace(deps, encoder=load_encoder(str(model), device="cpu"))
    ingest_source(deps, learning, Request(a_set_to_learn_from(folder / "set")))
    return deps, learning


@pytest.mark.full  # the next one learns beside bombs as well
@pytest.mark.parametrize("what", ["head", "lora"])
def test_a_training_learns_from_all_but_stored_bombs(
    deps: Deps, settings: Settings, tmp_path: Path, what: TrainedPart
):
    deps, learning = able_to_learn(deps, settings, tmp_path)
    planted(deps, of(REJECTED))

    with watched() as most:
        candidate = train_candidate(deps, learning, an_order(what))

    assert sum(candidate.pairs.values()) == 2 * (60 - len(REJECTED))
    assert candidate.folder.is_dir()
    assert most["worker"] < DECODE_BYTES / MIB + OWN_MIB


def test_a_training_passes_batches_by_that_hold_nothing_but_bombs(
    deps: Deps, settings: Settings, tmp_path: Path
):
    """They were hashed by an older release, so that there are pairs of them."""
    deps, learning = able_to_learn(deps, settings, tmp_path)
    bomb = bombs.image("claim.bmp")
    known = planted(deps, [bomb + bytes([number]) for number in range(40)])
    with deps.sessions.begin() as session:
        perceptual_hashes.save_hashes(session, {sha256: int(sha256[:16], 16) for sha256 in known})

    candidate = train_candidate(deps, learning, TrainingSpec(options_of("lora", epochs=1, batch_size=2)))

    assert sum(candidate.pairs.values()) == 2 * 60
    assert candidate.folder.is_dir()
    assert all(isfinite(one) for figures in candidate.after.values() for one in figures.values())


@few_or_all
def test_what_else_reads_stored_images_passes_bombs_by(
    deps: Deps, settings: Settings, tmp_path: Path, names: tuple[str, ...]
):
    bad = [name for name in names if name in REJECTED]
    ingest_source(deps, settings, Request(a_set(tmp_path / "shop", 15)))
    planted(deps, of(tuple(bad)))
    [collection] = [one.name for one in deps.vectors.get_collections().collections]

    with watched() as most:
        alike = near_duplicates(deps, settings.limits)
        everything = choose_test_set(deps, settings, EvaluationChoice(), ())
        figures = evaluate(deps, settings, (), everything, load=lambda *_: deps.encoder)
        page = gallery_page(
            deps, search(with_models(deps, settings), Query("red", limit=15)), settings.limits
        )
        shown = render(page)
        deps.vectors.delete(collection, [one.id for one in deps.vectors.scroll(collection, limit=20)[0]])
        mended = repair(deps, settings, max_delete=1, yes=True)

    assert alike is not None
    assert figures is not None
    assert shown.count("data:image/jpeg") == 15 - len(bad)
    assert len(mended.unrepaired) == len(bad)
    assert is_bounded(most)
