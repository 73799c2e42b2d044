"""Episodes -> one summary a cell, compared pair by pair with a baseline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safe_pruner_ros.core.catalog import METHODS
from safe_pruner_ros.evaluation.baselines import Baseline, Ran
from safe_pruner_ros.evaluation.recorded_settings import shared_settings
from safe_pruner_ros.evaluation.results import Record
from safe_pruner_ros.evaluation.statistics import (
    PairedDifference,
    clustered_wilson,
    paired_difference,
)
from safe_pruner_ros.evaluation.step_latency import StepLatency, in_run, step_latency

Pair = tuple[int, int | None]
CellKey = tuple[str, str, str, float]  # config, task, variant, retention_ratio


# Why a cell has no pairs.
NOT_HERE = 'did not run here'
NO_RATIO = 'no cell at this ratio'
NO_EPISODES = 'no shared episodes'


@dataclass(frozen=True)
class BaselineCell:
    """The cell that another is compared with."""

    variant: str
    retention_ratio: float
    retained_tokens_mean: float | None


@dataclass(frozen=True)
class CellSummary:
    """One method with its settings at one retention ratio on one task.

    Rates are shares, ``low``/``high`` their 95 % Wilson interval (`clustered_wilson` where a scene
    has several episodes); means are over episodes, None where nothing was measured.
    ``keyframe_share``: key timesteps of all policy steps. ``versus_baseline`` is None for the
    baseline itself. Without pairs ``no_pairs`` says why, and ``baseline`` is None unless there is
    a cell that shares no episode. ``config``: what the episodes share beside method and scene
    (checkpoint, horizon, ...), {} where the lines do not say.
    """

    task: str
    method: str
    variant: str
    retention_ratio: float
    episodes: int
    scenes: int
    successes: int
    success_rate: float
    low: float
    high: float
    errors: int
    retained_tokens_mean: float | None
    pruning_ratio_mean: float | None
    keyframe_share: float | None
    macs_mean: float | None
    scoring_macs_mean: float | None
    latency: StepLatency
    policy_steps_mean: float | None
    versus_baseline: PairedDifference | None
    baseline: BaselineCell | None
    no_pairs: str
    seed_first: int
    seed_last: int
    commits: tuple[str, ...]
    cpus: tuple[str, ...]
    settings: Mapping[str, Any]
    config: Mapping[str, Any]


def summarise(episodes: Iterable[Record], baseline: str = 'unpruned') -> list[CellSummary]:
    """One CellSummary a cell, by task, variant (baseline first, then as catalogued) and falling
    ratio. ``baseline`` as in `Baseline`, or what it stands for `among` all cells: with a ratio
    that cell is taken, without one the cell of the same ratio, or its only one. If unpruned, the
    default, ran nowhere, the first cell of each task is. Episodes that do not say their run
    (`in_run`) are all of one.

    Raises ResultsError when episodes of one name ran with different settings.
    """
    cells: dict[CellKey, dict[Pair, Record]] = {}
    episodes = list(episodes)
    if not any('run' in episode for episode in episodes):
        episodes = in_run(episodes)
    for episode in episodes:
        cell = cells.setdefault(cell_key(episode), {})
        cell[episode['seed'], episode['asked_object']] = episode
    methods = {key: str(next(iter(cell.values()))['method']) for key, cell in cells.items()}
    against = Baseline.parse(baseline).among((methods[key], key[2], key[3]) for key in cells)
    order = sorted(cells, key=lambda key: _order(key, methods[key], against.variant))
    is_default = baseline == 'unpruned' and baseline not in methods.values()
    summaries = []
    for key in order:
        ran = {(methods[k], k[2], k[3]): k for k in order if k[:2] == key[:2]}
        here = Baseline(next(iter(ran))[1]) if is_default else against
        other, reason = _baseline_of(key, ran, here)
        summaries.append(_summarise(key, cells, other, reason))
    return summaries


def cell_key(episode: Record) -> CellKey:
    """A line without a variant is about the method as it was configured (`key_of`)."""
    config = json.dumps(episode.get('config', {}), sort_keys=True)
    variant = str(episode.get('variant') or episode['method'])
    return config, str(episode['task']), variant, float(episode['retention_ratio'])


def _order(key: CellKey, method: str, baseline: str) -> tuple[object, ...]:
    config, task, variant, ratio = key
    place = METHODS.index(method) if method in METHODS else len(METHODS)
    return task, config, baseline not in (variant, method), place, method, variant, -ratio


def _baseline_of(
    key: CellKey, ran: Mapping[Ran, CellKey], baseline: Baseline
) -> tuple[CellKey | None, str]:
    """The cell to compare with among those of the same task and configuration, or why none."""
    named = [ran[cell] for cell in baseline.cells(ran)]
    if not named:
        return None, NOT_HERE
    same_ratio = [other for other in named if other[3] == key[3]]
    chosen = same_ratio or (named if len(named) == 1 else [])
    return (chosen[0], '') if chosen else (None, NO_RATIO)


def _summarise(
    key: CellKey,
    cells: Mapping[CellKey, Mapping[Pair, Record]],
    other: CellKey | None,
    no_pairs: str,
) -> CellSummary:
    _, task, variant, ratio = key
    cell = cells[key]
    records = list(cell.values())
    shared_settings(records, f'{variant!r} at {ratio:g} on {task}')
    seeds = [seed for seed, _ in cell]
    outcomes = [bool(record['success']) for record in records]
    low, high = clustered_wilson(outcomes, seeds)
    steps = _values(records, 'policy_steps')
    versus = None if other == key else _versus(cell, cells[other] if other else {})
    if versus and other and not versus.pairs:
        no_pairs = NO_EPISODES
    return CellSummary(
        task=task,
        method=str(records[0]['method']),
        variant=variant,
        retention_ratio=ratio,
        episodes=len(records),
        scenes=len(set(seeds)),
        successes=sum(outcomes),
        success_rate=sum(outcomes) / len(records),
        low=low,
        high=high,
        errors=sum(bool(record.get('error')) for record in records),
        retained_tokens_mean=_step_mean(records, 'retained_tokens_mean'),
        pruning_ratio_mean=_step_mean(records, 'pruning_ratio_mean'),
        keyframe_share=sum(_values(records, 'keyframes')) / sum(steps) if sum(steps) else None,
        macs_mean=_step_mean(records, 'macs_mean'),
        scoring_macs_mean=_step_mean(records, 'scoring_macs_mean'),
        latency=step_latency(records),
        policy_steps_mean=float(np.mean(steps)) if steps else None,
        versus_baseline=versus,
        baseline=_baseline_cell(other, cells[other]) if versus and other else None,
        no_pairs=no_pairs,
        seed_first=min(seeds),
        seed_last=max(seeds),
        commits=tuple(sorted({str(record.get('commit', 'unknown')) for record in records})),
        cpus=tuple(sorted({str(record.get('cpu') or 'unknown') for record in records})),
        settings=dict(records[0].get('settings', {})),
        config=dict(records[0].get('config', {})),
    )


def _versus(cell: Mapping[Pair, Record], baseline: Mapping[Pair, Record]) -> PairedDifference:
    shared = [pair for pair in cell if pair in baseline]
    return paired_difference(
        [(bool(cell[pair]['success']), bool(baseline[pair]['success'])) for pair in shared],
        [seed for seed, _ in shared],
    )


def _baseline_cell(key: CellKey, cell: Mapping[Pair, Record]) -> BaselineCell:
    _, _, variant, ratio = key
    return BaselineCell(variant, ratio, _step_mean(list(cell.values()), 'retained_tokens_mean'))


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


def all_weighted(cells: Iterable[CellSummary]) -> bool:
    """Has every cell with a latency the one that counts key timesteps in? Older ones lack it."""
    return all(
        cell.latency.weighted_p50_ms is not None
        for cell in cells
        if cell.latency.p50_ms is not None
    )


def as_dict(cell: CellSummary) -> dict[str, Any]:
    """JSON-ready."""
    return asdict(cell)
