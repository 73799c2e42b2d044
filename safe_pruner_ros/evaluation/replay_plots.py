"""The plots of a replay report, each as SVG text. Colours that colour-blind readers tell apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no window, whatever the machine

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safe_pruner_ros.evaluation.demo.timeline import STYLE
from safe_pruner_ros.evaluation.replay import Lane, Replay
from safe_pruner_ros.evaluation.replay_metrics import deviation

# Okabe-Ito without yellow, which is hard to see on white; unpruned is grey.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
GREY, LIMIT = '#777777', '#B00020'
WIDTH_IN = 10.5
PLOT_STYLE: Any = {**STYLE, 'svg.hashsalt': 'replay'}


def draw_plots(record: Replay, report: Mapping[str, Any]) -> dict[str, str]:
    """Heading -> SVG."""
    lanes = record.lanes[1:]
    limits = report['limits']
    plots = {}
    with plt.rc_context(PLOT_STYLE):
        if lanes:
            plots['Deviation from the unpruned policy over time'] = _deviation(
                record, lanes, limits
            )
            plots['Deviation by joint'] = _joints(report['methods'][1:], report['joints'])
        plots['Visual tokens kept'] = _tokens(record)
        plots['Latency of a policy step'] = _latency(record, report['deadline_ms'])
        if len(lanes) > 1:
            plots['What pruning buys and what it costs'] = _trade(report['methods'][1:])
    return plots


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', bbox_inches='tight', metadata={'Date': None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index('<svg') :]


def _axes(height_in: float) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=(WIDTH_IN, height_in))
    axis.grid(axis='y')
    axis.set_axisbelow(True)
    return figure, axis


def _legend(axis: Axes) -> None:
    axis.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8.5)


def _deviation(record: Replay, lanes: Sequence[Lane], limits: Mapping[str, Any]) -> str:
    """Largest arm joint of each step; a ring marks a key timestep of the method."""
    figure, axis = _axes(3.0)
    arms = ~record.layout.is_gripper
    for number, lane in enumerate(lanes):
        apart = deviation(lane, record)[..., arms].max(axis=(1, 2))
        axis.plot(record.times_s, apart, color=_colour(number), lw=1.4, label=lane.name)
        keys = [k for k, step in enumerate(lane.steps) if step.is_key_timestep]
        axis.scatter(record.times_s[keys], apart[keys], s=34, facecolor='white',
                     edgecolor=_colour(number), lw=1.2, zorder=3)  # fmt: skip
    if (limit := limits.get('max_deviation_rad')) is not None:
        axis.axhline(limit, color=LIMIT, lw=1, ls='--', label=f'limit {limit:g} rad')
    axis.set(ylim=(0, None), xlabel='time in the recording [s]',
             ylabel='largest arm joint\ndeviation [rad]')  # fmt: skip
    _legend(axis)
    return to_svg(figure)


def _joints(methods: Sequence[Mapping[str, Any]], joints: Sequence[str]) -> str:
    """p99 as a bar, p50 as a dot, max as a line end."""
    figure, axis = plt.subplots(figsize=(WIDTH_IN, 0.8 + 0.17 * len(joints) * (1 + len(methods))))
    axis.grid(axis='x')
    axis.set_axisbelow(True)
    height = 0.8 / len(methods)
    for number, method in enumerate(methods):
        places = np.arange(len(joints)) - 0.4 + height * (number + 0.5)
        values = [method['deviation_per_joint'][joint] for joint in joints]

        def column(name: str, values: Sequence[Mapping[str, Any]] = values) -> list[float]:
            return [np.nan if v[name] is None else v[name] for v in values]

        colour = _colour(number)
        axis.hlines(places, column('p99'), column('max'), color=colour, lw=1)
        axis.barh(places, column('p99'), 0.9 * height, color=colour, alpha=0.75,
                  label=f'{method["name"]}: p99')  # fmt: skip
        label = 'p50 (dot), max (end of line)' if not number else None
        axis.scatter(column('p50'), places, color='white', edgecolor='#222222', s=14, lw=0.7,
                     zorder=3, label=label)  # fmt: skip
    axis.set_yticks(range(len(joints)), joints)
    axis.set(ylim=(len(joints) - 0.4, -0.6), xlim=(0, None),
             xlabel='deviation from unpruned [rad; grippers: closed fraction]')  # fmt: skip
    axis.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8.5)
    return to_svg(figure)


def _tokens(record: Replay) -> str:
    figure, axis = _axes(2.4)
    for number, lane in enumerate(record.lanes):
        colour = GREY if number == 0 else _colour(number - 1)
        kept = [np.nan if step.error else step.n_retained for step in lane.steps]
        axis.step(record.times_s, kept, where='post', color=colour, lw=1.3, label=lane.name)
        reasons = [(k, s.reason) for k, s in enumerate(lane.steps) if s.is_key_timestep]
        if number and reasons:
            at = [k for k, _ in reasons]
            axis.scatter(record.times_s[at], np.array(kept)[at], s=16, color=colour, zorder=3)
    total = max((step.n_visual for step in record.baseline.steps), default=1)
    axis.set(ylim=(0, 1.1 * total), xlabel='time in the recording [s]',
             ylabel='visual tokens kept\n(dot: key timestep)')  # fmt: skip
    _legend(axis)
    return to_svg(figure)


def _latency(record: Replay, deadline_ms: float) -> str:
    """Share of the steps that took no longer than x."""
    figure, axis = _axes(2.6)
    for number, lane in enumerate(record.lanes):
        values = np.sort([step.total_ms for step in lane.steps if np.isfinite(step.total_ms)])
        share = 100 * np.arange(1, len(values) + 1) / max(1, len(values))
        colour = GREY if number == 0 else _colour(number - 1)
        axis.step(values, share, where='post', color=colour, lw=1.5, label=lane.name)
    longest = max(s.total_ms for lane in record.lanes for s in lane.steps if not s.error)
    if deadline_ms < 3 * longest:
        axis.axvline(deadline_ms, color=LIMIT, lw=1, ls='--',
                     label=f'deadline {deadline_ms:g} ms')  # fmt: skip
    axis.set(ylim=(0, 102), xlim=(0, None), xlabel='policy step takes at most [ms]',
             ylabel='share of steps [%]')  # fmt: skip
    _legend(axis)
    return to_svg(figure)


def _trade(methods: Sequence[Mapping[str, Any]]) -> str:
    """Lower left is better."""
    figure, axis = _axes(3.2)
    for number, method in enumerate(methods):
        p99 = method['deviation_rad']['p99']
        if p99 is None or method['retained_tokens_mean'] is None:
            continue
        x = 100 * method['retained_tokens_mean'] / method['n_visual']
        axis.scatter(x, p99, s=60, color=_colour(number), zorder=3)
        axis.annotate(method['name'], (x, p99), (7, 5), textcoords='offset points', fontsize=8.5)
    axis.margins(0.2)
    axis.set(xlabel='visual tokens kept, mean [%]', ylabel='p99 deviation of\narm joints [rad]')
    axis.set_ylim(0, None)
    return to_svg(figure)
