"""Episodes -> one row a cell, compared pair by pair with a baseline; as dicts and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safe_pruner_ros.core.catalog import METHODS
from safe_pruner_ros.evaluation.results import Record
from safe_pruner_ros.evaluation.statistics import (
    PairedDifference,
    paired_difference,
    wilson_interval,
)

CellKey = tuple[str, str, float]
Pair = tuple[int, int | None]


@dataclass(frozen=True)
class CellSummary:
    """One method at one retention ratio on one task. Rates are shares, ``low``/``high`` their 95 %
    Wilson interval; means are over episodes, None where nothing was measured. ``keyframe_share``:
    key timesteps of all policy steps. ``versus_baseline`` is None for the baseline itself."""

    task: str
    method: str
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

    @property
    def key(self) -> CellKey:
        return self.task, self.method, self.retention_ratio


def summarise(episodes: Iterable[Record], baseline: str = 'unpruned') -> list[CellSummary]:
    """One CellSummary a cell, by task, method (baseline first, then as catalogued) and falling
    ratio. Where method ``baseline`` did not run on a task, its first cell is the baseline."""
    cells: dict[CellKey, dict[Pair, Record]] = {}
    for episode in episodes:
        key = (episode['task'], episode['method'], float(episode['retention_ratio']))
        cells.setdefault(key, {})[episode['seed'], episode['asked_object']] = episode
    cells = dict(sorted(cells.items(), key=lambda item: _order(item[0], baseline)))
    return [_summarise(key, cell, _baseline(cells, key, baseline)) for key, cell in cells.items()]


def _order(key: CellKey, baseline: str) -> tuple[object, ...]:
    task, method, ratio = key
    place = METHODS.index(method) if method in METHODS else len(METHODS)
    return task, method != baseline, place, method, -ratio


def _baseline(
    cells: dict[CellKey, dict[Pair, Record]], key: CellKey, method: str
) -> dict[Pair, Record] | None:
    same_task = [other for other in cells if other[0] == key[0]]
    named = [other for other in same_task if other[1] == method]
    chosen = (named or same_task)[0]
    return None if chosen == key else cells[chosen]


def _summarise(
    key: CellKey, cell: dict[Pair, Record], baseline: dict[Pair, Record] | None
) -> CellSummary:
    records = list(cell.values())
    successes = sum(bool(record['success']) for record in records)
    low, high = wilson_interval(successes, len(records))
    steps = _values(records, 'policy_steps')
    versus = None
    if baseline is not None:
        shared = [pair for pair in cell if pair in baseline]
        versus = paired_difference(
            [(bool(cell[p]['success']), bool(baseline[p]['success'])) for p in shared]
        )
    return CellSummary(
        *key,
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


def markdown_table(cells: Sequence[CellSummary]) -> str:
    """A table to paste into docs/experiments.md. Rates and differences in percent (points)."""
    several_tasks = len({cell.task for cell in cells}) > 1
    columns: list[tuple[str, Callable[[CellSummary], str]]] = [
        ('method', lambda c: c.method),
        ('retention', lambda c: f'{c.retention_ratio:g}'),
        ('success % [95 %]', _success),
        ('n', lambda c: str(c.episodes)),
        ('vs baseline, points [95 %]', _difference),
        ('McNemar p', _p_value),
        ('mean tokens', lambda c: _number(c.retained_tokens_mean, '.1f')),
        ('pruned %', lambda c: _number(c.pruning_ratio_mean, '.1f', 100)),
        ('key steps %', lambda c: _number(c.keyframe_share, '.1f', 100)),
        ('decoder MMACs', lambda c: _number(c.macs_mean, '.1f', 1e-6)),
        ('step ms p50', lambda c: _number(c.latency_ms_p50, '.1f')),
        ('steps', lambda c: _number(c.policy_steps_mean, '.1f')),
    ]
    if several_tasks:
        columns.insert(0, ('task', lambda c: c.task))
    if any(cell.errors for cell in cells):
        columns.append(('errors', lambda c: str(c.errors)))
    rows = [[name for name, _ in columns], [_rule(name) for name, _ in columns]]
    rows += [[show(cell) for _, show in columns] for cell in cells]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'


def _rule(name: str) -> str:
    return '---' if name in ('task', 'method') else '---:'


def _success(cell: CellSummary) -> str:
    low, high = 100 * cell.low, 100 * cell.high
    return f'{100 * cell.success_rate:.1f} [{low:.1f}, {high:.1f}]'


def _difference(cell: CellSummary) -> str:
    versus = cell.versus_baseline
    if versus is None:
        return 'baseline'
    if not versus.pairs:
        return 'no shared episodes'
    low, high = 100 * versus.low, 100 * versus.high
    return f'{100 * versus.difference:+.1f} [{low:+.1f}, {high:+.1f}]'


def _p_value(cell: CellSummary) -> str:
    versus = cell.versus_baseline
    if versus is None or not versus.pairs:
        return ''
    return '< 0.001' if versus.p_value < 0.001 else f'{versus.p_value:.3f}'


def _number(value: float | None, style: str, scale: float = 1.0) -> str:
    return '' if value is None else format(value * scale, style)
