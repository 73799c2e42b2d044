"""Plots of success rates: by cell, and over what a cell costs.

A method has the same colour whatever ran beside it; its variants share it and differ by marker
and line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, cycle

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no window, whatever the machine

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_pruner_ros.core.catalog import METHODS
from safe_pruner_ros.evaluation.configurations import labeller
from safe_pruner_ros.evaluation.palette import COLOURS, GREY, LIGHT_GREY, MARKERS
from safe_pruner_ros.evaluation.summary import CellSummary

LINES = ('-', '--', ':', '-.')

Quantity = Callable[[CellSummary], float | None]


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """Of each of ``methods``, the first of which is unpruned; with more methods than colours they
    begin again, and markers and names tell those of one colour apart."""
    return dict(zip(methods, chain((GREY,), cycle(COLOURS)), strict=False))


METHOD_COLOURS = method_colours(METHODS)


def draw_rates(cells: Sequence[CellSummary]) -> Figure | None:
    """Success with its 95 % Wilson interval, one panel a task, one row a variant and ratio (and
    configuration): by falling ratio, then by falling success over all tasks. The mean number of
    visual tokens stands beside each point. None without cells."""
    if not cells:
        return None
    name = _namer(cells)
    groups: dict[tuple[float, str], list[CellSummary]] = {}
    for cell in cells:
        groups.setdefault((cell.retention_ratio, name(cell)), []).append(cell)
    rows = sorted(groups, key=lambda row: (-row[0], -np.mean(_rates(groups[row])), row[1]))
    looks = _looks(cells, name)
    tasks = _tasks(cells)
    height = 1.3 + 0.25 * len(rows)  # inches
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(3.4 * len(tasks), height), sharex=True, sharey=True, squeeze=False
    )
    # Names of variants are as long as they like: they widen the picture, not narrow the panels.
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - 0.7 / height, bottom=0.5 / height, wspace=0.06
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for place, row in enumerate(rows):
            for cell in groups[row]:
                if cell.task == task:
                    _draw_row(axis, cell, place, *looks[row[1]][:2])
        for place in range(1, len(rows)):
            if rows[place][0] != rows[place - 1][0]:
                axis.axhline(place - 0.5, color='#BBBBBB', linewidth=0.8)
        axis.set(title=task, xlim=(-3, 124), xlabel='success, %')
        axis.set_xticks(range(0, 101, 25))
        axis.grid(axis='x', alpha=0.3)
    axes[0, 0].set_yticks(range(len(rows)), [f'{text} @{ratio:g}' for ratio, text in rows])
    axes[0, 0].tick_params(axis='y', labelsize=8)
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(
        'success with 95 % Wilson intervals; at the right the mean number of visual tokens',
        fontsize=9, y=1 - 0.1 / height, va='top', ha='right', x=0.98,
    )  # fmt: skip
    return figure


def draw_success(
    cells: Sequence[CellSummary], x: Quantity, label: str, note: str = ''
) -> Figure | None:
    """Success rate over ``x`` with 95 % Wilson intervals, one panel a task, one line a variant
    (and configuration); cells without ``x`` are left out, ``note`` is the title. None without
    data."""
    shown = [cell for cell in cells if x(cell) is not None]
    if not shown:
        return None
    name = _namer(shown)
    looks = _looks(shown, name)
    tasks = _tasks(shown)
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(6.2 * len(tasks), 4.6), sharey=True, squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for line, look in looks.items():
            points = [cell for cell in shown if cell.task == task and name(cell) == line]
            if points:
                _draw_line(axis, sorted(points, key=lambda c: x(c) or 0.0), x, line, *look)
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
    if note:
        figure.suptitle(note, fontsize=9)
    figure.tight_layout()
    return figure


def _namer(cells: Sequence[CellSummary]) -> Callable[[CellSummary], str]:
    """The variant, with what tells its configuration apart where there are several."""
    label = labeller(cell.config for cell in cells)
    return lambda cell: cell.variant + label(cell.config)


def _looks(
    cells: Sequence[CellSummary], name: Callable[[CellSummary], str]
) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and line style of each name, in the order of ``cells``."""
    looks: dict[str, tuple[str, str, str]] = {}
    for cell in cells:
        if name(cell) not in looks:
            colour = METHOD_COLOURS.get(cell.method, LIGHT_GREY)
            place = sum(other == colour for other, *_ in looks.values())
            looks[name(cell)] = (
                colour,
                MARKERS[place % len(MARKERS)],
                LINES[place % len(LINES)],
            )
    return looks


def _tasks(cells: Sequence[CellSummary]) -> list[str]:
    return list(dict.fromkeys(cell.task for cell in cells))


def _rates(cells: Sequence[CellSummary]) -> list[float]:
    return [100 * cell.success_rate for cell in cells]


def _spread(cells: Sequence[CellSummary]) -> np.ndarray:
    """How far the interval reaches below and above the rate: (2, cells), in points."""
    low = [100 * (cell.success_rate - cell.low) for cell in cells]
    high = [100 * (cell.high - cell.success_rate) for cell in cells]
    # Intervals at the ends of the scale can come out as -1e-14.
    return np.array([low, high]).clip(min=0)


def _draw_row(axis: Axes, cell: CellSummary, place: int, colour: str, marker: str) -> None:
    axis.errorbar(
        _rates([cell]), [place], xerr=_spread([cell]), color=colour, marker=marker,
        markersize=5, elinewidth=1.4, capsize=2.5, linestyle='none',
    )  # fmt: skip
    if cell.retained_tokens_mean is not None:
        axis.text(104, place, f'{cell.retained_tokens_mean:.0f}', va='center', fontsize=8)


def _draw_line(
    axis: Axes,
    points: Sequence[CellSummary],
    x: Quantity,
    label: str,
    colour: str,
    marker: str,
    line: str,
) -> None:
    unpruned = points[0].method == 'unpruned'
    axis.errorbar(
        [x(cell) for cell in points], _rates(points), yerr=_spread(points), label=label,
        color=colour, marker='_' if unpruned else marker, linestyle=line,
        markersize=12 if unpruned else 5, linewidth=1.4, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip
    if unpruned:
        for rate in _rates(points):
            axis.axhline(rate, color=colour, linewidth=0.8, linestyle=':')
