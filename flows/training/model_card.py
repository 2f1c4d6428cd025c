"""The card of a model that was trained here: what it is, what it learned from, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.training.finetune import Candidate, Order

METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")
LOAD = {
    True: "SentenceTransformer({path!r}, trust_remote_code=True)  # its classes are Sightline's own",
    False: "SentenceTransformer({path!r})",
}


def model_card(base: str, order: Order, candidate: Candidate, *, own_classes: bool) -> str:
    """Return the model card, in the form that model hubs read.

    Args:
        base: the name of the model that the training began with.
        own_classes: whether the folder names classes of ours, which the library loads only when told to.
    """
    options, pairs, trained = order.options, candidate.pairs, candidate.trained
    losses = ", ".join(f"{name} (weight {weight:g})" for name, weight in options.losses.items())
    split = order.split
    held_out = (
        f"{len(split.keys):,} keys that were named"
        if split.keys is not None
        else f"{split.held_out:.0%} of them"
    )
    judged = "" if order.judgments is None else f" and from the judgments in {order.judgments.name}"
    stopped = ", stopped early" if trained.stopped_early else ""
    load = LOAD[own_classes].format(path=candidate.name)
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, cross-modal-retrieval, sightline]
---

# {candidate.name}

Places texts and pictures in one space. Fine-tuned by [Sightline](https://pypi.org/project/sightline/) from
`{base}` (fingerprint {candidate.parent}); its own fingerprint is {candidate.fingerprint}.

```python
from sentence_transformers import SentenceTransformer

model = {load}
```

## What it learned from

{pairs["train"]:,} pairs of a text and a picture, from the records themselves{judged};
{pairs["validation"]:,} more told when to stop. Pictures are divided by a hash of what they show (seed
{split.seed}), near duplicates together; held out are {held_out}: {pairs["held-out"]:,} pairs.
Mined hard negatives: {order.hard_negatives} a pair.

## How

- trained: {options.what}
- loss: {losses}
- batches of {options.batch_size}, learning rate {options.learning_rate:g}, {trained.steps:,} steps{stopped}
- seed {options.seed}; recall@10 in validation {trained.best:.3f}

## How good it is

On the held-out pairs, which no training saw:

{_figures(candidate)}
"""


def _figures(candidate: Candidate) -> str:
    head = "| direction | model | " + " | ".join(METRICS) + " |\n|---|---|" + "---:|" * len(METRICS)
    lines = [
        f"| {direction.replace('_', ' ')} | {which} | "
        + " | ".join(f"{figures[direction][metric]:.3f}" for metric in METRICS)
        + " |"
        for direction in candidate.after
        for which, figures in (("before", candidate.before), ("after", candidate.after))
    ]
    return "\n".join([head, *lines]) if lines else "There are none."
