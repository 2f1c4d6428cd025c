"""Compute losses over batches of text-image pairs.

All losses compare unit rows by cosine, each text with all images of the batch and each image with all
texts. Texts and images that may match without being a pair (the same image, a near duplicate, the same
caption) are not negatives: they are left out.
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
"""Cosine up to which a contrastive negative has no loss."""

Features = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Groups:
    """Store the group of each text and image of a batch."""

    texts: Tensor
    """Shape (n,), int64: equal for captions with the same words."""

    images: Tensor
    """Shape (n + m,), int64: equal for near duplicates; from n on the mined negatives."""

    def negatives(self) -> Tensor:
        """Return the negatives of each text, shape (n, n + m), bool."""
        n = len(self.texts)
        same_image = self.images[:n, None] == self.images[None, :]
        same_caption = torch.zeros_like(same_image)
        same_caption[:, :n] = self.texts[:, None] == self.texts[None, :]
        return ~(same_image | same_caption)


def infonce(texts: Tensor, images: Tensor, negatives: Tensor) -> Tensor:
    """Return the symmetric InfoNCE (van den Oord et al., 2018).

    As in CLIP (Radford et al., 2021).

    Args:
        texts: shape (n, dim), unit rows.
        images: shape (n + m, dim), unit rows; the first n match the texts, m are only negatives.
        negatives: shape (n, n + m), bool, as `Groups.negatives` returns it.
    """
    n = len(texts)
    left_out = ~negatives
    left_out[:, :n].fill_diagonal_(fill_value=False)
    logits = (texts @ images.T / TEMPERATURE).masked_fill(left_out, -torch.inf)
    own = torch.arange(n, device=texts.device)
    return (cross_entropy(logits, own) + cross_entropy(logits[:, :n].T, own)) / 2


def batch_hard(texts: Tensor, images: Tensor, negatives: Tensor) -> Tensor:
    """Return the triplet loss with the hardest negative of the batch.

    VSE++ (Faghri et al., 2018).
    """
    return _both_ways(_hardest, texts, images, negatives)


def semi_hard(texts: Tensor, images: Tensor, negatives: Tensor) -> Tensor:
    """Return the triplet loss with semi-hard negatives (FaceNet; Schroff et al., 2015).

    The negative is the hardest of those further away than the positive. An anchor whose negatives are all
    closer takes the furthest of them.
    """
    return _both_ways(_semi_hardest, texts, images, negatives)


def contrastive(texts: Tensor, images: Tensor, negatives: Tensor) -> Tensor:
    """Return the contrastive loss (Hadsell et al., 2006) over cosines."""
    loss = ContrastiveLoss(pos_margin=1.0, neg_margin=NEGATIVE_MARGIN, distance=CosineSimilarity())
    return _over_pairs(loss, texts, images, _all_pairs, negatives)


def multi_similarity(texts: Tensor, images: Tensor, negatives: Tensor) -> Tensor:
    """Return the multi-similarity loss with its own miner (Wang et al., 2019)."""
    loss = MultiSimilarityLoss(alpha=2.0, beta=50.0, base=0.5)
    return _over_pairs(loss, texts, images, _multi_similarity_pairs, negatives)


LOSSES: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "infonce": infonce,
    "triplet-semi-hard": semi_hard,
    "triplet-batch-hard": batch_hard,
    "contrastive": contrastive,
    "multi-similarity": multi_similarity,
}


def _both_ways(
    hardest: Callable[[Tensor, Tensor, Tensor], Tensor], texts: Tensor, images: Tensor, negatives: Tensor
) -> Tensor:
    """Return the mean hinge loss of both directions."""
    n = len(texts)
    scores = texts @ images.T
    own = scores[:, :n].diagonal()
    found = [hardest(scores, own, negatives), hardest(scores[:, :n].T, own, negatives[:, :n].T)]
    # an anchor without negatives has -inf, and so no loss
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
    images: Tensor,
    pairs_of: Callable[[Tensor, Tensor, Tensor], Pairs],
    negatives: Tensor,
) -> Tensor:
    """Return the mean metric-learning loss of both directions."""
    n = len(texts)
    own, others = images[:n], negatives[:, :n].T
    forth = loss(texts, indices_tuple=pairs_of(texts, images, negatives), ref_emb=images)
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
    """Sum losses with weights over a batch, for the library's trainer.

    A batch of several chunks is embedded chunk by chunk without its graph, and again for the gradients, so
    that a batch of any size takes the memory of one chunk (GradCache; Gao et al., 2021).

    Args:
        weights: by loss.
    """

    def __init__(self, model: SentenceTransformer, weights: Mapping[LossName, float]) -> None:
        super().__init__()
        if unknown := sorted(weights.keys() - set(get_args(LossName))):
            raise ValueError(f"no loss is called {unknown[0]!r}; there are {', '.join(get_args(LossName))}")
        self.model = model
        self.weights = dict(weights)

    def forward(self, towers: Sequence[Sequence[Features]], groups: Groups) -> Tensor:
        """Return the loss of a batch.

        Args:
            towers: chunks for the text tower and for the image tower; images of pairs first, then negatives.
            groups: of the texts and of the images.
        """
        if all(len(chunks) == 1 for chunks in towers):
            texts, images = (self.embed(chunks[0]) for chunks in towers)
            return self._sum(texts, images, groups)
        if not torch.is_grad_enabled():
            texts, images = (torch.cat([self.embed(chunk) for chunk in chunks]) for chunks in towers)
            return self._sum(texts, images, groups)
        return self._cached(towers, groups)

    def _sum(self, texts: Tensor, images: Tensor, groups: Groups) -> Tensor:
        negatives = groups.negatives()
        parts = [weight * LOSSES[name](texts, images, negatives) for name, weight in self.weights.items()]
        return torch.stack(parts).sum()

    def embed(self, features: Features) -> Tensor:
        """Return the unit rows of a chunk, shape (n, dim), float32."""
        # float32 also under mixed precision: a sum of exponentials does not fit 16 bits
        return normalize(self.model(dict(features))[VECTOR].float(), dim=-1)

    def _cached(self, towers: Sequence[Sequence[Features]], groups: Groups) -> Tensor:
        states: list[_ForwardState] = []
        rows = []
        with torch.no_grad():
            for chunk in (chunk for chunks in towers for chunk in chunks):
                states.append(_ForwardState(chunk))
                rows.append(self.embed(chunk).requires_grad_())
        with torch.enable_grad():
            texts, images = torch.cat(rows[: len(towers[0])]), torch.cat(rows[len(towers[0]) :])
            loss = self._sum(texts, images, groups)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = [row.grad for row in rows]
        result = loss.detach().requires_grad_()
        again = partial(self._embed_again, towers, states, gradients)
        result.register_hook(again)  # type: ignore[no-untyped-call]
        return result

    def _embed_again(
        self,
        towers: Sequence[Sequence[Features]],
        states: "Sequence[_ForwardState]",
        gradients: Sequence[Tensor | None],
        scale: Tensor,
    ) -> None:
        """Propagate the gradients of rows to the model's weights, chunk by chunk."""
        chunks = [chunk for tower in towers for chunk in tower]
        with torch.enable_grad():
            for chunk, state, gradient in zip(chunks, states, gradients, strict=True):
                if gradient is not None:
                    with state.again():
                        rows = self.embed(chunk)
                    if rows.requires_grad:  # a frozen tower has no gradients
                        rows.backward(gradient * scale)  # type: ignore[no-untyped-call]


class _ForwardState:
    """Store the random state and precision of a forward pass."""

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
