"""Write the model card of a candidate."""

from flows.training.spec import Candidate, TrainingSpec

METRICS = ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")
LOAD = {
    True: "SentenceTransformer({path!r}, trust_remote_code=True)  # its classes are Sightline's own",
    False: "SentenceTransformer({path!r})",
}


def model_card(base: str, spec: TrainingSpec, candidate: Candidate, *, own_classes: bool) -> str:
    """Return the model card, in the form that model hubs read.

    Args:
        base: the name of the base model.
        own_classes: whether the folder names classes of Sightline, which the library loads only with
            `trust_remote_code`.
    """
    options, pairs, trained = spec.options, candidate.pairs, candidate.trained
    losses = ", ".join(f"{name} (weight {weight:g})" for name, weight in options.losses.items())
    split = spec.split
    held_out = (
        f"{len(split.keys):,} named keys" if split.keys is not None else f"{split.held_out:.0%} of them"
    )
    judgments = "" if spec.judgments is None else f" and from the judgments in {spec.judgments.name}"
    stopped = ", stopped early" if trained.stopped_early else ""
    load = LOAD[own_classes].format(path=candidate.name)
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, cross-modal-retrieval, sightline]
---

# {candidate.name}

Encodes texts and images in one vector space. Fine-tuned by
[Sightline](https://pypi.org/project/sightline/) from `{base}` (fingerprint {candidate.parent}); its own
fingerprint is {candidate.fingerprint}.

```python
from sentence_transformers import SentenceTransformer

model = {load}
```

## Training data

{pairs["train"]:,} pairs of a text and an image, from the records themselves{judgments};
{pairs["validation"]:,} more for validation. Images are split by a hash of their content (seed
{split.seed}), near duplicates together; held out are {held_out}: {pairs["held-out"]:,} pairs.
Mined hard negatives: {spec.hard_negatives} a pair.

## Training

- trained: {options.what}
- loss: {losses}
- batches of {options.batch_size}, learning rate {options.learning_rate:g}, {trained.steps:,} steps{stopped}
- seed {options.seed}; recall@10 in validation {trained.best:.3f}

## Evaluation

On the held-out pairs, which no training has seen:

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
