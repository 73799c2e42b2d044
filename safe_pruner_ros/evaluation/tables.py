"""Cell summaries as Markdown, to paste into docs/experiments.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from safe_pruner_ros.evaluation.across_training_seeds import training_seed_table
from safe_pruner_ros.evaluation.baselines import Baseline
from safe_pruner_ros.evaluation.configurations import Show, differing
from safe_pruner_ros.evaluation.markdown import table
from safe_pruner_ros.evaluation.results import Record
from safe_pruner_ros.evaluation.statistics import holm
from safe_pruner_ros.evaluation.summary import (
    NO_RATIO,
    NOT_HERE,
    CellSummary,
    all_weighted,
    summarise,
)

Column = tuple[str, Callable[[CellSummary], str]]
HINT = 'write METHOD@RATIO to compare all rows with one of its cells'
WEIGHTED = 'step ms weighted p50'
TO_UNPRUNED = 'step / unpruned'


def markdown_table(cells: Sequence[CellSummary]) -> str:
    """A table to paste into docs/experiments.md. Rates and differences in percent (points);
    Holm's p is corrected for all rows of the task."""
    adjusted = {id(cell): '' for cell in cells}
    for task in {cell.task for cell in cells}:
        of_task = [cell for cell in cells if cell.task == task]
        adjusted |= {id(c): p for c, p in zip(of_task, _holm(of_task), strict=True)}
    columns: list[Column] = [
        *_where(cells),
        ('method', lambda c: c.variant),
        ('retention', lambda c: f'{c.retention_ratio:g}'),
        ('success % [95 %]', _success),
        ('n', lambda c: str(c.episodes)),
        *_scenes(cells),
        ('vs baseline, points [95 %]', _difference),
        *(_of_baseline() if any(map(_is_pruned, cells)) else ()),
        (_test(cells), _p_value),
        ('Holm p', lambda c: adjusted[id(c)]),
        ('mean tokens', lambda c: _number(c.retained_tokens_mean, '.1f')),
        ('pruned %', lambda c: _number(c.pruning_ratio_mean, '.1f', 100)),
        ('key steps %', lambda c: _number(c.keyframe_share, '.1f', 100)),
        ('decoder MMACs', lambda c: _number(c.macs_mean, '.1f', 1e-6)),
    ]
    if any(cell.scoring_macs_mean is not None for cell in cells):
        columns.append(('scoring MMACs', lambda c: _number(c.scoring_macs_mean, '.2f', 1e-6)))
    columns += _latency(cells)
    columns.append(('steps', lambda c: _number(c.policy_steps_mean, '.1f')))
    if any(cell.errors for cell in cells):
        columns.append(('errors', lambda c: str(c.errors)))
    return _rows(columns, cells)


def comparison_table(cells: Sequence[CellSummary]) -> str:
    """Every cell that was compared, pair by pair, and with what; those without pairs say why.
    Holm's p is corrected for all rows of the table."""
    compared = [cell for cell in cells if cell.versus_baseline is not None]
    adjusted = {id(c): p for c, p in zip(compared, _holm(compared), strict=True)}
    columns: list[Column] = [
        *_where(compared),
        ('method', lambda c: c.variant),
        ('retention', lambda c: f'{c.retention_ratio:g}'),
        ('mean tokens', lambda c: _number(c.retained_tokens_mean, '.1f')),
        *_of_baseline(),
        ('pairs', lambda c: _count(c, 'pairs')),
        *_scenes(compared),
        ('only it', lambda c: _count(c, 'wins')),
        ('only the other', lambda c: _count(c, 'losses')),
        ('points [95 %]', _difference),
        (_test(compared), _p_value),
        ('Holm p', lambda c: adjusted[id(c)]),
    ]
    return _rows(columns, compared)


def markdown_summary(episodes: Sequence[Record], baselines: Sequence[str]) -> str:
    """The table of all cells against the first baseline, what it is over training seeds, then a
    comparison with each other baseline, or a line that says why there is none."""
    cells = summarise(episodes, baselines[0])
    text = _caption(cells, baselines[0]) + markdown_table(cells) + _latency_note(cells)
    text += training_seed_table(cells)
    text += _provenance(cells)
    for baseline in baselines[1:]:
        text += '\n' + _comparison(summarise(episodes, baseline), baseline)
    return text


def _caption(cells: Sequence[CellSummary], baseline: str) -> str:
    """What the first table's differences are to; '' for a table without any."""
    compared = [cell.versus_baseline for cell in cells if cell.versus_baseline]
    if not compared:
        return ''
    against = Baseline.parse(baseline).among(_ran(cells))
    did_run = bool(against.cells(_ran(cells)))
    if not did_run and not any(versus.pairs for versus in compared):
        return f'{baseline} {_absence(baseline, cells)}: there are no pairs.\n\n'
    name = 'the first row of each task (unpruned did not run)'
    if did_run:
        name = _name(against, baseline)
    text = f'Against {name}, on the same scenes; Holm p: corrected for all rows of the task.'
    if any(cell.no_pairs == NO_RATIO for cell in cells):
        text += f' It has several ratios: {HINT}.'
    return text + '\n\n'


def _comparison(cells: Sequence[CellSummary], baseline: str) -> str:
    against = Baseline.parse(baseline).among(_ran(cells))
    if not against.cells(_ran(cells)):
        return f'No comparison with {baseline}: it {_absence(baseline, cells)}.\n'
    others = [c for c in cells if c.retention_ratio < 1 and c.versus_baseline is not None]
    elsewhere = [cell for cell in others if cell.no_pairs == NOT_HERE]
    here = [cell for cell in others if cell.no_pairs != NOT_HERE]
    if not any(cell.versus_baseline and cell.versus_baseline.pairs for cell in here):
        reasons = ', '.join(sorted({cell.no_pairs for cell in others})) or 'no other pruned cell'
        ratios = sorted({ratio for _, _, ratio in against.cells(_ran(cells))})
        return (
            f'No pairs with {_name(against, baseline)}: {reasons}. It ran at '
            f'{", ".join(f"{ratio:g}" for ratio in ratios)}; {HINT}.\n'
        )
    text = f'Each against {_name(against, baseline)}, on the same scenes; '
    text += 'Holm p: corrected for all rows:\n\n'
    text += comparison_table(here)
    if elsewhere:
        text += f'\nNot compared: {len(elsewhere)} cells where {against} did not run.\n'
    return text


def _name(against: Baseline, asked: str) -> str:
    """What the rows are compared with, and why if that is not what was asked for."""
    if against == Baseline.parse(asked):
        return asked
    return f'{against}, the only variant of {asked} here'


def _absence(baseline: str, cells: Sequence[CellSummary]) -> str:
    asked = Baseline.parse(baseline)
    variants = asked.variants(_ran(cells))
    if len(variants) < 2 or asked.variant in variants:
        return 'did not run'
    return f'ran only as {" and ".join(variants)} (write one of them)'


def _ran(cells: Iterable[CellSummary]) -> list[tuple[str, str, float]]:
    return [(cell.method, cell.variant, cell.retention_ratio) for cell in cells]


def _rows(columns: Sequence[Column], cells: Sequence[CellSummary]) -> str:
    return table([name for name, _ in columns], [[show(c) for _, show in columns] for c in cells])


def _where(cells: Sequence[CellSummary]) -> list[Column]:
    """Columns for what is not the same in all rows."""
    columns: list[Column] = []
    if len({cell.task for cell in cells}) > 1:
        columns.append(('task', lambda c: c.task))
    return columns + [
        (name, _of_config(show)) for name, show in differing(c.config for c in cells)
    ]


def _of_config(show: Show) -> Callable[[CellSummary], str]:
    return lambda cell: show(cell.config)


def _scenes(cells: Sequence[CellSummary]) -> list[Column]:
    """Only where it is another number than that of the episodes."""
    several = any(cell.scenes < cell.episodes for cell in cells)
    return [('scenes', lambda c: str(c.scenes))] if several else []


def _latency(cells: Sequence[CellSummary]) -> list[Column]:
    """What was measured; with the run where rows of one task are of several."""
    columns: list[Column] = []
    if _several_runs(cells):
        columns.append(('run', lambda c: c.latency.run))
    if not all_weighted(cells):
        columns.append(('step ms p50', lambda c: _number(c.latency.p50_ms, '.1f')))
    if any(cell.latency.weighted_p50_ms is not None for cell in cells):
        columns.append((WEIGHTED, lambda c: _number(c.latency.weighted_p50_ms, '.1f')))
    if any(cell.latency.ratio_to_unpruned is not None for cell in cells):
        columns.append((TO_UNPRUNED, lambda c: _number(c.latency.ratio_to_unpruned, '.2f')))
    return columns


def _latency_note(cells: Sequence[CellSummary]) -> str:
    """What the columns of `_latency` cannot say themselves."""
    names = [name for name, _ in _latency(cells)]
    notes = []
    if WEIGHTED in names:
        notes.append(
            f'`{WEIGHTED}`: medians of key timesteps and of all others, weighted by their share.'
        )
    if 'run' in names:
        notes.append(
            'Milliseconds of two runs cannot be compared: they were measured at other times, '
            'beside another load.'
        )
    if TO_UNPRUNED in names:
        notes.append(
            f'`{TO_UNPRUNED}`: the same of ratios to unpruned in the same scene of the same run, '
            'empty where it did not run; below 1 is faster.'
        )
    return f'\n{" ".join(notes)}\n' if notes else ''


def _provenance(cells: Sequence[CellSummary]) -> str:
    commits = sorted({commit for cell in cells for commit in cell.commits})
    cpus = sorted({cpu for cell in cells for cpu in cell.cpus})
    return f'\nCode of {", ".join(commits)}. CPU: {", ".join(cpus)}.\n'


def _several_runs(cells: Sequence[CellSummary]) -> bool:
    tasks = {cell.task for cell in cells}
    return len({(cell.task, cell.latency.run) for cell in cells}) > len(tasks)


def _of_baseline() -> list[Column]:
    return [
        ('baseline retention', lambda c: f'{c.baseline.retention_ratio:g}' if c.baseline else ''),
        (
            'baseline tokens',
            lambda c: _number(c.baseline.retained_tokens_mean, '.1f') if c.baseline else '',
        ),
    ]


def _is_pruned(cell: CellSummary) -> bool:
    return cell.baseline is not None and cell.baseline.retention_ratio < 1


def _holm(cells: Sequence[CellSummary]) -> list[str]:
    """For each cell, '' where it has no pairs. One family."""
    tested = [cell.versus_baseline for cell in cells]
    p_values = iter(holm([versus.p_value for versus in tested if versus and versus.pairs]))
    return [_p(next(p_values)) if versus and versus.pairs else '' for versus in tested]


def _test(cells: Sequence[CellSummary]) -> str:
    """McNemar's, unless the signs of scenes were flipped; the two agree with one pair a scene."""
    tested = [cell.versus_baseline for cell in cells if cell.versus_baseline]
    clustered = any(versus.scenes < versus.pairs for versus in tested)
    return 'sign flip p' if clustered else 'McNemar p'


def _success(cell: CellSummary) -> str:
    low, high = 100 * cell.low, 100 * cell.high
    return f'{100 * cell.success_rate:.1f} [{low:.1f}, {high:.1f}]'


def _difference(cell: CellSummary) -> str:
    versus = cell.versus_baseline
    if versus is None:
        return 'baseline'
    if not versus.pairs:
        return cell.no_pairs
    low, high = 100 * versus.low, 100 * versus.high
    return f'{100 * versus.difference:+.1f} [{low:+.1f}, {high:+.1f}]'


def _count(cell: CellSummary, name: str) -> str:
    versus = cell.versus_baseline
    return str(getattr(versus, name)) if versus and versus.pairs else ''


def _p_value(cell: CellSummary) -> str:
    versus = cell.versus_baseline
    return '' if versus is None or not versus.pairs else _p(versus.p_value)


def _p(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _number(value: float | None, style: str, scale: float = 1.0) -> str:
    return '' if value is None else format(value * scale, style)
