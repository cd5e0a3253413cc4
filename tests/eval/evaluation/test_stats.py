"""Statistics, compared with theory and enumeration."""

from itertools import product

import numpy as np
import pytest

from reasonbrain.eval.evaluation.stats import holm, interval, mean_interval, p_value


def test_the_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = interval(rng.exponential(2.0, 60), seed)
        covered += low <= 2.0 <= high
    assert 0.88 <= covered / 200 <= 0.98  # 95 % less what the percentile method loses on a skewed sample


def test_the_interval_of_many_values_agrees_with_theory():
    values = np.random.default_rng(1).normal(3.0, 2.0, 4000)
    low, high = interval(values, 0)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_interval_of_few_seeds_is_students():
    """Two-sided, 95 %: t is 4.303 for three values and 12.706 for two (any table)."""
    found = mean_interval([0.5, 0.6, 0.9])
    half = 4.3027 * np.std([0.5, 0.6, 0.9], ddof=1) / np.sqrt(3)
    assert found["n"] == 3 and found["mean"] == pytest.approx(2 / 3)
    assert (found["low"], found["high"]) == pytest.approx((2 / 3 - half, 2 / 3 + half), abs=1e-4)
    two = mean_interval([0.0, 2.0])
    assert (two["low"], two["high"]) == pytest.approx((1 - 12.706, 1 + 12.706), abs=1e-3)
    assert mean_interval([0.5]) == {"n": 1, "mean": 0.5, "low": None, "high": None}


def test_the_interval_depends_only_on_the_seed():
    values = list(np.random.default_rng(2).random(20))
    assert interval(values, 5) == interval(values, 5) != interval(values, 6)
    differences = [v - 0.4 for v in values]
    assert p_value(differences, 5) == p_value(differences, 5) != p_value(differences, 6)


def test_few_or_equal_values():
    assert interval([], 0) is None and interval([0.3], 0) is None
    assert interval([0.25, 0.25, 0.25], 0) == (0.25, 0.25)
    assert p_value([], 0) is None and p_value([0.3], 0) is None and p_value([0.0, 0.0, 0.0], 0) == 1.0


def test_the_paired_test_enumerates_all_signs():
    differences = [0.5, -0.1, 0.7, 0.2, 0.9, 0.4, -0.3]
    means = [np.mean(np.multiply(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    exact = np.mean([abs(m) >= abs(np.mean(differences)) - 1e-12 for m in means])
    assert p_value(differences, 0) == pytest.approx(exact)


def test_the_paired_test_detects_differences_only():
    rng = np.random.default_rng(3)
    assert p_value(rng.normal(0.5, 1.0, 200), 0) < 0.001
    rejected = np.mean([p_value(rng.normal(0.0, 1.0, 10), seed) < 0.05 for seed in range(200)])
    assert rejected < 0.1


def test_holm():
    """The smallest p times 4, the next times 3, ...; monotonic and at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
