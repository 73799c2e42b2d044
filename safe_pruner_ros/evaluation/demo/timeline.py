"""timeline.png of a demo: what the policy looked at, when it looked again, and what it cost."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no window, whatever the machine

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from safe_pruner_ros.evaluation.demo.record import DemoRecord, EpisodeRecord
from safe_pruner_ros.evaluation.demo.video import draw_view

GAP_S = 0.9  # between episodes
# Okabe-Ito: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, VERMILION, GREY = '#0072B2', '#E69F00', '#009E73', '#D55E00', '#777777'
STAGE_COLOURS = ('#dfe3e8', '#c6dbef', '#9ecae1', '#6baed6', '#4292c6', '#2171b5', '#08519c')
REASONS = {
    'first step': 'first step',
    'subtask boundary': 'subtask boundary',
    'instruction changed': 'new instruction',
    'layout changed': 'new cameras',
    'stale': 'old keyframe',
    'fixed interval': 'fixed interval',
    'forced': 'asked for',
    'saliency invalid': 'saliency invalid',
}
MARKERS = ('o', 'v', 's', 'P', 'D', '*', 'X', 'p')
STYLE = {
    'font.size': 9,
    'axes.titlesize': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#999999',
    'axes.labelcolor': '#333333',
    'xtick.color': '#555555',
    'ytick.color': '#555555',
    'grid.color': '#e6e6e6',
    'figure.dpi': 130,
}


def draw_timeline(record: DemoRecord, path: Path) -> None:
    """Pictures, then four panels over one time axis, the episodes side by side."""
    starts, end_s = _starts(record)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            4, 1, figsize=(13, 8.6), sharex=True,
            gridspec_kw={'height_ratios': [0.3, 1.3, 1.3, 1.3], 'hspace': 0.17},
        )  # fmt: skip
        figure.subplots_adjust(left=0.065, right=0.985, top=0.715, bottom=0.06)
        axes[-1].set_xlim(-0.2, max(end_s, 1.0))
        _stages(axes[0], record, starts)
        _tokens(axes[1], record, starts)
        _similarity(axes[2], record, starts)
        _latency(axes[3], record, starts)
        for axis in axes[1:]:
            axis.grid(axis='y')
            axis.set_axisbelow(True)
            for episode, start_s in zip(record.episodes, starts, strict=True):
                axis.axvspan(start_s, start_s + episode.duration_s, color='#f6f8fa', zorder=-2)
                for step in episode.keyframes:
                    axis.axvline(start_s + step.time_s, color=ORANGE, lw=0.7, alpha=0.5, zorder=-1)
        _time_ticks(axes[-1], record, starts)
        _heads(figure, axes[0], record)
        figure.suptitle(_title(record), x=0.065, y=0.99, ha='left', fontsize=12, weight='bold')
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


def _heads(figure: Figure, axis: Axes, record: DemoRecord) -> None:
    """Instruction, outcome and two pictures of each episode, in columns of equal width."""
    width_in, height_in = figure.get_size_inches()
    place = axis.get_position()
    column_in = place.width * width_in / max(len(record.episodes), 1)
    side_in = min(1.2, column_in / 2 - 0.09)
    bottom = place.y1 + 0.3 / height_in
    text_at = bottom + (side_in + 0.08) / height_in
    for number, episode in enumerate(record.episodes):
        begin = place.x0 + (number * column_in + 0.04) / width_in
        mark, colour = ('solved', GREEN) if episode.success else ('not solved', VERMILION)
        lines = textwrap.wrap(f'{episode.number}. {episode.instruction}', int(column_in * 11.5))
        text = '\n'.join(lines[:2]) + (' ...' if len(lines) > 2 else '')
        outcome = f'{mark} after {episode.duration_s:.1f} s'
        style = {'va': 'bottom', 'fontsize': 8.5}
        figure.text(begin, text_at, outcome, color=colour, weight='bold', **style)
        figure.text(begin, text_at + 0.18 / height_in, text, color='#222222', **style)
        for column, view in enumerate(_two_views(episode, record.views)):
            left = begin + column * (side_in + 0.05) / width_in
            box = (left, bottom, side_in / width_in, side_in / height_in)
            picture = figure.add_axes(box)
            picture.imshow(draw_view(episode, view, _telling_moment(episode)))
            picture.set_axis_off()


def _telling_moment(episode: EpisodeRecord) -> float:
    """In the middle of the episode, at a pruned step if there is one."""
    middle = 0.45 * episode.duration_s
    pruned = [step.time_s for step in episode.steps if not step.is_key_timestep]
    return min(pruned, key=lambda time_s: abs(time_s - middle), default=middle)


def _two_views(episode: EpisodeRecord, views: tuple[str, ...]) -> list[str]:
    """The first view and the one of the others in which most happens."""
    seen = [view for view in views if episode.pictures.get(view)]
    if len(seen) < 2:
        return seen
    first, *others = seen

    def change(view: str) -> float:
        pictures = episode.pictures[view]
        before, after = pictures[0].rgb(), pictures[len(pictures) // 2].rgb()
        return float(np.abs(before.astype(float) - after).mean())

    return [first, max(others, key=change)]


def _starts(record: DemoRecord) -> tuple[list[float], float]:
    """Where each episode begins on the common axis, and where the last one ends."""
    starts, now_s = [], 0.0
    for episode in record.episodes:
        starts.append(now_s)
        now_s += max(episode.duration_s, 0.5) + GAP_S
    return starts, now_s - GAP_S + 0.2


def _title(record: DemoRecord) -> str:
    steps = record.steps
    mean = sum(step.n_retained for step in steps) / len(steps) if steps else math.nan
    total = steps[0].n_visual if steps else 0
    return (
        f'{record.method} at retention {record.retention_ratio:g}: '
        f'{record.successes} of {len(record.episodes)} episodes solved, '
        f'{mean:.0f} of {total} visual tokens on average'
    )


def _stages(axis: Axes, record: DemoRecord, starts: list[float]) -> None:
    names = list(dict.fromkeys(stage for e in record.episodes for _, stage in e.stages))
    colours = {name: STAGE_COLOURS[k % len(STAGE_COLOURS)] for k, name in enumerate(names)}
    low, high = axis.get_xlim()
    inches = axis.figure.get_size_inches()[0] * axis.get_position().width / (high - low)
    for episode, start_s in zip(record.episodes, starts, strict=True):
        ends = [time_s for time_s, _ in episode.stages[1:]] + [episode.duration_s]
        for (begin_s, stage), end_s in zip(episode.stages, ends, strict=False):
            width = end_s - begin_s
            axis.barh(0, width, left=start_s + begin_s, height=1, color=colours[stage], ec='white')
            if width * inches > 0.066 * len(stage) + 0.06:
                dark = names.index(stage) % len(STAGE_COLOURS) > 3
                axis.text(start_s + begin_s + width / 2, 0, stage, ha='center', va='center',
                          fontsize=7.5, color='white' if dark else '#334')  # fmt: skip
        axis.text(start_s, 0.62, f'{episode.number}', fontsize=9, weight='bold', color='#222222')
    axis.set(ylim=(-0.5, 0.5), yticks=[], ylabel='stage')
    axis.tick_params(bottom=False)
    for side in ('left', 'bottom'):
        axis.spines[side].set_visible(False)


def _curve(episode: EpisodeRecord, start_s: float, name: str) -> tuple[list[float], list[float]]:
    return (
        [start_s + step.time_s for step in episode.steps],
        [float(getattr(step, name)) for step in episode.steps],
    )


def _tokens(axis: Axes, record: DemoRecord, starts: list[float]) -> None:
    for episode, start_s in zip(record.episodes, starts, strict=True):
        times, values = _curve(episode, start_s, 'n_retained')
        if not times:
            continue
        edges = [*times, start_s + max(episode.duration_s, times[-1] - start_s)]
        axis.stairs(values, edges, fill=True, color=BLUE, alpha=0.25, baseline=0)
        axis.stairs(values, edges, color=BLUE, lw=1.2, baseline=None)
    reasons = list(dict.fromkeys(s.reason for s in record.steps if s.is_key_timestep))
    for reason in reasons:
        places = [
            (start_s + step.time_s, step.n_retained)
            for episode, start_s in zip(record.episodes, starts, strict=True)
            for step in episode.keyframes
            if step.reason == reason
        ]
        marker = MARKERS[list(REASONS).index(reason) % len(MARKERS)] if reason in REASONS else 'h'
        x, y = zip(*places, strict=True)
        axis.scatter(
            x, y, marker=marker, s=34, color=ORANGE, edgecolor='white', lw=0.6, zorder=3,
            label=f'keyframe: {REASONS.get(reason, reason)}', clip_on=False,
        )  # fmt: skip
    total = max((step.n_visual for step in record.steps), default=1)
    axis.axhline(total, color=GREY, lw=0.8, ls=':')
    axis.set(ylim=(0, total * 1.28), ylabel='visual tokens\nkept')
    if reasons:
        axis.legend(loc='upper right', ncols=len(reasons), frameon=False, fontsize=8,
                    borderaxespad=0.1, handletextpad=0.2, columnspacing=1.2)  # fmt: skip


def _similarity(axis: Axes, record: DemoRecord, starts: list[float]) -> None:
    drawn = False
    for episode, start_s in zip(record.episodes, starts, strict=True):
        times, values = _curve(episode, start_s, 'similarity')
        axis.plot(times, values, color=GREEN, lw=1.2, marker='.', ms=5)
        drawn = drawn or any(map(math.isfinite, values))
    thresholds = {step.threshold for step in record.steps if math.isfinite(step.threshold)}
    for threshold in sorted(thresholds):
        axis.axhline(threshold, color=VERMILION, lw=1, ls='--')
        axis.text(
            0.998,
            0.04,
            f'below {threshold:g} (dashed): key timestep',
            color=VERMILION,
            fontsize=8,
            ha='right',
            va='bottom',
            transform=axis.transAxes,
        )
    axis.set(ylim=(0, 1.05), ylabel='attention\nsimilarity')
    if not drawn:
        axis.text(0.5, 0.5, 'this method measures none', ha='center', color=GREY,
                  transform=axis.transAxes)  # fmt: skip


def _latency(axis: Axes, record: DemoRecord, starts: list[float]) -> None:
    stages = [('vision', '#9ecae1'), ('decoder', BLUE), ('scoring', ORANGE)]
    width = 0.7 * _usual_gap(record)
    for episode, start_s in zip(record.episodes, starts, strict=True):
        for step in episode.steps:
            bottom, x = 0.0, start_s + step.time_s + width / 2
            for name, colour in stages:
                height = step.latency_ms.get(name, 0.0)
                height = height if math.isfinite(height) else 0.0
                axis.bar(x, height, width, bottom, color=colour, lw=0)
                bottom += height
            rest = step.latency_ms.get('total', math.nan) - bottom
            if rest > 0:
                axis.bar(x, rest, width, bottom, color='#d0d0d0', lw=0)
    totals = sorted(
        t for s in record.steps if math.isfinite(t := s.latency_ms.get('total', math.nan))
    )
    if totals:
        # A single slow step must not flatten all others.
        axis.set_ylim(0, 1.25 * min(totals[-1], 2.5 * totals[len(totals) // 2]))
    handles = [Patch(color=colour, label=name) for name, colour in stages]
    handles.append(Patch(color='#d0d0d0', label='rest'))
    axis.legend(handles=handles, loc='upper right', ncols=4, frameon=False, fontsize=8,
                borderaxespad=0.1, handlelength=1.0, columnspacing=1.2)  # fmt: skip
    axis.set(ylabel='policy step\n[ms]', xlabel='time in the episode [s]')


def _usual_gap(record: DemoRecord) -> float:
    gaps = sorted(
        later.time_s - earlier.time_s
        for episode in record.episodes
        for earlier, later in zip(episode.steps, episode.steps[1:], strict=False)
    )
    return gaps[len(gaps) // 2] if gaps else 0.4


def _time_ticks(axis: Axes, record: DemoRecord, starts: list[float]) -> None:
    """Every episode counts from its own zero."""
    longest = max((episode.duration_s for episode in record.episodes), default=1.0)
    step_s = 1 if longest * len(starts) <= 30 else 2 if longest * len(starts) <= 60 else 5
    ticks, labels = [], []
    for episode, start_s in zip(record.episodes, starts, strict=True):
        for second in range(0, math.floor(episode.duration_s) + 1, step_s):
            ticks.append(start_s + second)
            labels.append(str(second))
    axis.set_xticks(ticks, labels)
