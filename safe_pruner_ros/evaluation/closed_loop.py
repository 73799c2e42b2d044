"""`safe-pruner table`: any number of results -> the one table that is committed, and its plots."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.baselines import check_baseline, read_baseline
from safe_pruner_ros.evaluation.plots import write_plots
from safe_pruner_ros.evaluation.recorded_settings import settings_of
from safe_pruner_ros.evaluation.results import (
    EPISODES,
    PACKED,
    Record,
    ResultsError,
    key_of,
    read_episodes,
    to_json,
    write_whole,
)
from safe_pruner_ros.evaluation.statistics import PairedDifference
from safe_pruner_ros.evaluation.step_latency import in_run
from safe_pruner_ros.evaluation.summary import CellSummary, cell_key, summarise
from safe_pruner_ros.evaluation.tables import markdown_summary

# What two runs of the same episode need not share.
INCIDENTAL = (
    'commit',
    'cpu',
    'wall_s',
    'latency_ms_p50',
    'latency_ms_mean',
    'latency_ms_key_p50',
    'latency_ms_pruned_p50',
    'run',
    'unpruned_ms',
    'settings_hash',  # the settings are compared themselves; older versions hashed 0 for 0.0
)
# Fields that came later: a line of an older version, which lacks them, does not disagree.
LATER = ('scoring_macs_mean',)


def main(arguments: argparse.Namespace) -> int:
    """Write the plots, then ``arguments.out`` (.json) and the same name with .md: a failure on the
    way leaves the table as it was. Raises ValueError for a baseline that did not run, and as
    `read_results`."""
    chosen = [read_baseline(text) for text in arguments.baseline]
    episodes = read_results(arguments.results)
    baselines = [str(baseline) for baseline in chosen]
    cells = summarise(episodes, baselines[0])
    for baseline in chosen:
        ran = [(cell.method, cell.variant, cell.retention_ratio) for cell in cells]
        check_baseline(baseline, ran, 'these results')
    text = markdown_summary(episodes, baselines)
    out: Path = arguments.out
    plots: Path = arguments.plots or out.parent
    for folder in (out.parent, plots):
        folder.mkdir(parents=True, exist_ok=True)
    written = write_plots(plots, cells, episodes)
    write_whole(out, table_json(cells))
    write_whole(out.with_suffix('.md'), text)
    print(text)
    print(f'{len(episodes)} episodes in {len(cells)} cells; written to {out}', end='')
    print(''.join(f', {path}' for path in (out.with_suffix('.md'), *written)))
    return 0


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The episodes of JSONL files, and of all ``episodes.jsonl`` (.xz) below folders, each once,
    with the ``run`` that each is of (`in_run`).

    An episode may be there twice, when two plans share a cell and it came out the same. Raises
    FileNotFoundError for a path without results; ResultsError for one without episodes, a broken
    line, an episode that came out differently in two files, and lines that do not say their
    configuration beside others.
    """
    files: dict[Path, list[dict[str, Any]]] = {}
    for path in paths:
        found = _below(path) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise FileNotFoundError(f'no evaluation results at {path}')
        read = {file.resolve(): read_episodes(file) for file in found}
        if not any(read.values()):
            raise ResultsError(
                f'{path} holds no episodes; leave it out, or give the episodes.jsonl (or its '
                'folder) that `safe-pruner evaluate` wrote'
            )
        files |= read
    _check_configurations(files)
    episodes: dict[object, tuple[Path, dict[str, Any]]] = {}
    runs = _run_names(files)
    for file, records in files.items():
        for record in in_run(records, runs[file]):
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
            before |= {
                name: record[name] for name in LATER if before.get(name) is None and name in record
            }
    return [record for _, record in episodes.values()]


def _run_names(files: Iterable[Path]) -> dict[Path, str]:
    """A results folder is a run, a file of another name is, too; named from where paths part."""
    places = {
        file: file.parent if file.name.removesuffix(PACKED) == EPISODES else file for file in files
    }
    shared = Path(os.path.commonpath([place.parent for place in places.values()]))
    return {file: place.relative_to(shared).as_posix() for file, place in places.items()}


def _below(folder: Path) -> list[Path]:
    return sorted(
        path
        for name in (EPISODES, EPISODES + PACKED)
        for path in folder.rglob(name)
        if not (path.suffix == PACKED and _has_text(path.with_suffix('')))
    )


def _has_text(path: Path) -> bool:
    """`evaluate` goes on from a packed file by copying it: with both there, this one has it all,
    and newer records of episodes that ran again."""
    return path.is_file() and path.stat().st_size > 0


def _check_configurations(files: Mapping[Path, Sequence[Record]]) -> None:
    """Nobody can say which other lines belong together with one that has no configuration."""
    holding = [file for file, records in files.items() if records]
    for file in holding:
        n_without = sum('config' not in record for record in files[file])
        if n_without and (len(holding) > 1 or n_without < len(files[file])):
            others = 'other results' if len(holding) > 1 else 'lines that do'
            raise ResultsError(
                f'{file} has {n_without} lines of an older version that do not say their '
                f'configuration, beside {others}; run them again, or make a table of them alone'
            )


def _differences(before: Record, after: Record) -> list[str]:
    names = sorted((set(before) | set(after)) - set(INCIDENTAL))
    return [
        name
        for name in names
        if before.get(name) != after.get(name)
        and not _is_later(name, before, after)
        and not (name == 'settings' and settings_of(before) == settings_of(after))
    ]


def _is_later(name: str, before: Record, after: Record) -> bool:
    return name in LATER and None in (before.get(name), after.get(name))


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
        'scenes': cell.scenes,
        'successes': cell.successes,
        'success_low': round(cell.low, 4),
        'success_high': round(cell.high, 4),
        'errors': cell.errors,
        'retained_tokens_mean': _rounded(cell.retained_tokens_mean, 2),
        'keyframe_share': _rounded(cell.keyframe_share, 4),
        'macs_mean': _rounded(cell.macs_mean, 0),
        'scoring_macs_mean': _rounded(cell.scoring_macs_mean, 0),
        'latency_run': cell.latency.run,
        'latency_ms_p50': _rounded(cell.latency.p50_ms, 2),
        'latency_ms_weighted_p50': _rounded(cell.latency.weighted_p50_ms, 2),
        'latency_ratio_to_unpruned': _rounded(cell.latency.ratio_to_unpruned, 4),
        'policy_steps_mean': _rounded(cell.policy_steps_mean, 2),
        'versus_baseline': None if versus is None else _table_versus(cell, versus),
        'seed_first': cell.seed_first,
        'seed_last': cell.seed_last,
        'commits': cell.commits,
        'cpus': cell.cpus,
        'checkpoint': cell.config.get('checkpoint'),
        'training_seed': cell.config.get('training_seed'),
        'config': {
            name: value
            for name, value in cell.config.items()
            if name not in ('checkpoint', 'training_seed')
        },
        'settings': cell.settings,
    }


def _table_versus(cell: CellSummary, versus: PairedDifference) -> dict[str, Any]:
    """Without pairs: why, and no p."""
    if not versus.pairs:
        return {'pairs': 0, 'no_pairs': cell.no_pairs}
    assert cell.baseline is not None
    one_each = versus.scenes == versus.pairs
    return {
        'variant': cell.baseline.variant,
        'retention_ratio': cell.baseline.retention_ratio,
        'retained_tokens_mean': _rounded(cell.baseline.retained_tokens_mean, 2),
        'pairs': versus.pairs,
        'wins': versus.wins,
        'losses': versus.losses,
        'mcnemar_p' if one_each else 'sign_flip_p': float(f'{versus.p_value:.3g}'),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
