"""Ratios of latencies: within a round, over the same observations."""

from __future__ import annotations

import pytest

from safe_pruner_ros.evaluation.latency import (
    KEY,
    PRUNED,
    UNPRUNED,
    Sample,
    markdown_table,
    statistics,
)


def test_a_pruned_step_is_compared_with_the_same_observation() -> None:
    """One observation is slow for everybody, and the method took it for a key timestep."""
    samples = []
    for number, drift in enumerate((1.0, 7.0, 2.0)):  # of the machine's clock, round by round
        slower = 1.0 + 0.1 * number  # of the method
        for observation, mode, unpruned, method in (
            (0, KEY, 100.0, 100.0), (1, PRUNED, 10.0, 5.0), (2, PRUNED, 12.0, 6.0),
        ):  # fmt: skip
            for which, step in ((UNPRUNED, unpruned), (mode, method * slower)):
                latency = {'total': step * drift}
                samples.append(Sample(which, number, latency, observation))
    found = statistics(samples)
    assert found['ratio_pruned'] == pytest.approx(2.0 / 1.1)
    assert found['ratio_pruned_range'] == pytest.approx([2.0 / 1.2, 2.0])
    assert found['ratio_key'] == pytest.approx(1 / 1.1)
    assert found['speedup'] == pytest.approx(122 / 111 / 1.1)


def test_a_stage_that_nobody_measured_is_an_empty_cell() -> None:
    samples = [
        Sample(UNPRUNED, 0, {'deep': 3.0, 'total': 4.0}),
        Sample(PRUNED, 0, {'shallow': 0.5, 'deep': 1.0, 'total': 2.0}),
    ]
    lines = markdown_table(statistics(samples)).splitlines()
    assert lines[2] == '| unpruned | 1 |  |  |  |  | 3.00 |  |  | 4.00 | 4.00 | 4.00 |'
    assert lines[3] == '| pruned | 1 |  |  | 0.50 |  | 1.00 |  |  | 2.00 | 2.00 | 2.00 |'
