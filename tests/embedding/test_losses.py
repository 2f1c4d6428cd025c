"""Test losses against values by hand and reference implementations."""

import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim
from torch import Tensor
from torch.nn.functional import normalize

from embedding.encoders.head import PictureHead
from embedding.training.losses import LOSSES, TEMPERATURE, TRIPLET_MARGIN, Groups, PairLoss

pytestmark = pytest.mark.services

CLOSE = {"rel": 1e-5, "abs": 1e-6}


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def all_different(n: int, pictures: int | None = None) -> Tensor:
    return Groups(torch.arange(n), torch.arange(n if pictures is None else pictures)).negatives()


def at_angles(*degrees: float) -> Tensor:
    """Return unit rows in the plane."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


class Fixed(torch.nn.Module):
    """Return its inputs as vectors, with sentence-transformers' interface."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def test_infonce_equals_that_of_sentence_transformers():
    texts, pictures = unit(8, 5), unit(8, 5, seed=1)

    theirs = MultipleNegativesRankingLoss(
        Fixed(),
        scale=1 / TEMPERATURE,
        similarity_fct=cos_sim,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    reference = theirs([{"sentence_embedding": texts}, {"sentence_embedding": pictures}], None)

    assert LOSSES["infonce"](texts, pictures, all_different(8)).item() == pytest.approx(
        reference.item(), **CLOSE
    )


def test_infonce_by_hand_with_a_mined_negative():
    texts, pictures = at_angles(0, 90), at_angles(0, 90, 60)

    found = LOSSES["infonce"](texts, pictures, all_different(2, 3)).item()

    scores = [(1, 0, math.cos(math.radians(60))), (1, 0, math.cos(math.radians(30)))]
    of_texts = sum(-math.log(math.exp(20 * s[0]) / sum(math.exp(20 * x) for x in s)) for s in scores) / 2
    of_pictures = -math.log(math.exp(20) / (math.exp(20) + 1))
    assert found == pytest.approx((of_texts + of_pictures) / 2, **CLOSE)


def test_the_same_caption_or_a_near_duplicate_is_no_negative():
    texts, pictures = unit(3, 4), unit(3, 4, seed=1)
    same_caption = Groups(torch.tensor([7, 7, 8]), torch.tensor([0, 1, 2])).negatives()
    same_picture = Groups(torch.tensor([5, 6, 7]), torch.tensor([0, 0, 2])).negatives()

    assert same_caption.tolist() == same_picture.tolist()
    assert same_caption.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    for loss in LOSSES.values():
        moved = pictures.clone()
        moved[1] = texts[0]  # as close to the first text as can be
        alone = loss(texts[[0, 2]], moved[[0, 2]], all_different(2))
        assert torch.isfinite(loss(texts, moved, same_caption))
        assert loss(texts[[0, 2]], moved[[0, 2]], same_caption[[0, 2]][:, [0, 2]]) == alone


def test_batch_hard_by_hand():
    texts, pictures = at_angles(0, 90), at_angles(10, 30)

    found = LOSSES["triplet-batch-hard"](texts, pictures, all_different(2)).item()

    cos = {angle: math.cos(math.radians(angle)) for angle in (10, 30, 60, 80)}
    of_texts = (max(0, TRIPLET_MARGIN - cos[10] + cos[30]) + max(0, TRIPLET_MARGIN - cos[60] + cos[80])) / 2
    of_pictures = (
        max(0, TRIPLET_MARGIN - cos[10] + cos[80]) + max(0, TRIPLET_MARGIN - cos[60] + cos[30])
    ) / 2
    assert found == pytest.approx((of_texts + of_pictures) / 2, **CLOSE)


def test_batch_hard_picks_the_negatives_of_metric_learnings_miner():
    texts, pictures, own = unit(12, 6), unit(12, 6, seed=1), torch.arange(12)
    hardest = BatchHardMiner(distance=CosineSimilarity())

    def one_way(anchors: Tensor, others: Tensor) -> float:
        a, p, n = hardest(anchors, own, others, own.clone())
        hinges = TRIPLET_MARGIN - (anchors[a] * others[p]).sum(1) + (anchors[a] * others[n]).sum(1)
        return torch.relu(hinges).mean().item()

    found = LOSSES["triplet-batch-hard"](texts, pictures, all_different(12)).item()

    assert found == pytest.approx((one_way(texts, pictures) + one_way(pictures, texts)) / 2, **CLOSE)


def test_semi_hard_takes_the_hardest_of_those_that_are_further_and_else_the_furthest():
    texts, pictures = at_angles(0, 0, 0), at_angles(40, 10, 50)

    found = LOSSES["triplet-semi-hard"](texts, pictures, all_different(3)).item()

    cos = {angle: math.cos(math.radians(angle)) for angle in (10, 40, 50)}
    negative_of = {40: cos[50], 10: cos[40], 50: cos[40]}  # of 50 all are closer: the furthest is 40
    of_texts = sum(max(0, TRIPLET_MARGIN - cos[own] + hard) for own, hard in negative_of.items()) / 3
    of_pictures = TRIPLET_MARGIN  # all texts are the same, so each negative is as close as the own
    assert found == pytest.approx((of_texts + of_pictures) / 2, **CLOSE)


def test_contrastive_equals_that_of_metric_learning():
    texts, pictures, own = unit(8, 5), unit(8, 5, seed=1), torch.arange(8)
    theirs = ContrastiveLoss(pos_margin=1, neg_margin=0.5, distance=CosineSimilarity())

    reference = theirs(texts, own, ref_emb=pictures, ref_labels=own.clone()) / 2
    reference = reference + theirs(pictures, own, ref_emb=texts, ref_labels=own.clone()) / 2

    found = LOSSES["contrastive"](texts, pictures, all_different(8))
    assert found.item() == pytest.approx(reference.item(), **CLOSE)


def test_contrastive_by_hand():
    texts, pictures = at_angles(0, 90), at_angles(60, 60)

    found = LOSSES["contrastive"](texts, pictures, all_different(2)).item()

    near, far = math.cos(math.radians(60)), math.cos(math.radians(30))
    positives = ((1 - near) + (1 - far)) / 2
    negatives = far - 0.5  # the mean of those that have a loss
    assert found == pytest.approx(positives + negatives, **CLOSE)


def test_multi_similarity_equals_that_of_metric_learning():
    texts, pictures, own = unit(16, 5), unit(16, 5, seed=1), torch.arange(16)
    theirs, miner = MultiSimilarityLoss(alpha=2, beta=50, base=0.5), MultiSimilarityMiner()

    def one_way(anchors: Tensor, others: Tensor) -> float:
        pairs = miner(anchors, own, others, own.clone())
        return theirs(anchors, own, pairs, others, own.clone()).item()

    found = LOSSES["multi-similarity"](texts, pictures, all_different(16)).item()

    assert found == pytest.approx((one_way(texts, pictures) + one_way(pictures, texts)) / 2, **CLOSE)


def test_the_sum_of_losses_has_their_weights():
    texts, pictures = unit(6, 4), unit(6, 4, seed=1)
    sides = [[{"sentence_embedding": texts}], [{"sentence_embedding": pictures}]]
    groups = Groups(torch.arange(6), torch.arange(6))

    both = PairLoss(Fixed(), {"infonce": 1.0, "contrastive": 0.5})(sides, groups).item()

    negatives = groups.negatives()
    parts = {name: LOSSES[name](texts, pictures, negatives).item() for name in ("infonce", "contrastive")}
    assert both == pytest.approx(parts["infonce"] + 0.5 * parts["contrastive"], **CLOSE)


def test_an_unknown_loss_is_rejected_with_the_known_ones():
    with pytest.raises(ValueError, match="no loss is called 'arcface'; there are infonce, "):
        PairLoss(Fixed(), {"arcface": 1.0})


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_falls_on_a_toy_problem_and_pairs_end_closest(name: str):
    torch.manual_seed(0)
    features, texts = unit(24, 12), unit(24, 12, seed=1)
    head = PictureHead(12, 12, dropout=0.0)
    pictures = [{"sentence_embedding": features}]
    loss_of = PairLoss(_Toy(head), {name: 1.0})
    groups = Groups(torch.arange(24), torch.arange(24))
    steps = torch.optim.Adam(head.parameters(), lr=0.05)
    sides = [[{"sentence_embedding": texts}], pictures]
    first = loss_of(sides, groups).item()

    for _ in range(300):
        steps.zero_grad()
        loss = loss_of(sides, groups)
        loss.backward()
        steps.step()

    assert loss.item() < 0.5 * first
    moved = head({"sentence_embedding": features, "head_input": features})["sentence_embedding"]
    nearest = (texts @ moved.T).argmax(dim=1)
    assert (nearest == torch.arange(24)).float().mean() > 0.7


class _Toy(torch.nn.Module):
    """Keep texts, and pass images through a head."""

    def __init__(self, head: PictureHead) -> None:
        super().__init__()
        self.head = head
        self.calls = 0

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        is_picture = self.calls % 2 == 0
        if is_picture:
            features["head_input"] = features["sentence_embedding"]
        return self.head(features)


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_give_the_gradients_of_the_whole_batch(name: str):
    texts, pictures = unit(12, 6), unit(15, 6, seed=1)
    groups = Groups(torch.arange(12), torch.arange(15))

    def gradient(chunk: int) -> tuple[float, Tensor]:
        head = PictureHead(6, 6, dropout=0.0)
        torch.nn.init.eye_(head.map.weight)
        sides = [
            [{"sentence_embedding": rows} for rows in texts.split(chunk)],
            [{"sentence_embedding": rows, "head_input": rows} for rows in pictures.split(chunk)],
        ]
        loss = PairLoss(head, {name: 1.0})(sides, groups)
        (2 * loss).backward()  # as a scaler of mixed precision does
        return loss.item(), head.map.weight.grad

    whole, in_chunks = gradient(100), gradient(4)

    assert in_chunks[0] == pytest.approx(whole[0], **CLOSE)
    assert torch.allclose(in_chunks[1], whole[1], atol=1e-6)
    assert whole[1].abs().max() > 1e-4


def test_dropout_leaves_out_the_same_when_a_chunk_is_embedded_again():
    texts, pictures = unit(8, 6), unit(8, 6, seed=1)
    groups = Groups(torch.arange(8), torch.arange(8))
    seen: list[Tensor] = []

    class Watched(PictureHead):
        def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
            features = super().forward(features)
            seen.append(features["sentence_embedding"].detach())
            return features

    head = Watched(6, 6, dropout=0.5)
    torch.nn.init.eye_(head.map.weight)
    sides = [
        [{"sentence_embedding": texts}],
        [{"sentence_embedding": rows, "head_input": rows} for rows in pictures.split(4)],
    ]

    PairLoss(head, {"infonce": 1.0})(sides, groups).backward()

    assert torch.equal(seen[1], seen[4])
    assert torch.equal(seen[2], seen[5])
    assert not torch.equal(seen[1], seen[2])
