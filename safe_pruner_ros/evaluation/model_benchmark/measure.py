"""Latency of one policy step of a big policy with random weights, unpruned and pruned.

Unpruned steps, key timesteps and pruned steps answer one observation after the other, in random
order, in one process; ratios are taken within a round. Key timesteps are asked for
(`Policy.force_keyframe`) and subtask boundaries switched off, for attention of random weights
means nothing; the mix at a keyframe share is computed, not sampled.

Scopes: `step` is all of `Policy.predict`, images to joint targets; `model` leaves out the
preprocessing; `backbone` is the decoder's prefill with the choice of tokens, nearest to what
papers report. The stage `observe` is the method's memory (`Pruner.observe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.evaluation.latency import KEY, METHOD, PRUNED, UNPRUNED, Sample
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.types import Observation

STAGES = ('preprocess', 'vision', 'shallow', 'scoring', 'deep', 'head', 'observe')
SCOPES = ('backbone', 'model', 'step')


def measure(
    unpruned: Policy,
    method: Policy,
    observations: Sequence[Observation],
    rounds: int,
    warm_up: int = 2,
) -> tuple[list[Sample], list[npt.NDArray[np.float64]]]:
    """Samples, and |action - unpruned action| [chunk_size, joints] of every pruned step.

    A method that cannot be made to run a key timestep gives pruned samples only; steps that a
    method runs in full at the start of an episode belong to the warm-up.
    """
    rng = np.random.default_rng(0)
    unpruned.reset()
    method.reset()
    for observation in observations[: max(warm_up, 4)]:  # four: what VLA-Pruner warms up with
        unpruned.predict(observation)
        method.predict(observation)
    samples: list[Sample] = []
    errors: list[npt.NDArray[np.float64]] = []
    for number in range(rounds):
        observation = observations[number % len(observations)]
        found = {}
        for mode in rng.permutation([UNPRUNED, KEY, PRUNED]):
            policy = unpruned if mode == UNPRUNED else method
            if mode == KEY:
                policy.force_keyframe()
            output = policy.predict(observation)
            if policy is method:
                mode = PRUNED if output.trace.n_retained < output.trace.n_visual else KEY
            samples.append(Sample(str(mode), number, _with_scopes(output.latency_ms)))
            found[str(mode)] = output.chunk.positions
        if PRUNED in found and UNPRUNED in found:
            errors.append(np.abs(found[PRUNED] - found[UNPRUNED]))
    return samples, errors


def _with_scopes(latency_ms: Mapping[str, float]) -> dict[str, float]:
    total = latency_ms['total']
    return {
        **latency_ms,
        'backbone': latency_ms['shallow'] + latency_ms['scoring'] + latency_ms['deep'],
        'model': total - latency_ms['preprocess'],
        'step': total,
    }


def summarise(samples: Sequence[Sample], keyframe_share: float) -> dict[str, Any]:
    """p50/p90/p99/max by mode and stage, ms; ``method`` mixes key and pruned steps at
    ``keyframe_share``. ``ratio_*``: medians over the rounds of unpruned / other, whole steps."""
    by_mode = {
        mode: [sample for sample in samples if sample.mode == mode]
        for mode in (UNPRUNED, KEY, PRUNED)
    }
    modes: dict[str, Any] = {}
    for mode, chosen in by_mode.items():
        if chosen:
            modes[mode] = _percentiles(chosen, [1.0] * len(chosen))
    share = keyframe_share if by_mode[KEY] else 0.0
    mixed = by_mode[KEY] + by_mode[PRUNED]
    weights = [share / max(1, len(by_mode[KEY]))] * len(by_mode[KEY])
    weights += [(1 - share) / max(1, len(by_mode[PRUNED]))] * len(by_mode[PRUNED])
    modes[METHOD] = _percentiles(mixed, weights)
    ratios = {}
    for scope in SCOPES:
        full, pruned = _by_round(by_mode[UNPRUNED], scope), _by_round(by_mode[PRUNED], scope)
        key = _by_round(by_mode[KEY], scope) or dict.fromkeys(pruned, 0.0)
        rounds = sorted(set(full) & set(pruned) & set(key))
        steps = [full[n] / pruned[n] for n in rounds]
        mixes = [full[n] / (share * key[n] + (1 - share) * pruned[n]) for n in rounds]
        ratios[scope] = {
            'unpruned_over_pruned': _quartiles(steps),
            'unpruned_over_mixed': _quartiles(mixes),
        }
    pruned_step = modes[PRUNED]['ms']
    return {
        'keyframe_share': share,
        'modes': modes,
        'speedup': ratios,
        'scoring_share': pruned_step['scoring']['p50'] / pruned_step['step']['p50'],
    }


def _percentiles(samples: Sequence[Sample], weights: Sequence[float]) -> dict[str, Any]:
    result = {}
    for stage in (*STAGES, *SCOPES):
        values = np.array([sample.latency_ms[stage] for sample in samples])
        order = np.argsort(values)
        reached = np.cumsum(np.array(weights)[order]) / sum(weights)
        points = np.searchsorted(reached, [0.5 - 1e-9, 0.9 - 1e-9, 0.99 - 1e-9])
        p50, p90, p99 = (float(values[order][min(p, len(values) - 1)]) for p in points)
        result[stage] = {'p50': p50, 'p90': p90, 'p99': p99, 'max': float(values.max())}
    return {'samples': len(samples), 'ms': result}


def _by_round(samples: Sequence[Sample], scope: str) -> dict[int, float]:
    return {sample.round: sample.latency_ms[scope] for sample in samples}


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {'p25': float(low), 'p50': float(middle), 'p75': float(high)}
