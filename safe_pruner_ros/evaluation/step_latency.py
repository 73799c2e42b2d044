"""How long a policy step takes, from the records of episodes.

Episodes run on all cores for hours. A machine that stands still for some minutes in one step
outweighs all other steps in a mean, and a median over all steps does not see key timesteps that
are fewer than half. So: a median for each of the two kinds, weighted by their numbers.

Two runs were measured at other times, beside another load or on another CPU, so their milliseconds
cannot be compared, and the load changes within a run, too. All methods run a scene before the next
one begins: the ratio to unpruned in the same scene of the same run is what can be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_pruner_ros.evaluation.results import Record, key_of, to_json

BY_KIND = ('latency_ms_key_p50', 'latency_ms_pruned_p50')


@dataclass(frozen=True)
class StepLatency:
    """Of the episodes of a cell that are of one ``run``; None where nothing was measured.

    ``weighted_p50_ms`` as in `weighted_p50`, in ms; ``ratio_to_unpruned``: the same of ratios, of
    the scenes that unpruned ran, too; lower = faster.
    """

    run: str
    p50_ms: float | None
    weighted_p50_ms: float | None
    ratio_to_unpruned: float | None


def in_run(episodes: Iterable[Record], run: str = '') -> list[dict[str, Any]]:
    """All ``episodes`` of a results folder, marked with its name (``run``) and with the median
    latency of unpruned in the same scene (``unpruned_ms``; None: it did not run there)."""
    episodes = list(episodes)
    latency_ms = {
        _scene(episode): episode.get('latency_ms_p50')
        for episode in episodes
        if episode['method'] == 'unpruned'
    }
    return [
        {**episode, 'run': run, 'unpruned_ms': latency_ms.get(_scene(episode))}
        for episode in episodes
    ]


def step_latency(episodes: Sequence[Record]) -> StepLatency:
    """Of episodes of one cell, marked by `in_run`: of those in the run that has most of them."""
    run = Counter(str(episode['run']) for episode in episodes).most_common(1)[0][0]
    of_run = [episode for episode in episodes if episode['run'] == run]
    relative = [_to_unpruned(episode) for episode in of_run if episode['unpruned_ms']]
    p50 = [e['latency_ms_p50'] for e in of_run if e.get('latency_ms_p50') is not None]
    return StepLatency(
        run=run,
        p50_ms=float(np.median(p50)) if p50 else None,
        weighted_p50_ms=weighted_p50(of_run),
        ratio_to_unpruned=weighted_p50(relative),
    )


def weighted_p50(episodes: Sequence[Record]) -> float | None:
    """Median latency of key timesteps x their share of all policy steps + that of all other steps
    x theirs, in the unit of the records (ms). Each median is one over episodes, of the median
    within each.

    None without a policy step, and where a kind that there is was not measured (older records).
    """
    steps = sum(int(episode.get('policy_steps') or 0) for episode in episodes)
    if not steps:
        return None
    key_share = sum(int(episode.get('keyframes') or 0) for episode in episodes) / steps
    total = 0.0
    for name, share in zip(BY_KIND, (key_share, 1 - key_share), strict=True):
        measured = [episode[name] for episode in episodes if episode.get(name) is not None]
        if share and not measured:
            return None
        total += share * float(np.median(measured)) if share else 0.0
    return total


def _to_unpruned(episode: Record) -> Mapping[str, Any]:
    measured = {name: episode[name] for name in BY_KIND if episode.get(name) is not None}
    return {**episode, **{name: ms / episode['unpruned_ms'] for name, ms in measured.items()}}


def _scene(episode: Record) -> tuple[object, ...]:
    task, _, _, seed, asked_object = key_of(episode)
    return task, seed, asked_object, to_json(episode.get('config', {}), indent=None)
