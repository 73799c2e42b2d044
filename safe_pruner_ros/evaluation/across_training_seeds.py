"""What another training of the policy changes: one row for the cells that differ in nothing else.

The interval of a cell is over scenes, for one set of weights. Three trainings are too few for an
interval of their own, so the rates of all of them are shown, and how far they lie apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safe_pruner_ros.evaluation.configurations import Show, differing
from safe_pruner_ros.evaluation.markdown import table
from safe_pruner_ros.evaluation.summary import CellSummary

WEIGHTS = ('checkpoint', 'training_seed')
Group = list[CellSummary]  # by training seed
Column = tuple[str, Callable[[Group], str]]


def training_seed_table(cells: Sequence[CellSummary]) -> str:
    """Markdown of the cells that ran with several training seeds, in the order of ``cells``; ''
    where none did. Rates and differences in percent (points)."""
    groups = _groups(cells)
    if not groups:
        return ''
    columns: list[Column] = [
        *_where(groups),
        ('method', lambda g: g[0].variant),
        ('retention', lambda g: f'{g[0].retention_ratio:g}'),
        ('training seeds', lambda g: _each(g, lambda c: str(c.config['training_seed']))),
        ('success %', lambda g: _each(g, lambda c: f'{100 * c.success_rate:.1f}')),
        ('mean', lambda g: f'{100 * sum(c.success_rate for c in g) / len(g):.1f}'),
        ('vs baseline, points', lambda g: _each(g, _difference)),
        ('mean tokens', lambda g: _each(g, _tokens)),
    ]
    text = (
        '\nOver training seeds, in the order named; intervals over scenes (above) do not hold '
        'what another training changes:\n\n'
    )
    head = [name for name, _ in columns]
    return text + table(head, [[show(group) for _, show in columns] for group in groups])


def _groups(cells: Sequence[CellSummary]) -> list[Group]:
    groups: dict[tuple[str, ...], Group] = {}
    for cell in cells:
        if cell.config.get('training_seed') is None:
            continue
        shared = sorted(_without_weights(cell.config).items())
        key = (repr(shared), cell.task, cell.variant, f'{cell.retention_ratio}')
        groups.setdefault(key, []).append(cell)
    return [
        sorted(group, key=_weights)
        for group in groups.values()
        if len({cell.config['training_seed'] for cell in group}) > 1
    ]


def _weights(cell: CellSummary) -> tuple[int, str, str]:
    """To sort by. A line may say anything for its seed; numbers are as long as they are large."""
    seed = str(cell.config['training_seed'])
    return len(seed), seed, str(cell.config.get('checkpoint'))


def _where(groups: Sequence[Group]) -> list[Column]:
    """Columns for what is not the same in all rows."""
    columns: list[Column] = []
    if len({group[0].task for group in groups}) > 1:
        columns.append(('task', lambda g: g[0].task))
    shared = differing(_without_weights(group[0].config) for group in groups)
    return columns + [(name, _of_config(show)) for name, show in shared]


def _of_config(show: Show) -> Callable[[Group], str]:
    return lambda group: show(group[0].config)


def _without_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in WEIGHTS}


def _each(group: Group, show: Callable[[CellSummary], str]) -> str:
    return ', '.join(map(show, group))


def _difference(cell: CellSummary) -> str:
    versus = cell.versus_baseline
    return f'{100 * versus.difference:+.1f}' if versus and versus.pairs else '-'


def _tokens(cell: CellSummary) -> str:
    return '-' if cell.retained_tokens_mean is None else f'{cell.retained_tokens_mean:.0f}'
