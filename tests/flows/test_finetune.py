"""From records to a candidate: pairs, negatives, training, what a kill leaves, and what comes out."""

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sqlalchemy import select

from embedding.encoders.sentence_encoder import load_encoder
from embedding.images.preparation import Features
from embedding.training.batches import PairRow
from embedding.training.frozen_features import encode_frozen
from embedding.training.losses import LOSSES, LossName
from embedding.training.splits import Split, SplitName
from embedding.training.trainer import TrainedPart, figures_of, last_checkpoint, options_of
from flows.config.settings import Settings
from flows.datasets.hard_negatives import Candidate as Close
from flows.datasets.hard_negatives import select_negatives
from flows.datasets.relevance_judgments import BadJudgments, query_images, read_judgments
from flows.datasets.splits import split_images
from flows.datasets.training_pairs import (
    TooFewPairs,
    pairs_of_judgments,
    pairs_of_records,
    read_pairs,
    write_pairs,
)
from flows.ingestion.pipeline import ingest_source
from flows.ingestion.request import Request
from flows.resources.connections import Deps, Stores, open_stores, with_model
from flows.training.finetune import train_candidate
from flows.training.spec import TrainingSpec
from storage.postgres import catalog, model_registry
from storage.postgres.locks import Busy, flow_lock
from storage.postgres.schema import RunRow
from tests.support import forks
from tests.support.builders import a_folder, a_manifest, encoded
from tests.support.tiny_clip import write_tiny_clip
from tests.support.trainer import an_order, train

pytestmark = pytest.mark.services

PICTURES = 60


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("tiny clip"))


def scene(number: int) -> Image.Image:
    """A picture like no other: large patches of colour."""
    patches = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((96, 96), Image.Resampling.BICUBIC)


def a_set(folder: Path, many: int = PICTURES) -> Path:
    """A manifest of pictures, each with two captions of its own."""
    a_folder(folder, {f"{number}.png": encoded(scene(number), "PNG") for number in range(many)})
    rows = [
        {"key": str(number), "image": f"{number}.png", "texts": [f"scene {number}", f"view {number}"]}
        for number in range(many)
    ]
    return a_manifest(folder / "set.jsonl", rows)


@pytest.fixture
def trainable(settings: Settings, tiny_clip: Path) -> Settings:
    return settings.model_copy(update={"model": str(tiny_clip), "batch_size": 64})


@pytest.fixture
def stores(deps: Deps, trainable: Settings, tmp_path: Path) -> Stores:
    """Stores that hold a set, embedded by the tiny model."""
    deps = replace(deps, encoder=load_encoder(trainable.model, device="cpu"))
    ingest_source(deps, trainable, Request(a_set(tmp_path / "set")))
    return deps


def all_pairs(stores: Stores, settings: Settings, split: Split) -> list[tuple[SplitName, PairRow]]:
    return list(pairs_of_records(stores, split_images(stores, settings.limits, split)))


def test_each_embedded_text_makes_a_pair_with_its_picture(stores: Stores, trainable: Settings):
    pairs = all_pairs(stores, trainable, Split())

    assert len(pairs) == 2 * PICTURES
    assert len({row["text"] for _, row in pairs}) == 2 * PICTURES
    assert len({row["picture"] for _, row in pairs}) == PICTURES


@pytest.mark.parametrize("seed", range(5))
def test_no_picture_and_no_near_duplicate_of_it_is_on_both_sides(
    deps: Deps, settings: Settings, tmp_path: Path, seed: int
):
    originals = [scene(number) for number in range(12)]
    files: dict[str, bytes | str] = {}
    for number, picture in enumerate(originals):
        files[f"{number}.png"] = encoded(picture, "PNG")
        files[f"{number}-copy.png"] = encoded(picture, "PNG")
        files[f"{number}-small.jpg"] = encoded(picture.resize((72, 72)), "JPEG", quality=95)
    for name in list(files):
        files[str(Path(name).with_suffix(".txt"))] = f"the caption of {name}"
    ingest_source(deps, settings, Request(a_folder(tmp_path / "set", files)))

    pairs = all_pairs(deps, settings, Split(seed, held_out=0.4, validation=0.2))

    with deps.sessions() as session:
        of_key = {item.image.sha256: item.key for item in catalog.captioned_images(session) if item.image}
    sides: dict[str, set[SplitName]] = {}
    for part, row in pairs:
        sides.setdefault(of_key[row["picture"]].partition(".")[0].partition("-")[0], set()).add(part)
    assert all(len(parts) == 1 for parts in sides.values())
    assert len({part for parts in sides.values() for part in parts}) > 1


def test_what_is_held_out_by_its_key_takes_its_whole_group_along(
    deps: Deps, settings: Settings, tmp_path: Path
):
    files: dict[str, bytes | str] = {}
    for name, picture in (("a", scene(1)), ("a2", scene(1).resize((72, 72))), ("b", scene(2))):
        files |= {f"{name}.png": encoded(picture, "PNG"), f"{name}.txt": name}
    ingest_source(deps, settings, Request(a_folder(tmp_path / "set", files)))

    pairs = all_pairs(deps, settings, Split(validation=0.0, keys=("a.png",)))

    assert Counter(part for part, _ in pairs) == {"held-out": 2, "train": 1}


def test_pairs_are_ids_in_a_file(stores: Stores, trainable: Settings, tmp_path: Path):
    pairs = all_pairs(stores, trainable, Split())

    counts = write_pairs(tmp_path / "pairs", iter(pairs))

    assert counts == Counter(part for part, _ in pairs)
    for part in counts:
        assert list(read_pairs(tmp_path / "pairs", part)) == [row for own, row in pairs if own == part]
    assert sum(path.stat().st_size for path in (tmp_path / "pairs").iterdir()) < 500 * len(pairs)


def test_a_judgment_makes_a_pair_and_what_is_irrelevant_its_negative(
    stores: Stores, trainable: Settings, tmp_path: Path
):
    sides = split_images(stores, trainable.limits, Split(held_out=0.0, validation=0.0))
    path = a_manifest(
        tmp_path / "clicks.jsonl",
        [
            {"query": "a view", "key": "1", "relevance": 2},
            {"query": "a view", "key": "2", "relevance": 0},
            {"query": "a view", "key": "nobody"},
        ],
    )

    [(part, row)] = pairs_of_judgments(stores, sides, list(read_judgments(path)))

    with stores.sessions() as session:
        [first], [second] = (catalog.items_with_key(session, key, None) for key in "12")
    assert part == "train"
    assert first.image is not None
    assert second.image is not None
    assert (row["picture"], row["negatives"]) == (first.image.sha256, [second.image.sha256])


def test_a_judged_picture_makes_a_pair_with_each_text_of_its_item_and_is_never_on_two_sides(
    stores: Stores, trainable: Settings, tmp_path: Path
):
    """The query is a resized copy of the stored picture 3, so it belongs to that one's side."""
    scene(3).resize((72, 72)).save(tmp_path / "query.png")
    judged = [{"image": "query.png", "key": "3"}, {"image": "query.png", "key": "7"}]
    judgments = list(read_judgments(a_manifest(tmp_path / "clicks.jsonl", judged)))
    [sha256] = query_images(judgments)

    for seed in range(4):
        sides = split_images(stores, trainable.limits, Split(seed, held_out=0.5), judgments)
        with stores.sessions() as session:
            [three], [seven] = (catalog.items_with_key(session, key, None) for key in "37")
        assert three.image is not None
        assert seven.image is not None
        part, other = sides.part_of(three.image.sha256), sides.part_of(seven.image.sha256)

        pairs = list(pairs_of_judgments(stores, sides, judgments))

        assert {row["picture"] for _, row in pairs} == {sha256}
        assert {own for own, _ in pairs} == {part}
        assert len(pairs) == (4 if part == other else 2)


def test_a_training_learns_from_judged_pictures_too(stores: Stores, trainable: Settings, tmp_path: Path):
    scene(1000).save(tmp_path / "query.png")
    judgments = a_manifest(tmp_path / "clicks.jsonl", [{"image": "query.png", "key": "3"}])

    plain = train_candidate(stores, trainable, an_order("head"))
    judged = train_candidate(stores, trainable, replace(an_order("head"), judgments=judgments))

    assert sum(judged.pairs.values()) == sum(plain.pairs.values()) + 2


@pytest.mark.parametrize(
    "line",
    [
        "red",
        "[]",
        '{"query": "red"}',
        '{"query": 1, "key": "a"}',
        '{"query": "a", "image": "b.png", "key": "a"}',
        '{"image": "nowhere.png", "key": "a"}',
        '{"query": "a", "key": "b", "relevance": -1}',
    ],
)
def test_a_line_that_is_no_judgment_is_named(tmp_path: Path, line: str):
    path = tmp_path / "clicks.jsonl"
    path.write_text('{"query": "a", "key": "b"}\n' + line + "\n")

    with pytest.raises(BadJudgments, match=r"clicks\.jsonl, line 2"):
        list(read_judgments(path))


def test_a_false_negative_is_none():
    row = PairRow(text="t", picture="own", text_group=7, picture_group=1, negatives=[], negative_groups=[])
    nothing: frozenset[int] = frozenset()
    good = Close("good", 2, nothing, 0.60)
    further = Close("further", 3, nothing, 0.40)
    false = [
        Close("as close as its own", 4, nothing, 0.78),
        Close("closer than its own", 5, nothing, 0.95),
        Close("the same picture, or nearly", 1, nothing, 0.50),
        Close("has the same caption", 6, frozenset({7}), 0.50),
    ]
    again = Close("good once more, resized", 2, nothing, 0.59)

    assert select_negatives(row, 0.8, [further, *false, again, good], many=5) == [good, further]
    assert select_negatives(row, 0.8, [further, good], many=1) == [good]


def test_a_held_out_picture_is_nobodys_negative(stores: Stores, trainable: Settings):
    order = TrainingSpec(options_of("head", epochs=1, batch_size=8), hard_negatives=3)
    mined: list[PairRow] = []

    def keep_pairs(stage: str, done: int, _of: int) -> None:
        if stage == "train" and done == 1:
            [work] = (trainable.home / "training").iterdir()
            mined.extend(read_pairs(work, "train"))

    train_candidate(stores, trainable, order, progress=keep_pairs)

    sides = split_images(stores, trainable.limits, Split())
    negatives = [sha256 for row in mined for sha256 in row["negatives"]]
    assert len(negatives) > len(mined)
    assert {sides.part_of(sha256) for sha256 in negatives} == {"train"}


class Counted:
    """Material that counts what it is asked for, and may fail."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked, self._fail_after = 0, fail_after

    def texts(self, names: Sequence[str]) -> list[str | None]:
        self.asked += len(names)
        if self._fail_after is not None and self.asked > self._fail_after:
            raise KeyboardInterrupt
        return [None if name == "gone" else name for name in names]

    def images(self, shas: Sequence[str]) -> list[Features | None]:
        return [None for _ in shas]


def test_what_was_embedded_before_a_kill_is_not_embedded_again(tiny_clip: Path, tmp_path: Path):
    encoder = load_encoder(str(tiny_clip), device="cpu")
    names = [*(f"text {number}" for number in range(600)), "gone"]
    with pytest.raises(KeyboardInterrupt):
        encode_frozen(encoder, names, [], Counted(fail_after=300), tmp_path / "frozen")

    second = Counted()
    resumed = encode_frozen(encoder, names, [], second, tmp_path / "frozen")
    whole = encode_frozen(encoder, names, [], Counted(), tmp_path / "anew")

    assert second.asked == len(names) - 256
    assert list(resumed.text_rows) == names[:-1]
    np.testing.assert_array_equal(resumed.texts[:600], whole.texts[:600])


def test_a_checkpoint_that_was_being_written_is_none(tmp_path: Path):
    for step, state in ((5, "{}"), (10, "{}"), (15, '{"cut sh')):
        a_folder(tmp_path / f"checkpoint-{step}", {"trainer_state.json": state})
    (tmp_path / "checkpoint-20").mkdir()

    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "checkpoint-10"}


def test_figures_of_pairs_count_captions_as_queries_and_images_by_their_best_caption():
    texts = torch.eye(4)[[0, 1, 2, 3]]
    images = torch.stack([texts[1], texts[1], texts[0] * 0.8 + texts[3] * 0.6, texts[2]])

    found = figures_of(texts, images, torch.tensor([5, 5, 9, 7]))

    # the first caption is closer to another image; the last one is of an image that is as close to no other
    assert found["text_to_image"]["recall@1"] == pytest.approx(1 / 4)
    # images, not captions: 5 is found by its second caption, 9 and 7 rank another image's caption first
    assert found["image_to_text"]["recall@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("what", ["head", "lora", "all"])
def test_a_candidate_is_a_folder_that_sentence_transformers_loads(
    stores: Stores, trainable: Settings, what: TrainedPart
):
    order = TrainingSpec(options_of(what, epochs=2, batch_size=16))

    candidate = train_candidate(stores, trainable, order)

    own = any(path.name.endswith("PictureHead") for path in candidate.folder.iterdir())
    model = SentenceTransformer(str(candidate.folder), device="cpu", trust_remote_code=own)
    encoder = load_encoder(candidate.name, device="cpu", folder=candidate.folder)
    [row] = model.encode(["a view"], normalize_embeddings=True)
    np.testing.assert_allclose(row, encoder.texts(["a view"])[0], atol=1e-6)
    assert encoder.fingerprint == candidate.fingerprint != candidate.parent
    assert candidate.pairs["train"] + candidate.pairs["validation"] + candidate.pairs["held-out"] == 120
    card = (candidate.folder / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert f"recall@10 in validation {candidate.trained.best:.3f}" in card
    assert list((candidate.folder / "runs").glob("events.out.tfevents.*"))
    assert not list((trainable.home / "training").iterdir())


def test_a_candidate_is_on_record_with_its_parent_and_how_it_was_made(stores: Stores, trainable: Settings):
    candidate = train_candidate(stores, trainable, an_order("head"))

    with stores.sessions() as session:
        model = model_registry.model_named(session, candidate.name)
        run = session.scalars(select(RunRow).where(RunRow.flow == "finetune")).one()
    assert model is not None
    assert (model.fingerprint, model.parent, model.state) == (
        candidate.fingerprint,
        candidate.parent,
        "candidate",
    )
    assert model.training["after"] == candidate.after
    assert Split.from_json(model.training["split"]) == Split()
    assert run.outcome == "completed"
    assert run.counts["candidate"] == candidate.name


@pytest.mark.parametrize(
    "loss",  # tests/embedding/test_losses.py has each of them
    [
        pytest.param(loss, marks=() if loss in ("infonce", "multi-similarity") else pytest.mark.full)
        for loss in LOSSES
    ],
)
def test_every_loss_trains(stores: Stores, trainable: Settings, loss: LossName):
    order = TrainingSpec(options_of("head", {loss: 1.0, "infonce": 0.5}, epochs=2, batch_size=16))

    candidate = train_candidate(stores, trainable, order)

    assert candidate.fingerprint != candidate.parent
    assert candidate.trained.steps > 0


def test_the_same_order_makes_the_same_candidate(stores: Stores, trainable: Settings):
    order = an_order("head")
    other = replace(order, options=replace(order.options, seed=1))

    first, again, third = (train_candidate(stores, trainable, one) for one in (order, order, other))

    assert first.fingerprint == again.fingerprint != third.fingerprint


def test_too_little_to_learn_from_is_an_error_that_says_so(deps: Deps, trainable: Settings, tmp_path: Path):
    deps = replace(deps, encoder=load_encoder(trainable.model, device="cpu"))
    ingest_source(deps, trainable, Request(a_set(tmp_path / "set", many=3)))

    with pytest.raises(TooFewPairs, match="ingest more captioned images"):
        train_candidate(deps, trainable, TrainingSpec())


def test_two_trainings_at_once_are_one_too_many(stores: Stores, trainable: Settings):
    with flow_lock(stores.engine, "training"), pytest.raises(Busy, match="another training"):
        train_candidate(stores, trainable.model_copy(update={"retry_for_s": 0}), TrainingSpec())


def test_a_picture_that_is_gone_meanwhile_does_not_end_a_training(stores: Stores, trainable: Settings):
    assert stores.blobs is not None
    with stores.sessions() as session:
        [item] = catalog.items_with_key(session, "7", None)
    assert item.image is not None
    stores.blobs.delete(item.image.sha256)
    Path(item.image.uri).unlink()

    candidate = train_candidate(stores, trainable, an_order("head"))

    assert candidate.folder.is_dir()


@pytest.fixture
def own_home(home: Path, tiny_clip: Path, tmp_path: Path) -> Iterator[tuple[Stores, Settings]]:
    """A home with servers of its own, which other processes can use as well."""
    settings = Settings(home=home, model=str(tiny_clip), decode_workers=0)
    with open_stores(settings) as stores:
        ingest_source(with_model(stores, settings), settings, Request(a_set(tmp_path / "set")))
        yield stores, settings


@pytest.mark.full  # two trainings; what a checkpoint holds is tried without
@pytest.mark.parametrize("what", ["head", pytest.param("lora", marks=pytest.mark.full)])
def test_a_training_that_was_killed_goes_on_and_comes_to_the_same(
    own_home: tuple[Stores, Settings], what: TrainedPart
):
    stores, settings = own_home
    killed = forks.run(train, settings.home, settings.model, what, 15)
    [work] = (settings.home / "training").iterdir()
    checkpoints = list((work / "checkpoints").glob("checkpoint-*"))
    steps: list[int] = []
    resumed = train_candidate(
        stores,
        settings,
        an_order(what),
        progress=lambda stage, done, _: steps.append(done) if stage == "train" else None,
    )
    undisturbed = train_candidate(stores, settings, an_order(what))

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoints
    assert steps[0] > 10  # after the last checkpoint, not at the beginning
    assert resumed.fingerprint == undisturbed.fingerprint
    assert resumed.after == undisturbed.after
    with stores.sessions() as session:
        runs = session.scalars(select(RunRow).where(RunRow.flow == "finetune").order_by(RunRow.started))
        assert [run.outcome for run in runs] == ["crashed", "completed", "completed"]
