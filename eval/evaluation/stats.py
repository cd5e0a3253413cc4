"""How sure a mean is: intervals over records (bootstrap) and seeds (Student's t), and a paired test of two systems on
the same records. By scipy, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, permutation_test, sem, t

RESAMPLES = 2000
FLIPS = 9999
ROOM = 2**20  # numbers held at once while resampling


def interval(values: Sequence[float], seed: int) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean over records; None for fewer than two values, which say
    nothing about their spread. Equal values give an interval without width: it knows only what it has seen."""
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
    """``n``, ``mean``, and ``low`` and ``high``, the 95 % interval of the mean by Student's t: for the few seeds of a
    study, whose bootstrap would be too narrow. None for fewer than two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"n": len(values), "mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return {"n": len(values), "mean": mean, "low": mean - half, "high": mean + half}


def p_value(differences: Sequence[float], seed: int) -> float | None:
    """Two-sided paired permutation test: were the systems the same, each record's difference could as well have the
    other sign. Exact where the signs allow for 9999 patterns or fewer, else 9999 are drawn. None for fewer than two."""
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
    """Holm's correction for many tests at once (Scandinavian Journal of Statistics 6, 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    corrected = np.empty_like(p)
    corrected[order] = stepped
    return corrected.tolist()
