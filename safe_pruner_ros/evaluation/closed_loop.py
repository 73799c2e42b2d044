"""`safe-pruner table`: any number of results -> the one table that is committed, and its plots."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.methods import parse_method
from safe_pruner_ros.evaluation.plots import write_plots
from safe_pruner_ros.evaluation.results import Record, ResultsError, key_of, read_episodes, to_json
from safe_pruner_ros.evaluation.summary import CellSummary, cell_key, summarise
from safe_pruner_ros.evaluation.tables import markdown_summary

# What two runs of the same episode need not share.
INCIDENTAL = ('commit', 'wall_s', 'latency_ms_p50')


def main(arguments: argparse.Namespace) -> int:
    """Write ``arguments.out`` (.json), the same name with .md, and the plots."""
    baselines = [parse_method(text).variant for text in arguments.baseline]
    episodes = read_results(arguments.results)
    cells = summarise(episodes, baselines[0])
    text = markdown_summary(episodes, baselines)
    out: Path = arguments.out
    plots: Path = arguments.plots or out.parent
    for folder in (out.parent, plots):
        folder.mkdir(parents=True, exist_ok=True)
    out.write_text(table_json(cells))
    out.with_suffix('.md').write_text(text)
    written = write_plots(plots, cells, episodes)
    print(text)
    print(f'{len(episodes)} episodes in {len(cells)} cells; written to {out}', end='')
    print(''.join(f', {path}' for path in (out.with_suffix('.md'), *written)))
    return 0


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The episodes of JSONL files, and of all ``episodes.jsonl`` below folders, each once.

    An episode may be there twice, when two plans share a cell and it came out the same. Raises
    FileNotFoundError for a path without results; ResultsError for a broken line, or an episode
    that came out differently in two files.
    """
    files: dict[Path, None] = {}
    for path in paths:
        found = sorted(path.rglob('episodes.jsonl')) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise FileNotFoundError(f'no evaluation results at {path}')
        files |= dict.fromkeys(file.resolve() for file in found)
    episodes: dict[object, tuple[Path, dict[str, Any]]] = {}
    for file in files:
        for record in read_episodes(file):
            key = cell_key(record), key_of(record)
            if key not in episodes:
                episodes[key] = (file, record)
                continue
            other, before = episodes[key]
            if changed := _differences(before, record):
                raise ResultsError(
                    f'{other} and {file} disagree about episode {key_of(record)}: {changed}; '
                    'leave one of them out'
                )
    return [record for _, record in episodes.values()]


def _differences(before: Record, after: Record) -> list[str]:
    names = sorted((set(before) | set(after)) - set(INCIDENTAL))
    return [name for name in names if before.get(name) != after.get(name)]


def table_json(cells: Sequence[CellSummary]) -> str:
    """A list of cells, one a line, so that a change shows as changed lines."""
    lines = [to_json(table_cell(cell), indent=None) for cell in cells]
    return '[\n' + ',\n'.join(lines) + '\n]\n'


def table_cell(cell: CellSummary) -> dict[str, Any]:
    """What docs/results/closed_loop.json says about a cell."""
    versus = cell.versus_baseline
    return {
        'task': cell.task,
        'method': cell.method,
        'variant': cell.variant,
        'retention_ratio': cell.retention_ratio,
        'episodes': cell.episodes,
        'successes': cell.successes,
        'success_low': round(cell.low, 4),
        'success_high': round(cell.high, 4),
        'errors': cell.errors,
        'retained_tokens_mean': _rounded(cell.retained_tokens_mean, 2),
        'keyframe_share': _rounded(cell.keyframe_share, 4),
        'macs_mean': _rounded(cell.macs_mean, 0),
        'latency_ms_p50': _rounded(cell.latency_ms_p50, 2),
        'policy_steps_mean': _rounded(cell.policy_steps_mean, 2),
        'versus_baseline': None
        if versus is None
        else {
            'pairs': versus.pairs,
            'wins': versus.wins,
            'losses': versus.losses,
            'mcnemar_p': float(f'{versus.p_value:.3g}'),
        },
        'seed_first': cell.seed_first,
        'seed_last': cell.seed_last,
        'commits': cell.commits,
        'checkpoint': cell.config.get('checkpoint'),
        'training_seed': cell.config.get('training_seed'),
        'config': {
            name: value
            for name, value in cell.config.items()
            if name not in ('checkpoint', 'training_seed')
        },
        'settings': cell.settings,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
