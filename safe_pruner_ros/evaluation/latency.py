"""How long a policy step takes, unpruned and pruned, measured side by side in one run.

The clock of a shared machine drifts more than the difference that is asked for. So the variants
answer the same observation one after the other, in random order, and ratios are taken within a
round, over the same observations; what is said is their median. Observations are recorded once,
closed loop, under the pruned policy, and replayed: the share of key timesteps is then that of a
real episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from safe_pruner_ros.evaluation.plan import Cell
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.rollout import Environment, RolloutSettings, run_episode
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.types import Observation

STAGES = ('preprocess', 'vision', 'shallow', 'scoring', 'deep', 'head', 'observe', 'total')
UNPRUNED, KEY, PRUNED, METHOD = 'unpruned', 'key', 'pruned', 'method'
Episodes = Sequence[Sequence[Observation]]


@dataclass(frozen=True)
class Sample:
    """One policy step. ``mode``: unpruned, or key / pruned of the method under test.
    ``observation``: which of a round was answered."""

    mode: str
    round: int
    latency_ms: Mapping[str, float]
    observation: int = 0


def record_observations(
    policy: Policy, env: Environment, seeds: Sequence[int], max_policy_steps: int = 20
) -> list[list[Observation]]:
    """What the policy saw in one episode a seed."""
    episodes = []
    for seed in seeds:
        seen: list[Observation] = []
        run_episode(
            policy,
            env,
            seed,
            settings=RolloutSettings(max_policy_steps),
            on_step=lambda observation, _, seen=seen: seen.append(observation),
        )
        if seen:
            episodes.append(seen)
    if not episodes:
        raise ValueError('the policy failed in the first step of every scene: nothing to measure')
    return episodes


def measure(
    unpruned: Policy, method: Policy, episodes: Episodes, rounds: int, warm_up: int = 1
) -> list[Sample]:
    """Replay ``episodes`` ``rounds`` times (plus ``warm_up`` unrecorded ones) through both."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(-warm_up, rounds):
        answered = count()
        for observations in episodes:
            unpruned.reset()
            method.reset()
            for observation in observations:
                place = next(answered)
                for policy in (unpruned, method) if rng.random() < 0.5 else (method, unpruned):
                    output = policy.predict(observation)
                    if number < 0:
                        continue
                    mode = UNPRUNED
                    if policy is method:
                        is_full = output.trace.n_retained == output.trace.n_visual
                        mode = KEY if is_full else PRUNED
                    samples.append(Sample(mode, number, output.latency_ms, place))
    return samples


def statistics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Percentiles by mode and stage (ms), and the ratios.

    ``ratio_pruned``: median unpruned / median pruned step, of the observations that the method
    pruned; ``ratio_key`` the same of its key timesteps. ``speedup``: mean unpruned / mean of the
    method with its key timesteps in. Each is the median of its values in the rounds, ``*_range``
    the smallest and the largest.
    """
    modes: dict[str, dict[str, Any]] = {}
    for mode in (UNPRUNED, KEY, PRUNED, METHOD):
        chosen = _of_mode(samples, mode)
        if chosen:
            modes[mode] = {
                'samples': len(chosen),
                'ms': {stage: _percentiles(_stage(chosen, stage)) for stage in STAGES},
            }
    key, method = _of_mode(samples, KEY), _of_mode(samples, METHOD)
    rounds = sorted({sample.round for sample in samples})
    by_round = [[sample for sample in samples if sample.round == number] for number in rounds]
    pruned = [_ratio(part, PRUNED, np.median) for part in by_round]
    whole = [_ratio(part, METHOD, np.mean) for part in by_round]
    return {
        'modes': modes,
        'key_share': len(key) / len(method) if method else None,
        'ratio_pruned': _median(pruned),
        'ratio_pruned_range': _range(pruned),
        'ratio_key': _median([_ratio(part, KEY, np.median) for part in by_round]),
        'speedup': _median(whole),
        'speedup_range': _range(whole),
    }


def _of_mode(samples: Sequence[Sample], mode: str) -> list[Sample]:
    modes = (KEY, PRUNED) if mode == METHOD else (mode,)
    return [sample for sample in samples if sample.mode in modes]


def _stage(samples: Sequence[Sample], stage: str) -> npt.NDArray[np.float64]:
    return np.array([sample.latency_ms.get(stage, np.nan) for sample in samples])


def _percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    points = np.percentile(values, (50, 90, 99, 100))
    return dict(zip(('p50', 'p90', 'p99', 'max'), map(float, points), strict=True))


def _ratio(samples: Sequence[Sample], mode: str, centre: Any) -> float | None:
    """Of one round."""
    other = _of_mode(samples, mode)
    answered = {sample.observation for sample in other}
    reference = [s for s in _of_mode(samples, UNPRUNED) if s.observation in answered]
    if not reference or not other:
        return None
    return float(centre(_stage(reference, 'total')) / centre(_stage(other, 'total')))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _range(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


def markdown_table(result: Mapping[str, Any]) -> str:
    """One row a mode: p50 of the stages, p50/p90/p99 of the whole step, ms; empty for a stage that
    a mode does not have."""
    stages = STAGES[:-1]
    rows = [
        ['step', 'n', *(f'{stage} p50' for stage in stages), 'total p50', 'p90', 'p99'],
        ['---', *['---:'] * (len(stages) + 4)],
    ]
    for mode, found in result['modes'].items():
        total = found['ms']['total']
        rows.append(
            [
                'method, all steps' if mode == METHOD else mode,
                str(found['samples']),
                *(_shown(found['ms'][stage]['p50']) for stage in stages),
                *(_shown(total[name]) for name in ('p50', 'p90', 'p99')),
            ]
        )
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def _shown(value: float) -> str:
    return '' if np.isnan(value) else f'{value:.2f}'


def ratio_line(result: Mapping[str, Any]) -> str:
    """The ratios of one run as a sentence."""

    def shown(name: str) -> str:
        value, span = result[name], result[f'{name}_range']
        return 'none' if value is None else f'{value:.2f} ({span[0]:.2f} to {span[1]:.2f})'

    return (
        f'Unpruned / pruned step (medians): {shown("ratio_pruned")}. Speedup, key timesteps '
        f'({100 * (result["key_share"] or 0):.0f} % of steps) included (means): '
        f'{shown("speedup")}. Median of the rounds; in brackets: lowest and highest.'
    )


def run_benchmark(
    env: Environment,
    cell: Cell,
    threads: Sequence[int],
    seeds: Sequence[int],
    rounds: int,
    policy: PolicySource,
) -> dict[str, Any]:
    """`statistics` by number of torch threads, as {'threads': {'2': {...}}}."""
    method = policy.build(cell.method, cell.settings)
    unpruned = method.with_pruner('unpruned')
    episodes = record_observations(method, env, seeds)
    before = torch.get_num_threads()
    by_threads = {}
    try:
        for number in threads:
            torch.set_num_threads(number)
            by_threads[str(number)] = statistics(measure(unpruned, method, episodes, rounds))
    finally:
        torch.set_num_threads(before)
    return {
        'policy': policy.name,
        'checkpoint': policy.checkpoint or 'shipped',
        'device': policy.device,
        'method': cell.method,
        'retention_ratio': cell.retention_ratio,
        'settings': dict(cell.settings),
        'seeds': list(seeds),
        'observations': sum(map(len, episodes)),
        'rounds': rounds,
        'threads': by_threads,
    }
