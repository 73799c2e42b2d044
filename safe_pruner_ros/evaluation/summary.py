"""Episodes -> one summary a cell, compared pair by pair with a baseline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safe_pruner_ros.core.catalog import METHODS
from safe_pruner_ros.evaluation.results import Record, ResultsError, key_of
from safe_pruner_ros.evaluation.statistics import (
    PairedDifference,
    paired_difference,
    wilson_interval,
)

Pair = tuple[int, int | None]
CellKey = tuple[str, str, str, float]  # config, task, variant, retention_ratio


@dataclass(frozen=True)
class CellSummary:
    """One method with its settings at one retention ratio on one task.

    Rates are shares, ``low``/``high`` their 95 % Wilson interval; means are over episodes, None
    where nothing was measured. ``keyframe_share``: key timesteps of all policy steps.
    ``versus_baseline`` is None for the baseline itself, without pairs where it did not run.
    ``config``: what the episodes share beside method and scene (checkpoint, horizon, ...), {}
    where the lines do not say.
    """

    task: str
    method: str
    variant: str
    retention_ratio: float
    episodes: int
    successes: int
    success_rate: float
    low: float
    high: float
    errors: int
    retained_tokens_mean: float | None
    pruning_ratio_mean: float | None
    keyframe_share: float | None
    macs_mean: float | None
    latency_ms_p50: float | None
    policy_steps_mean: float | None
    versus_baseline: PairedDifference | None
    seed_first: int
    seed_last: int
    commits: tuple[str, ...]
    settings: Mapping[str, Any]
    config: Mapping[str, Any]


def summarise(episodes: Iterable[Record], baseline: str = 'unpruned') -> list[CellSummary]:
    """One CellSummary a cell, by task, variant (baseline first, then as catalogued) and falling
    ratio. ``baseline`` is a variant, or a method that stands for its first variant; the cell of
    the same ratio is taken, or its only one. Where it did not run on a task, the first cell is.

    Raises ResultsError when episodes of one name ran with different settings.
    """
    cells: dict[CellKey, dict[Pair, Record]] = {}
    for episode in episodes:
        cell = cells.setdefault(cell_key(episode), {})
        cell[episode['seed'], episode['asked_object']] = episode
    methods = {key: str(next(iter(cell.values()))['method']) for key, cell in cells.items()}
    order = sorted(cells, key=lambda key: _order(key, methods[key], baseline))
    summaries = []
    for key in order:
        other = _baseline_of(key, order, methods, baseline)
        paired = None if other == key else cells[other] if other else {}
        summaries.append(_summarise(key, cells[key], paired))
    return summaries


def cell_key(episode: Record) -> CellKey:
    config = json.dumps(episode.get('config', {}), sort_keys=True)
    task, variant, ratio, _, _ = key_of(episode)
    return config, task, variant, ratio


def _order(key: CellKey, method: str, baseline: str) -> tuple[object, ...]:
    config, task, variant, ratio = key
    place = METHODS.index(method) if method in METHODS else len(METHODS)
    return task, config, baseline not in (variant, method), place, method, variant, -ratio


def _baseline_of(
    key: CellKey, order: Sequence[CellKey], methods: Mapping[CellKey, str], baseline: str
) -> CellKey | None:
    same_scenes = [other for other in order if other[:2] == key[:2]]
    named = [other for other in same_scenes if other[2] == baseline]
    named = named or [other for other in same_scenes if methods[other] == baseline]
    if not named:
        named = same_scenes[:1]
    named = [other for other in named if other[2] == named[0][2]]
    same_ratio = [other for other in named if other[3] == key[3]]
    chosen = same_ratio or (named if len(named) == 1 else [])
    return chosen[0] if chosen else None


def _summarise(
    key: CellKey, cell: Mapping[Pair, Record], baseline: Mapping[Pair, Record] | None
) -> CellSummary:
    _, task, variant, ratio = key
    records = list(cell.values())
    settings = {json.dumps(record.get('settings', {}), sort_keys=True) for record in records}
    if len(settings) > 1:
        raise ResultsError(
            f'{variant!r} at {ratio:g} on {task} ran with different settings: '
            f'{" and ".join(sorted(settings)[:2])}; results of the two do not belong together'
        )
    successes = sum(bool(record['success']) for record in records)
    low, high = wilson_interval(successes, len(records))
    steps = _values(records, 'policy_steps')
    versus = None
    if baseline is not None:
        shared = [pair for pair in cell if pair in baseline]
        versus = paired_difference(
            [(bool(cell[p]['success']), bool(baseline[p]['success'])) for p in shared]
        )
    seeds = [seed for seed, _ in cell]
    return CellSummary(
        task=task,
        method=str(records[0]['method']),
        variant=variant,
        retention_ratio=ratio,
        episodes=len(records),
        successes=successes,
        success_rate=successes / len(records),
        low=low,
        high=high,
        errors=sum(bool(record.get('error')) for record in records),
        retained_tokens_mean=_step_mean(records, 'retained_tokens_mean'),
        pruning_ratio_mean=_step_mean(records, 'pruning_ratio_mean'),
        keyframe_share=sum(_values(records, 'keyframes')) / sum(steps) if sum(steps) else None,
        macs_mean=_step_mean(records, 'macs_mean'),
        latency_ms_p50=_median(_values(records, 'latency_ms_p50')),
        policy_steps_mean=float(np.mean(steps)) if steps else None,
        versus_baseline=versus,
        seed_first=min(seeds),
        seed_last=max(seeds),
        commits=tuple(sorted({str(record.get('commit', 'unknown')) for record in records})),
        settings=dict(records[0].get('settings', {})),
        config=dict(records[0].get('config', {})),
    )


def _values(records: Sequence[Record], name: str) -> list[float]:
    return [float(record[name]) for record in records if record.get(name) is not None]


def _step_mean(records: Sequence[Record], name: str) -> float | None:
    """Mean over policy steps of a per-episode mean: long (failing) episodes weigh more, as they
    do on the robot."""
    weighted = [
        (float(record[name]), float(record['policy_steps']))
        for record in records
        if record.get(name) is not None and record.get('policy_steps')
    ]
    if not weighted:
        return None
    values, weights = zip(*weighted, strict=True)
    return float(np.average(values, weights=weights))


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def as_dict(cell: CellSummary) -> dict[str, Any]:
    """JSON-ready."""
    return asdict(cell)
