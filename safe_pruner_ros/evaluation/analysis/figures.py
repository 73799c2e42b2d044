"""The plot of each analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no window, whatever the machine

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from safe_pruner_ros.evaluation.analysis.core_tokens import CoreRow
from safe_pruner_ros.evaluation.analysis.estimates import Estimate
from safe_pruner_ros.evaluation.analysis.forecast import FEW_PAIRS, HOWS, ForecastRow
from safe_pruner_ros.evaluation.analysis.keyframes import KeyframeRow
from safe_pruner_ros.evaluation.analysis.subtasks import DetectionScore
from safe_pruner_ros.evaluation.palette import COLOURS, GREY, MARKERS

STYLES = dict(zip(HOWS, ('-', '--', ':'), strict=True))


def draw_forecast(parts: Mapping[str, Sequence[ForecastRow]]) -> Figure:
    """Cosine and KL over lag, of all pairs and of the same references; a row of panels a kind of
    pairs. A mean of few pairs is a cross off the line."""
    figure, axes = plt.subplots(len(parts), 4, figsize=(15, 3.6 * len(parts)), squeeze=False)
    for line, (name, rows) in zip(axes, parts.items(), strict=True):
        line[1].sharey(line[0])
        line[3].sharey(line[2])
        kinds = dict.fromkeys((row.saliency, row.how) for row in rows)
        names = list(dict.fromkeys(saliency for saliency, _ in kinds))
        for saliency, how in kinds:
            chosen = [row for row in rows if (row.saliency, row.how) == (saliency, how)]
            every = [(row.lag, row.all_pairs) for row in chosen]
            same = [(row.lag, row.same_references) for row in chosen if row.same_references]
            look = f'{saliency}, {how}', COLOURS[names.index(saliency)], STYLES[how]
            for axis, found in ((line[0], every), (line[1], same)):
                _curve(axis, [(lag, a.cosine, a.is_thin) for lag, a in found], *look)
            for axis, found in ((line[2], every), (line[3], same)):
                _curve(axis, [(lag, a.kl, a.is_thin) for lag, a in found], *look)
        line[0].set(ylabel=f'{name}\ncosine', ylim=(0, 1.02))
        line[2].set(ylabel='KL(measured || forecast), nats', ylim=(0, None))
        for axis, pairs in zip(line, ('all pairs', 'same references') * 2, strict=True):
            axis.set_title(pairs, fontsize=9)
            axis.set_xlabel(f'policy steps since the reference (x: < {FEW_PAIRS} pairs)')
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7, ncol=2, loc='lower left')
    figure.tight_layout()
    return figure


def _curve(
    axis: Axes, points: Sequence[tuple[int, Estimate, bool]], label: str, colour: str, style: str
) -> None:
    """(lag, value, from few pairs) in order of lag."""
    solid = [(lag, value) for lag, value, is_thin in points if not is_thin]
    _band(axis, [lag for lag, _ in solid], [value for _, value in solid], label, colour, style)
    thin = [(lag, value.mean) for lag, value, is_thin in points if is_thin]
    axis.plot([lag for lag, _ in thin], [mean for _, mean in thin], 'x', color=colour, ms=4)


def _band(
    axis: Axes,
    xs: Sequence[float],
    values: Sequence[Estimate],
    label: str,
    colour: str,
    style: str = '-',
    marker: str = '',
) -> None:
    axis.plot(
        xs, [v.mean for v in values], style, color=colour, label=label, marker=marker, ms=4, lw=1.5
    )
    low, high = [v.low for v in values], [v.high for v in values]
    axis.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_core_tokens(rows: Sequence[CoreRow]) -> Figure:
    """Share of core tokens lost, of all other and of later layers, and of layers that lose at
    least one, over the pruning ratio; ``rows`` of the same steps."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.3))
    for number, cue in enumerate(dict.fromkeys(row.cue for row in rows)):
        chosen = sorted((row for row in rows if row.cue == cue), key=lambda r: r.pruning_ratio)
        is_chance = cue.startswith('random')
        for axis, values in zip(
            axes,
            (
                [row.dropped.share for row in chosen],
                [row.later_dropped.share for row in chosen],
                [row.any_dropped.share for row in chosen],
            ),
            strict=True,
        ):
            _band(
                axis,
                [100 * row.pruning_ratio for row in chosen],
                [Estimate(100 * v.mean, 100 * v.low, 100 * v.high, v.episodes) for v in values],
                cue,
                GREY if is_chance else COLOURS[number % len(COLOURS)],
                ':' if is_chance else '-',
                '' if is_chance else MARKERS[number % len(MARKERS)],
            )
    axes[0].set_ylabel('core tokens of other layers that are pruned, %')
    axes[1].set_ylabel('core tokens of later layers that are pruned, %')
    axes[2].set_ylabel('other layers that lose at least one, %')
    for axis in axes:
        axis.set(xlabel='visual tokens pruned, %', ylim=(-2, 102))
        axis.set_title('policy steps that every method can judge', fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def draw_subtasks(scores: Mapping[str, DetectionScore]) -> Figure:
    """Precision and recall beside chance, and what they cost in key timesteps."""
    figure, axis = plt.subplots(figsize=(max(5.5, 0.62 * len(scores) + 2.5), 4.4))
    places = np.arange(len(scores))
    found = list(scores.values())
    for offset, name, estimates, chance, colour in (
        (-0.15, 'precision', [s.precision for s in found],
         [s.chance_precision for s in found], COLOURS[0]),
        (0.15, 'recall', [s.recall for s in found],
         [s.chance_recall for s in found], COLOURS[1]),
    ):  # fmt: skip
        middle = np.array([100 * e.mean for e in estimates])
        spread = np.array([[100 * (e.mean - e.low), 100 * (e.high - e.mean)] for e in estimates])
        axis.errorbar(
            places + offset, middle, yerr=spread.T.clip(min=0), fmt='o', color=colour, ms=5,
            capsize=2.5, label=name,
        )  # fmt: skip
        axis.plot(
            places + offset, 100 * np.array(chance), '_', color=colour, ms=13, mew=1.5,
            label=f'{name} by chance',
        )  # fmt: skip
    axis.plot(places, [100 * s.rate for s in found], ':', color=GREY, label='steps detected')
    axis.set_xticks(places, list(scores), rotation=45, ha='right', fontsize=8)
    axis.set(ylabel='%', ylim=(-2, 102))
    axis.grid(axis='y', alpha=0.3)
    axis.legend(fontsize=7, loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def draw_keyframe_shares(rows: Sequence[KeyframeRow]) -> Figure:
    """Share of key timesteps, stacked by reason."""
    names = [f'{row.task}, {row.variant} at {row.retention_ratio:g}' for row in rows]
    figure, axis = plt.subplots(figsize=(9.5, 0.34 * len(rows) + 1.6))
    reasons = list(dict.fromkeys(reason for row in rows for reason in row.reasons))
    left = np.zeros(len(rows))
    for number, reason in enumerate(reasons):
        width = np.array([100 * row.share.mean * row.reasons.get(reason, 0.0) for row in rows])
        axis.barh(names, width, left=left, color=COLOURS[number % len(COLOURS)], label=reason)
        left += width
    for place, row in enumerate(rows):
        low, high = 100 * row.share.low, 100 * row.share.high
        axis.plot([low, high], [place, place], color='black', linewidth=1)
    axis.invert_yaxis()
    axis.tick_params(axis='y', labelsize=7)
    axis.set_xlabel('key timesteps, % of policy steps (line: 95 % interval over episodes)')
    axis.legend(fontsize=7)
    figure.tight_layout()
    return figure
