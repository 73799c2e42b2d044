"""Policies on one network answer as policies that were loaded one by one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from safe_pruner_ros.policies.policy import Policy, PolicyOutput
from safe_pruner_ros.types import Observation

# One of each kind: without memory, with keyframes, with a memory of its own, with draws, and one
# that reuses keys and values of the step before.
LANES: tuple[tuple[str, dict[str, Any]], ...] = (
    ('unpruned', {}),
    ('safe_pruner', {'retention_ratio': 0.5, 'similarity_threshold': 0.5}),
    ('safe_pruner', {'retention_ratio': 0.25, 'similarity_threshold': 0.0}),
    ('diverse_forecast', {'retention_ratio': 0.5}),
    ('vla_cache', {'retention_ratio': 0.5}),
    ('random', {'retention_ratio': 0.5}),
)


def assert_lanes_equal_separate_loads(
    load: Callable[[str, dict[str, Any]], Policy],
    network: Callable[[Any], Any],
    observations: Sequence[Observation],
) -> None:
    """``load``: a fresh policy; ``network``: its torch module."""
    separate = [load(method, settings) for method, settings in LANES]
    expected = [[policy.predict(seen) for seen in observations] for policy in separate]
    first = load('unpruned', {})
    shared = [first, *(first.with_pruner(method, settings) for method, settings in LANES[1:])]
    for policy in shared:
        assert network(policy) is network(first) and policy.spec == first.spec
    found: list[list[PolicyOutput]] = [[] for _ in shared]
    rng = np.random.default_rng(0)
    for seen in observations:  # in turns, in any order, as replay has them
        for number in rng.permutation(len(shared)):
            found[number].append(shared[number].predict(seen))
    distinct = set()
    for lane, alone in zip(found, expected, strict=True):
        for ours, theirs in zip(lane, alone, strict=True):
            assert np.array_equal(ours.chunk.positions, theirs.chunk.positions)
            assert np.array_equal(ours.trace.retained_index, theirs.trace.retained_index)
            assert ours.trace.keyframe_reason == theirs.trace.keyframe_reason
        distinct.add(tuple(len(step.trace.retained_index) for step in lane))
    assert len(distinct) > 2  # otherwise equality would say little
