"""What training makes smaller: losses over a batch of texts and images that belong together.

All of them compare unit rows by cosine, each text with all images of the batch and each image with all
texts. What may belong together without being a pair (the same image, a near duplicate, the same caption)
is no negative: it is left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from embedding.encoders.head import VECTOR

LossName = Literal["infonce", "triplet-semi-hard", "triplet-batch-hard", "contrastive", "multi-similarity"]
TEMPERATURE = 0.05
TRIPLET_MARGIN = 0.2
NEGATIVE_MARGIN = 0.5
"""Cosine that a contrastive negative may have for nothing."""

Features = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Groups:
    """What the rows of a batch show and say, as numbers: equal ones are the same."""

    texts: Tensor
    """Shape (n,), int64: captions with the same words have the same number."""

    pictures: Tensor
    """Shape (n + m,), int64: near duplicates have the same number; from n on the mined negatives."""

    def negatives(self) -> Tensor:
        """Return which images are negatives of which texts, shape (n, n + m), bool."""
        n = len(self.texts)
        same_picture = self.pictures[:n, None] == self.pictures[None, :]
        same_caption = torch.zeros_like(same_picture)
        same_caption[:, :n] = self.texts[:, None] == self.texts[None, :]
        return ~(same_picture | same_caption)


def infonce(texts: Tensor, pictures: Tensor, negatives: Tensor) -> Tensor:
    """Return the symmetric InfoNCE (van den Oord et al., 2018) as CLIP has it (Radford et al., 2021).

    Args:
        texts: shape (n, dim), unit rows.
        images: shape (n + m, dim), unit rows; the first n belong to the texts, m are only negatives.
        negatives: shape (n, n + m), bool, as `Groups.negatives` returns it.
    """
    n = len(texts)
    left_out = ~negatives
    left_out[:, :n].fill_diagonal_(fill_value=False)
    logits = (texts @ pictures.T / TEMPERATURE).masked_fill(left_out, -torch.inf)
    own = torch.arange(n, device=texts.device)
    return (cross_entropy(logits, own) + cross_entropy(logits[:, :n].T, own)) / 2


def batch_hard(texts: Tensor, pictures: Tensor, negatives: Tensor) -> Tensor:
    """Return the triplet loss with the hardest negative of the batch (VSE++; Faghri et al., 2018)."""
    return _both_ways(_hardest, texts, pictures, negatives)


def semi_hard(texts: Tensor, pictures: Tensor, negatives: Tensor) -> Tensor:
    """Return the triplet loss with semi-hard negatives (FaceNet; Schroff et al., 2015).

    These are the hardest of those that are further away than the own one. An anchor all of whose negatives
    are closer takes the furthest of them.
    """
    return _both_ways(_semi_hardest, texts, pictures, negatives)


def contrastive(texts: Tensor, pictures: Tensor, negatives: Tensor) -> Tensor:
    """Return the contrastive loss (Hadsell et al., 2006) over cosines."""
    loss = ContrastiveLoss(pos_margin=1.0, neg_margin=NEGATIVE_MARGIN, distance=CosineSimilarity())
    return _over_pairs(loss, texts, pictures, _all_pairs, negatives)


def multi_similarity(texts: Tensor, pictures: Tensor, negatives: Tensor) -> Tensor:
    """Return the multi-similarity loss over the pairs that its own miner picks (Wang et al., 2019)."""
    loss = MultiSimilarityLoss(alpha=2.0, beta=50.0, base=0.5)
    return _over_pairs(loss, texts, pictures, _multi_similarity_pairs, negatives)


LOSSES: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "infonce": infonce,
    "triplet-semi-hard": semi_hard,
    "triplet-batch-hard": batch_hard,
    "contrastive": contrastive,
    "multi-similarity": multi_similarity,
}


def _both_ways(
    hardest: Callable[[Tensor, Tensor, Tensor], Tensor], texts: Tensor, pictures: Tensor, negatives: Tensor
) -> Tensor:
    """Return the mean hinge of each text, and of each image that belongs to one, with its negative."""
    n = len(texts)
    scores = texts @ pictures.T
    own = scores[:, :n].diagonal()
    found = [hardest(scores, own, negatives), hardest(scores[:, :n].T, own, negatives[:, :n].T)]
    # an anchor without any negative has -inf, and so no loss
    return torch.stack([torch.relu(TRIPLET_MARGIN - own + hard).mean() for hard in found]).mean()


def _hardest(scores: Tensor, _: Tensor, negatives: Tensor) -> Tensor:
    return scores.masked_fill(~negatives, -torch.inf).amax(dim=1)


def _semi_hardest(scores: Tensor, own: Tensor, negatives: Tensor) -> Tensor:
    further = negatives & (scores < own[:, None])
    furthest = scores.masked_fill(~negatives, torch.inf).amin(dim=1)
    furthest = furthest.masked_fill(~negatives.any(dim=1), -torch.inf)
    return torch.where(further.any(dim=1), _hardest(scores, own, further), furthest)


Pairs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Anchors and their positives, anchors and their negatives, as positions."""


def _over_pairs(
    loss: Any,
    texts: Tensor,
    pictures: Tensor,
    pairs_of: Callable[[Tensor, Tensor, Tensor], Pairs],
    negatives: Tensor,
) -> Tensor:
    """Return the mean of a metric-learning loss with texts as anchors, and with images."""
    n = len(texts)
    own, others = pictures[:n], negatives[:, :n].T
    forth = loss(texts, indices_tuple=pairs_of(texts, pictures, negatives), ref_emb=pictures)
    back = loss(own, indices_tuple=pairs_of(own, texts, others), ref_emb=texts)
    return torch.stack([forth, back]).mean()


def _all_pairs(anchors: Tensor, _: Tensor, negatives: Tensor) -> Pairs:
    own = torch.arange(len(anchors), device=anchors.device)
    first, second = negatives.nonzero(as_tuple=True)
    return own, own, first, second


def _multi_similarity_pairs(anchors: Tensor, others: Tensor, negatives: Tensor) -> Pairs:
    own, rows = (torch.arange(len(side), device=anchors.device) for side in (anchors, others))
    first, positives, second, found = MultiSimilarityMiner()(anchors, own, others, rows)
    kept = negatives[second, found]
    return first, positives, second[kept], found[kept]


class PairLoss(torch.nn.Module):
    """The weighted sum of losses over batches of texts and images, as the library's trainer calls it.

    A batch that comes in several chunks is embedded chunk by chunk without its graph, and again for the
    gradients, so that memory is that of one chunk however large the batch (GradCache; Gao et al., 2021).

    Args:
        weights: by loss.
    """

    def __init__(self, model: SentenceTransformer, weights: Mapping[LossName, float]) -> None:
        super().__init__()
        if unknown := sorted(weights.keys() - set(get_args(LossName))):
            raise ValueError(f"no loss is called {unknown[0]!r}; there are {', '.join(get_args(LossName))}")
        self.model = model
        self.weights = dict(weights)

    def forward(self, sides: Sequence[Sequence[Features]], groups: Groups) -> Tensor:
        """Return the loss of a batch.

        Args:
            sides: the chunks of the texts, and those of the images: own ones first, then negatives.
            groups: what belongs together.
        """
        if all(len(chunks) == 1 for chunks in sides):
            texts, pictures = (self.embed(chunks[0]) for chunks in sides)
            return self._sum(texts, pictures, groups)
        if not torch.is_grad_enabled():
            texts, pictures = (torch.cat([self.embed(chunk) for chunk in chunks]) for chunks in sides)
            return self._sum(texts, pictures, groups)
        return self._cached(sides, groups)

    def _sum(self, texts: Tensor, pictures: Tensor, groups: Groups) -> Tensor:
        negatives = groups.negatives()
        parts = [weight * LOSSES[name](texts, pictures, negatives) for name, weight in self.weights.items()]
        return torch.stack(parts).sum()

    def embed(self, features: Features) -> Tensor:
        """Return the unit rows of a chunk, shape (n, dim), float32."""
        # of float32 also under mixed precision: a sum of exponentials has no room in 16 bits
        return normalize(self.model(dict(features))[VECTOR].float(), dim=-1)

    def _cached(self, sides: Sequence[Sequence[Features]], groups: Groups) -> Tensor:
        states: list[_ForwardState] = []
        rows = []
        with torch.no_grad():
            for chunk in (chunk for chunks in sides for chunk in chunks):
                states.append(_ForwardState(chunk))
                rows.append(self.embed(chunk).requires_grad_())
        with torch.enable_grad():
            texts, pictures = torch.cat(rows[: len(sides[0])]), torch.cat(rows[len(sides[0]) :])
            loss = self._sum(texts, pictures, groups)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = [row.grad for row in rows]
        result = loss.detach().requires_grad_()
        again = partial(self._embed_again, sides, states, gradients)
        result.register_hook(again)  # type: ignore[no-untyped-call]
        return result

    def _embed_again(
        self,
        sides: Sequence[Sequence[Features]],
        states: "Sequence[_ForwardState]",
        gradients: Sequence[Tensor | None],
        scale: Tensor,
    ) -> None:
        """Hand the gradients of a batch's rows on to the model's weights, chunk by chunk."""
        chunks = [chunk for side in sides for chunk in side]
        with torch.enable_grad():
            for chunk, state, gradient in zip(chunks, states, gradients, strict=True):
                if gradient is not None:
                    with state.again():
                        rows = self.embed(chunk)
                    if rows.requires_grad:  # a frozen tower has nothing to learn from its side
                        rows.backward(gradient * scale)  # type: ignore[no-untyped-call]


class _ForwardState:
    """Random numbers and precision of an embedding, so that the second one is the same as the first."""

    def __init__(self, features: Features) -> None:
        device = next(value.device for value in features.values() if isinstance(value, Tensor))
        self._gpus = [device.index] if device.type == "cuda" else []
        self._cpu_state = torch.get_rng_state()
        self._gpu_states = [torch.cuda.get_rng_state(gpu) for gpu in self._gpus]
        self._precision = partial(
            torch.autocast,
            device.type,
            torch.get_autocast_dtype(device.type),
            torch.is_autocast_enabled(device.type),
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng(self._gpus), self._precision():
            torch.set_rng_state(self._cpu_state)
            for gpu, state in zip(self._gpus, self._gpu_states, strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield
