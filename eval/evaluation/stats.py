"""Statistics of scores, by scipy: confidence intervals over records (bootstrap) and over seeds (Student's t), and a
paired test of two systems on the same records. Random draws are seeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, permutation_test, sem, t

RESAMPLES = 2000  # of the bootstrap
FLIPS = 9999  # random sign patterns of the permutation test
ROOM = 2**20  # values in memory at once while resampling


def interval(values: Sequence[float], seed: int) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean over records; None for fewer than two values. Equal values
    give an interval of width 0, as resampling cannot draw other values."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    found = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, ROOM // len(values)),
        method="percentile",
        rng=rng,
    ).confidence_interval
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """``n``, ``mean``, and the bounds ``low`` and ``high`` of the 95 % interval of the mean by Student's t. For as few
    values as the seeds of a study, a bootstrap interval would be too narrow. The bounds are None for fewer than two
    values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"n": len(values), "mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return {"n": len(values), "mean": mean, "low": mean - half, "high": mean + half}


def p_value(differences: Sequence[float], seed: int) -> float | None:
    """p of a two-sided paired permutation test: under the null hypothesis, each record's difference is as likely with
    the opposite sign. Exact for up to 9999 sign patterns, otherwise from 9999 random ones. None for fewer than two
    values."""
    if len(differences) < 2:
        return None
    found = permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        batch=max(1, ROOM // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values after Holm's correction for multiple tests (Scandinavian Journal of Statistics 6, 1979), in the order
    given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    corrected = np.empty_like(p)
    corrected[order] = stepped
    return corrected.tolist()
