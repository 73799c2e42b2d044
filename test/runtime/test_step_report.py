"""Latency percentiles."""

from __future__ import annotations

import math

import numpy as np
import pytest

from safe_pruner_ros.runtime.step_report import RollingStatistics


def test_percentiles_over_a_rolling_window():
    statistics = RollingStatistics(window=100)
    assert math.isnan(statistics.p50) and math.isnan(statistics.p99)
    for value in range(1000):
        statistics.add(float(value))
    last = np.arange(900, 1000)
    assert statistics.p50 == np.percentile(last, 50)
    assert statistics.p99 == np.percentile(last, 99)
    assert statistics.count == 1000
    statistics.clear()
    assert statistics.count == 0 and math.isnan(statistics.p50)


def test_refuses_nonsense():
    with pytest.raises(ValueError, match='finite'):
        RollingStatistics().add(float('nan'))
    with pytest.raises(ValueError, match='window'):
        RollingStatistics(window=0)
