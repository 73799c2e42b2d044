"""Plots of a closed-loop evaluation: what success costs, and where key timesteps fall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no window, whatever the machine

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from safe_pruner_ros.evaluation.configurations import labeller
from safe_pruner_ros.evaluation.palette import COLOURS
from safe_pruner_ros.evaluation.results import Record
from safe_pruner_ros.evaluation.success_plots import Quantity, draw_rates, draw_success
from safe_pruner_ros.evaluation.summary import CellSummary, all_weighted, cell_key

SUCCESS, FAILURE = COLOURS[:2]
SHOWN_EPISODES = 40
SUBTASK_GREYS = ('#F2F2F2', '#D9D9D9', '#BFBFBF', '#A6A6A6', '#8C8C8C')


def write_plots(
    folder: Path, cells: Sequence[CellSummary], episodes: Sequence[Record]
) -> list[Path]:
    """Write what there is data for: success.png, success_tokens.png, success_latency.png,
    keyframes.png."""
    latency, label, left_out = _latency(cells)
    figures: dict[str, Callable[[], Figure | None]] = {
        'success': lambda: draw_rates(cells),
        'success_tokens': lambda: draw_success(
            cells,
            lambda cell: cell.retained_tokens_mean,
            'mean visual tokens kept a policy step, key timesteps counted in',
        ),
        'success_latency': lambda: draw_success(cells, latency, label, left_out),
        'keyframes': lambda: draw_keyframes(episodes),
    }
    drawn = {name: draw() for name, draw in figures.items()}  # all, before one is replaced
    written = []
    for name, figure in drawn.items():
        if figure is None:
            continue
        path = folder / f'{name}.png'
        part = folder / f'{name}.png.part'
        figure.savefig(part, format='png', dpi=150, bbox_inches='tight')
        part.replace(path)
        plt.close(figure)
        written.append(path)
    return written


def _latency(cells: Sequence[CellSummary]) -> tuple[Quantity, str, str]:
    """Quantity, its label, and what it leaves out: the ratio to unpruned of the same run where
    there is one, else milliseconds of one run a task, that with most cells."""
    pruned = [cell for cell in cells if cell.method != 'unpruned']
    if any(cell.latency.ratio_to_unpruned is not None for cell in pruned):

        def ratio(cell: CellSummary) -> float | None:
            return cell.latency.ratio_to_unpruned

        why = 'for want of a latency of unpruned in the same run'
        label = 'latency of a policy step / that of unpruned, scene by scene'
        return ratio, label, _left_out(cells, ratio, why)
    weighted = all_weighted(cells)
    runs = Counter((cell.task, cell.latency.run) for cell in cells)
    run_of = {task: run for (task, run), _ in reversed(runs.most_common())}

    def latency_ms(cell: CellSummary) -> float | None:
        if cell.latency.run != run_of[cell.task]:
            return None
        return cell.latency.weighted_p50_ms if weighted else cell.latency.p50_ms

    how = 'medians of key and of other timesteps, weighted' if weighted else 'median'
    why = 'as milliseconds of two runs cannot be compared'
    return latency_ms, f'latency of a policy step, ms ({how})', _left_out(cells, latency_ms, why)


def _left_out(cells: Sequence[CellSummary], x: Quantity, why: str) -> str:
    """'' when all cells with a latency are drawn."""
    runs = Counter(
        cell.latency.run for cell in cells if cell.latency.p50_ms is not None and x(cell) is None
    )
    if not runs:
        return ''
    which = ', '.join(f'{n} cells' + (f' of {run}' if run else '') for run, n in runs.items())
    return f'not drawn, {why}: {which}'


def draw_keyframes(episodes: Sequence[Record]) -> Figure | None:
    """Where in an episode key timesteps fall, by variant, ratio and configuration: above the share
    of running episodes with one at each policy step, below the first episodes one by one, on the
    expert's subtask where it was recorded. None when no method took any after the first step."""
    label = labeller(episode.get('config', {}) for episode in episodes)
    groups: dict[tuple[str, str, float], list[Record]] = {}
    for episode in episodes:
        if episode.get('policy_steps'):
            _, task, variant, ratio = cell_key(episode)
            name = (task, variant + label(episode.get('config', {})), ratio)
            groups.setdefault(name, []).append(episode)
    chosen = _chosen(groups)
    if not chosen:
        return None
    figure, axes = plt.subplots(
        2, len(chosen), figsize=(5.2 * len(chosen), 6.6), squeeze=False,
        gridspec_kw={'height_ratios': (1, 1.7)},
    )  # fmt: skip
    for (share, raster), (name, group) in zip(axes.T, chosen.items(), strict=True):
        longest = max(int(episode['policy_steps']) for episode in group)
        _draw_share(share, group, longest)
        _draw_raster(raster, group[:SHOWN_EPISODES])
        share.set_title(name if len(name) < 50 else name.replace(':', ':\n', 1), fontsize=9)
        for axis in (share, raster):
            axis.set_xlim(-0.6, longest - 0.4)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        raster.set_xlabel('policy step of the episode')
    axes[0, 0].set_ylabel('share of running episodes\nthat take a key timestep')
    axes[1, 0].set_ylabel(f'episode (first {SHOWN_EPISODES})')
    figure.tight_layout()
    return figure


def _chosen(
    groups: dict[tuple[str, str, float], list[Record]], most: int = 4
) -> dict[str, list[Record]]:
    """More panels nobody reads: SAFE-Pruner first, and each variant before its other ratios."""
    taking = [
        name
        for name, group in groups.items()
        if any(step > 0 for episode in group for step in episode.get('keyframe_steps') or ())
    ]
    taking.sort(key=lambda name: (not name[1].startswith('safe_pruner'), len(name[1])))
    first = {(task, variant): ratio for task, variant, ratio in reversed(taking)}
    taking.sort(key=lambda name: first[name[0], name[1]] != name[2])
    return {
        f'{task}, {variant} at {ratio:g}': groups[task, variant, ratio]
        for task, variant, ratio in taking[:most]
    }


def _draw_share(axis: Axes, group: Sequence[Record], longest: int) -> None:
    running, taken = np.zeros(longest), np.zeros(longest)
    for episode in group:
        running[: int(episode['policy_steps'])] += 1
        taken[list(episode['keyframe_steps'])] += 1
    axis.bar(np.arange(longest), taken / running, color=SUCCESS)
    axis.set_ylim(0, 1.02)
    axis.grid(axis='y', alpha=0.3)


def _draw_raster(axis: Axes, group: Sequence[Record]) -> None:
    names = list(dict.fromkeys(name for e in group for name in e.get('subtasks') or ()))
    greys = dict(zip(names, SUBTASK_GREYS * (1 + len(names) // len(SUBTASK_GREYS)), strict=False))
    for row, episode in enumerate(group):
        steps = int(episode['policy_steps'])
        subtasks = episode.get('subtasks') or [None] * steps
        for step, name in enumerate(subtasks[:steps]):
            axis.barh(row, 1, left=step - 0.5, height=1.0, color=greys.get(name, '#EFEFEF'))
        keys = list(episode['keyframe_steps'])
        colour = SUCCESS if episode['success'] else FAILURE
        axis.plot(keys, [row] * len(keys), 's', color=colour, markersize=3.5)
    for label, colour in (('success', SUCCESS), ('failure', FAILURE)):
        axis.plot([], [], 's', color=colour, markersize=4, label=f'key timestep, {label}')
    for name, grey in greys.items():
        axis.bar([0], [0], color=grey, label=f'subtask {name}')
    axis.set_ylim(len(group) - 0.5, -0.5)
    axis.legend(
        fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False
    )
