"""Cell summaries as Markdown, to paste into docs/experiments.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safe_pruner_ros.evaluation.results import Record
from safe_pruner_ros.evaluation.statistics import holm
from safe_pruner_ros.evaluation.summary import CellSummary, cell_key, summarise


def markdown_table(cells: Sequence[CellSummary]) -> str:
    """A table to paste into docs/experiments.md. Rates and differences in percent (points)."""
    columns: list[tuple[str, Callable[[CellSummary], str]]] = [
        ('method', lambda c: c.variant),
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
    columns[:0] = _where(cells)
    if any(cell.errors for cell in cells):
        columns.append(('errors', lambda c: str(c.errors)))
    return table([name for name, _ in columns], [[show(c) for _, show in columns] for c in cells])


def _where(cells: Sequence[CellSummary]) -> list[tuple[str, Callable[[CellSummary], str]]]:
    """Columns for what is not the same in all rows."""
    columns: list[tuple[str, Callable[[CellSummary], str]]] = []
    if len({cell.task for cell in cells}) > 1:
        columns.append(('task', lambda c: c.task))
    if len({cell.config.get('checkpoint') for cell in cells}) > 1:
        columns.append(('training seed', lambda c: _training_seed(c)))
    return columns


def _training_seed(cell: CellSummary) -> str:
    seed = cell.config.get('training_seed')
    return str(cell.config.get('checkpoint', '')) if seed is None else str(seed)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; 'task' and 'method' to the left, all else to the right."""
    rules = ['---' if name in ('task', 'method') else '---:' for name in head]
    return ''.join('| ' + ' | '.join(row) + ' |\n' for row in (head, rules, *rows))


def comparison_table(cells: Sequence[CellSummary]) -> str:
    """Every cell that has a baseline at its ratio, pair by pair. The last column is McNemar's p
    times what Holm's procedure asks for looking at so many pairs at once."""
    compared = [cell for cell in cells if cell.versus_baseline and cell.versus_baseline.pairs]
    places = _where(cells)
    rows = []
    adjusted = holm([cell.versus_baseline.p_value for cell in compared if cell.versus_baseline])
    for cell, p_holm in zip(compared, adjusted, strict=True):
        versus = cell.versus_baseline
        assert versus is not None
        rows.append(
            [
                *(show(cell) for _, show in places),
                cell.variant,
                f'{cell.retention_ratio:g}',
                str(versus.pairs),
                str(versus.wins),
                str(versus.losses),
                _difference(cell),
                _p(versus.p_value),
                _p(p_holm),
            ]
        )
    head = ['method', 'retention', 'pairs', 'only it', 'only the other', 'points [95 %]']
    return table([*(name for name, _ in places), *head, 'McNemar p', 'Holm p'], rows)


def markdown_summary(episodes: Sequence[Record], baselines: Sequence[str]) -> str:
    """The table of all cells against the first baseline, then a comparison with each other one."""
    text = markdown_table(summarise(episodes, baselines[0]))
    for baseline in baselines[1:]:
        ran = {cell_key(e)[:2] for e in episodes if baseline in (e['method'], e.get('variant'))}
        shared = [episode for episode in episodes if cell_key(episode)[:2] in ran]
        cells = [cell for cell in summarise(shared, baseline) if cell.retention_ratio < 1]
        if not any(cell.versus_baseline and cell.versus_baseline.pairs for cell in cells):
            continue
        text += (
            f'\nEach against {baseline} at the same ratio, on the same scenes:\n\n'
            f'{comparison_table(cells)}'
        )
    return text


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
    return '' if versus is None or not versus.pairs else _p(versus.p_value)


def _p(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _number(value: float | None, style: str, scale: float = 1.0) -> str:
    return '' if value is None else format(value * scale, style)
