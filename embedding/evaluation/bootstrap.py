"""Compute bootstrap confidence intervals over records; pure and seeded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from embedding.evaluation.metrics import Scores

RESAMPLES = 2000
CONFIDENCE = 0.95
NUMBERS_AT_ONCE = 5_000_000
"""Of the resamples that are in memory together."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Store a mean and its 95% interval, None for a single record."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Store a score for each query, and the record of each query."""

    scores: Scores
    records: NDArray[np.int64]
    """Shape (queries,), from 0: queries of one record are drawn together, as they are not independent."""


def bootstrap_mean(samples: Sequence[Sample], *, seed: int = 0) -> Estimate:
    """Return the mean of the samples' means, with its percentile bootstrap interval.

    Efron (1979). Records are drawn with all their queries in all samples. For two models the samples hold
    the differences of their scores for the same queries: a paired bootstrap (Sakai, 2006).

    Raises:
        ValueError: a sample is empty, or has not one record for each score.
    """
    many = 1 + max(int(_checked(sample).records.max()) for sample in samples)
    sums = [np.bincount(one.records, weights=one.scores, minlength=many) for one in samples]
    counts = [np.bincount(one.records, minlength=many).astype(np.float64) for one in samples]
    present = np.sum(counts, axis=0) > 0
    columns = [column[present] for column in (*sums, *counts)]
    value = float(_mean_of_ratios(*columns))
    if len(columns[0]) < 2:
        return Estimate(value, None, None)
    interval = bootstrap(
        columns,
        _mean_of_ratios,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, NUMBERS_AT_ONCE // (len(columns) * len(columns[0]))),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _mean_of_ratios(*columns: NDArray[np.float64], axis: int = -1) -> Any:
    """Return the mean over samples of sum / count.

    The columns are the sums of all samples, then their counts.
    """
    half = len(columns) // 2
    totals = [column.sum(axis=axis) for column in columns]
    # a resample may hold no query of a sample, which then counts as 0
    means = [
        np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        for total, count in zip(totals[:half], totals[half:], strict=True)
    ]
    return np.mean(means, axis=0)


def _checked(sample: Sample) -> Sample:
    if len(sample.scores) == 0 or len(sample.scores) != len(sample.records):
        raise ValueError(f"{len(sample.scores)} scores of {len(sample.records)} records: nothing to average")
    return sample
