"""Plots of a closed-loop evaluation: what success costs, and where key timesteps fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no window, whatever the machine

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from safe_pruner_ros.evaluation.results import Record
from safe_pruner_ros.evaluation.summary import CellSummary

# Okabe-Ito without yellow, which is hard to see on white, and three more; unpruned is grey.
COLOURS = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#5D3A9B', '#8C510A',
    '#1A1A1A',
)  # fmt: skip
MARKERS = 'osD^vP*Xh'
GREY = '#777777'
SHOWN_EPISODES = 40
SUBTASK_GREYS = ('#F2F2F2', '#D9D9D9', '#BFBFBF', '#A6A6A6', '#8C8C8C')


def write_plots(
    folder: Path, cells: Sequence[CellSummary], episodes: Sequence[Record]
) -> list[Path]:
    """Write what there is data for: success_tokens.png, success_latency.png, keyframes.png."""
    written = []
    figures: dict[str, Callable[[], Figure | None]] = {
        'success_tokens': lambda: draw_success(
            cells,
            lambda cell: cell.retained_tokens_mean,
            'mean visual tokens kept a policy step, key timesteps counted in',
        ),
        'success_latency': lambda: draw_success(
            cells, lambda cell: cell.latency_ms_p50, 'latency of a policy step, ms (median)'
        ),
        'keyframes': lambda: draw_keyframes(episodes),
    }
    for name, draw in figures.items():
        figure = draw()
        if figure is None:
            continue
        path = folder / f'{name}.png'
        figure.savefig(path, dpi=150, bbox_inches='tight')
        plt.close(figure)
        written.append(path)
    return written


def draw_success(
    cells: Sequence[CellSummary], x: Callable[[CellSummary], float | None], label: str
) -> Figure | None:
    """Success rate over ``x`` with 95 % Wilson intervals, one panel a task, one line a variant
    (and training seed); None without data."""
    shown = [cell for cell in cells if x(cell) is not None]
    if not shown:
        return None
    tasks = list(dict.fromkeys(cell.task for cell in shown))
    several = len({cell.config.get('training_seed') for cell in shown}) > 1

    def name(cell: CellSummary) -> str:
        seed = cell.config.get('training_seed')
        return f'{cell.variant} (training seed {seed})' if several else cell.variant

    figure, axes = plt.subplots(
        1, len(tasks), figsize=(6.2 * len(tasks), 4.6), sharey=True, squeeze=False
    )
    lines = list(dict.fromkeys(map(name, shown)))
    pruned = [line for line in lines if not line.startswith('unpruned')]
    for axis, task in zip(axes[0], tasks, strict=True):
        for line in lines:
            points = [cell for cell in shown if cell.task == task and name(cell) == line]
            if points:
                place = pruned.index(line) if line in pruned else None
                _draw_line(axis, sorted(points, key=lambda c: x(c) or 0.0), x, line, place)
        axis.set(xlabel=label, title=task, ylim=(-3, 103))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel('success, % (bars: 95 % Wilson intervals)')
    handles = {
        text: handle
        for axis in axes[0]
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc='center left', bbox_to_anchor=(1.0, 0.5),
        fontsize=8, frameon=False,
    )  # fmt: skip
    figure.tight_layout()
    return figure


def _draw_line(
    axis: Axes,
    points: Sequence[CellSummary],
    x: Callable[[CellSummary], float | None],
    label: str,
    place: int | None,
) -> None:
    xs = [x(cell) for cell in points]
    rates = np.array([100 * cell.success_rate for cell in points])
    below = rates - [100 * cell.low for cell in points]
    above = [100 * cell.high for cell in points] - rates
    colour = GREY if place is None else COLOURS[place % len(COLOURS)]
    # Intervals at the ends of the scale can come out as -1e-14.
    errors = np.stack([below, above]).clip(min=0)
    axis.errorbar(
        xs, rates, yerr=errors, label=label, color=colour,
        marker='_' if place is None else MARKERS[place % len(MARKERS)],
        linestyle=('-', '--', ':')[(place or 0) // len(COLOURS) % 3],
        markersize=12 if place is None else 5, linewidth=1.4, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip
    if place is None:
        for rate in rates:
            axis.axhline(rate, color=GREY, linewidth=0.8, linestyle=':')


def draw_keyframes(episodes: Sequence[Record]) -> Figure | None:
    """Where in an episode key timesteps fall, by variant and ratio: above the share of running
    episodes with one at each policy step, below the first episodes one by one, on the expert's
    subtask where it was recorded. None when no method took any after the first step."""
    groups: dict[tuple[str, str, float], list[Record]] = {}
    for episode in episodes:
        if episode.get('policy_steps'):
            variant = str(episode.get('variant') or episode['method'])
            name = (episode['task'], variant, float(episode['retention_ratio']))
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
    axis.bar(np.arange(longest), taken / running, color=COLOURS[0])
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
        colour = COLOURS[0] if episode['success'] else COLOURS[1]
        axis.plot(keys, [row] * len(keys), 's', color=colour, markersize=3.5)
    for label, colour in (('success', COLOURS[0]), ('failure', COLOURS[1])):
        axis.plot([], [], 's', color=colour, markersize=4, label=f'key timestep, {label}')
    for name, grey in greys.items():
        axis.bar([0], [0], color=grey, label=f'subtask {name}')
    axis.set_ylim(len(group) - 0.5, -0.5)
    axis.legend(
        fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False
    )
