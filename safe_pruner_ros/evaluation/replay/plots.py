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

from safe_pruner_ros.evaluation.demo.timeline import MARKERS, STYLE
from safe_pruner_ros.evaluation.palette import COLOURS, GREY
from safe_pruner_ros.evaluation.replay.metrics import command_track, deviation
from safe_pruner_ros.evaluation.replay.replay import Lane, Replay
from safe_pruner_ros.types import FloatArray, JointCommand

LIMIT = '#B00020'
WIDTH_IN = 10.5
SHOWN_JOINTS = 4
PLOT_STYLE: Any = {**STYLE, 'svg.hashsalt': 'replay'}


def draw_plots(
    record: Replay, report: Mapping[str, Any], commands: Sequence[JointCommand] = ()
) -> dict[str, str]:
    """Heading -> SVG."""
    lanes = record.lanes[1:]
    limits = report['limits']
    plots = {}
    with plt.rc_context(PLOT_STYLE):
        if lanes:
            plots['Deviation from the unpruned policy over time'] = _deviation(
                record, lanes, limits
            )
            plots['What the arms would have been told'] = _targets(record, lanes, commands)
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


def _targets(record: Replay, lanes: Sequence[Lane], commands: Sequence[JointCommand]) -> str:
    """Executed targets of the joints in which the methods differ most, and the recorded ones."""
    layout = record.layout
    apart = np.stack([deviation(lane, record) for lane in lanes])
    spread = np.nan_to_num(apart).max(axis=(0, 1, 2)) / (layout.upper - layout.lower)
    shown = np.argsort(-spread, kind='stable')[:SHOWN_JOINTS]
    due_s = (record.due_ns - record.stamps_ns[0]) * 1e-9
    track = command_track(commands, layout, record.due_ns)
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(WIDTH_IN, 1.75 * len(shown)), sharex=True, squeeze=False
    )
    for axis, column in zip(axes[:, 0], shown, strict=True):
        axis.grid(axis='y')
        if np.isfinite(track[..., column]).any():
            axis.plot(due_s.ravel(), track[..., column].ravel(), color='black', lw=1, ls=':',
                      label='recorded commands')  # fmt: skip
        for number, lane in enumerate(record.lanes):
            values = lane.targets(record.horizon)[..., column]
            # A gap between two chunks: their seam is the node's business, not the policy's.
            times, values = _with_gaps(due_s), _with_gaps(values)
            is_baseline = number == 0
            axis.plot(times, values, label=lane.name, lw=3.2 if is_baseline else 1.3,
                      color='#b9bec4' if is_baseline else _colour(number - 1))  # fmt: skip
        unit = 'closed\nfraction' if layout.is_gripper[column] else 'rad'
        name = layout.names[column].replace('astribot_', '').replace('_', ' ')
        axis.set_ylabel(f'{name}\n[{unit}]', fontsize=8)
    axes[-1, 0].set_xlabel('time in the recording [s]')
    _legend(axes[0, 0])
    return to_svg(figure)


def _with_gaps(values: FloatArray) -> FloatArray:
    """[steps, horizon] -> flat, with a NaN after each step."""
    return np.pad(values, ((0, 0), (0, 1)), constant_values=np.nan).ravel()


def _joints(methods: Sequence[Mapping[str, Any]], joints: Sequence[str]) -> str:
    """p99 of every joint and method, as colour and number."""
    values = np.array(
        [[_or_nan(m['deviation_per_joint'][joint]['p99']) for m in methods] for joint in joints]
    )
    width = min(WIDTH_IN, 3.2 + 1.15 * len(methods))
    figure, axis = plt.subplots(figsize=(width, 1.0 + 0.26 * len(joints)))
    top = max(np.nan_to_num(values).max(initial=0.0), 1e-6)
    axis.pcolormesh(values, cmap='cividis', vmin=0, vmax=top, edgecolor='white', lw=0.8)
    for (row, column), value in np.ndenumerate(values):
        text = 'none' if np.isnan(value) else f'{value:.3f}'
        axis.text(column + 0.5, row + 0.5, text, ha='center', va='center', fontsize=7.5,
                  color='white' if value < 0.6 * top else 'black')  # fmt: skip
    names = [method['name'] for method in methods]
    axis.set_xticks(np.arange(len(names)) + 0.5, names, rotation=20, ha='left')
    axis.xaxis.tick_top()
    axis.set_yticks(np.arange(len(joints)) + 0.5, joints, fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel('p99 deviation from unpruned [rad; grippers: closed fraction]')
    return to_svg(figure)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _tokens(record: Replay) -> str:
    """One row a method: share of the tokens kept, and why it looked at all of them."""
    lanes = record.lanes[1:] or record.lanes
    figure, axes = plt.subplots(
        len(lanes), 1, figsize=(WIDTH_IN, 0.55 + 0.62 * len(lanes)), sharex=True, squeeze=False
    )
    times = np.append(
        record.times_s, record.times_s[-1] + record.horizon * record.period_ns * 1e-9
    )
    used: dict[str, Any] = {}
    reasons = list(dict.fromkeys(s.reason for lane in lanes for s in lane.steps if s.reason))
    for number, (axis, lane) in enumerate(zip(axes[:, 0], lanes, strict=True)):
        kept = [np.nan if s.error else 100 * s.n_retained / s.n_visual for s in lane.steps]
        axis.stairs(kept, times, fill=True, color=_colour(number), alpha=0.55)
        for which, reason in enumerate(reasons):
            at = [k for k, step in enumerate(lane.steps) if step.reason == reason]
            used[reason] = axis.scatter(
                record.times_s[at], [82.0] * len(at), s=26, marker=MARKERS[which % len(MARKERS)],
                color='white', edgecolor='#222222', lw=0.8, zorder=3,
            )  # fmt: skip
        axis.set(ylim=(0, 105), yticks=(0, 100))
        axis.set_ylabel(lane.name, rotation=0, ha='right', va='center', fontsize=8.5)
        axis.yaxis.set_label_coords(-0.045, 0.5)
    axes[-1, 0].set_xlabel('time in the recording [s]; filled: visual tokens kept [%]')
    if used:
        names = [f'key timestep: {reason}' for reason in used]
        axes[0, 0].legend(list(used.values()), names, loc='lower left', bbox_to_anchor=(0, 1.0),
                          ncols=4, frameon=False, fontsize=8.5)  # fmt: skip
    return to_svg(figure)


def _latency(record: Replay, deadline_ms: float) -> str:
    """Share of the steps that took no longer than x."""
    figure, axis = _axes(2.6)
    for number, lane in enumerate(record.lanes):
        values = np.sort([step.total_ms for step in lane.steps if np.isfinite(step.total_ms)])
        share = 100 * np.arange(1, len(values) + 1) / max(1, len(values))
        colour = GREY if number == 0 else _colour(number - 1)
        axis.step(values, share, where='post', color=colour, lw=1.5, label=lane.name)
    good = (s.total_ms for lane in record.lanes for s in lane.steps if not s.error)
    longest = max(good, default=0.0)
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
