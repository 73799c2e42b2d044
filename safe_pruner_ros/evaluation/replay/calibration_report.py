"""calibration.json, curve.svg and calibration.html of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')  # no window, whatever the machine

from matplotlib import pyplot as plt

from safe_pruner_ros.evaluation.replay.calibration import (
    Calibration,
    Judgement,
    Outcome,
    Setting,
    kept_share,
    worst,
)
from safe_pruner_ros.evaluation.replay.plots import PLOT_STYLE, WIDTH_IN, to_svg
from safe_pruner_ros.evaluation.replay.report import format_number, html_page, html_table
from safe_pruner_ros.evaluation.results import to_json

CHOSEN, LIMIT, QUIET = '#D55E00', '#B00020', '#9aa3ad'
STATISTICS = {'max_deviation_p99_rad': 'p99', 'max_deviation_rad': 'max'}
JUDGED = ('recording', 'setting of the others', 'p99 [rad]', 'max [rad]', 'gripper flips',
          'keeps the limits')  # fmt: skip
SETTINGS = ('setting', 'tokens kept [%]', 'p50 [rad]', 'p99 [rad]', 'max [rad]', 'gripper flips',
            'key steps', 'keeps the limits')  # fmt: skip
ONE_RECORDING = (
    'There is one recording, so it both chose this setting and would judge it: take the numbers '
    'as hopeful. Record again, and give both recordings.'
)


def summarize(calibration: Calibration, limits: Mapping[str, float]) -> dict[str, Any]:
    """JSON-ready."""
    recordings = list(dict.fromkeys(o.recording for o in calibration.outcomes))
    return {
        'limits': dict(limits),
        'recordings': recordings,
        'chosen': _setting(calibration.chosen),
        'chosen_on': 'all recordings',
        'judged_by': 'each recording by the choice of the others'
        if calibration.judgements
        else 'nobody: the only recording made the choice',
        'passed': calibration.passed,
        'judgements': [
            {
                'recording': item.recording,
                'setting_of_the_others': _setting(item.setting),
                'numbers': dict(item.outcome.numbers),
                'passed': item.passed,
            }
            for item in calibration.judgements
        ],
        'unpruned': [
            {'recording': outcome.recording, **outcome.numbers} for outcome in calibration.unpruned
        ],
        'curve': [_point(setting, group) for setting, group in by_setting(calibration).items()],
    }


def by_setting(calibration: Calibration) -> dict[Setting, list[Outcome]]:
    found: dict[Setting, list[Outcome]] = {}
    for outcome in calibration.outcomes:
        found.setdefault(outcome.setting, []).append(outcome)
    return found


def _setting(setting: Setting | None) -> dict[str, float] | None:
    return None if setting is None else setting.changes()


def pruner_block(method: str, settings: Mapping[str, Any]) -> str:
    """The section ``pruner`` of a policy file: ``method`` under all of ``settings``, as
    `core.catalog.resolved_settings` has them."""
    lines = [f'  {name}: {_yaml(name, value)}\n' for name, value in settings.items()]
    return ''.join(['pruner:\n', f'  method: {method}\n', *lines])


def _yaml(name: str, value: Any) -> str:
    """A policy file knows no null: 0 and [] are what `PrunerConfig` reads as None."""
    if value is None:
        return '[]' if name == 'deep_layers' else '0'
    if isinstance(value, (tuple, list)):
        return f'[{", ".join(map(str, value))}]'
    return str(value).lower() if isinstance(value, bool) else str(value)


def unpruned_problems(calibration: Calibration) -> list[str]:
    """One line for each recording on which not even the unpruned policy keeps the limits."""
    return [
        f'on {outcome.recording} the unpruned policy exceeds '
        f'{"; ".join(outcome.numbers["exceeded"])}'
        for outcome in calibration.unpruned
        if not outcome.keeps_limits
    ]


def verdict(item: Judgement) -> str:
    text = (
        'keeps the limits'
        if item.outcome.keeps_limits
        else f'EXCEEDS {"; ".join(item.outcome.numbers["exceeded"])}'
    )
    return text if item.setting is not None else f'nothing to judge; unpruned {text}'


def _point(setting: Setting, group: Sequence[Outcome]) -> dict[str, Any]:
    return {
        **setting.changes(),
        'kept_share': kept_share(group),
        'keeps_limits': all(outcome.keeps_limits for outcome in group),
        'worst_deviation_rad': {name: worst(group, name) for name in ('p50', 'p99', 'max')},
        'recordings': {
            outcome.recording: {'kept_share': outcome.kept_share, **outcome.numbers}
            for outcome in group
        },
    }


def write_calibration(
    folder: Path, calibration: Calibration, report: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write all three into ``folder``; (json, html). ``report``: `summarize` and whatever else."""
    folder.mkdir(parents=True, exist_ok=True)
    svg = draw_curve(calibration, report['limits'])
    json_path, html_path = folder / 'calibration.json', folder / 'calibration.html'
    json_path.write_text(to_json(report) + '\n')
    (folder / 'curve.svg').write_text(svg)
    html_path.write_text(_html(calibration, report, svg))
    return json_path, html_path


def draw_curve(calibration: Calibration, limits: Mapping[str, float]) -> str:
    """Tokens pruned against deviation, one line a threshold; SVG text."""
    groups = by_setting(calibration)
    taus = list(dict.fromkeys(s.similarity_threshold for s in groups))
    colours = plt.get_cmap('viridis')(np.linspace(0, 0.85, max(1, len(taus))))
    statistic = next((s for name, s in STATISTICS.items() if name in limits), 'p99')
    with plt.rc_context(PLOT_STYLE):
        figure, axis = plt.subplots(figsize=(WIDTH_IN, 4.6))
        axis.grid(True)
        axis.set_axisbelow(True)
        for colour, tau in zip(colours, taus, strict=True):
            line = sorted(
                ((100 * (1 - kept_share(g)), worst(g, statistic), s)
                 for s, g in groups.items() if s.similarity_threshold == tau),
                key=lambda item: item[2].retention_ratio,
            )  # fmt: skip
            axis.plot([x for x, _, _ in line], [y for _, y, _ in line], 'o-', color=colour, lw=1.3,
                      ms=5, label='all' if tau is None else f'tau {tau:g}')  # fmt: skip
            for x, y, setting in line if tau in (taus[0], taus[-1]) else ():
                text = f'{setting.retention_ratio:g}'
                axis.annotate(text, (x, y), (4, 4), textcoords='offset points', fontsize=7.5)
        for name, which in STATISTICS.items():
            if which == statistic and name in limits:
                axis.axhline(limits[name], color=LIMIT, ls='--', lw=1,
                             label=f'limit {limits[name]:g} rad')  # fmt: skip
        if calibration.chosen is not None:
            group = groups[calibration.chosen]
            axis.scatter(100 * (1 - kept_share(group)), worst(group, statistic), s=190,
                         facecolor='none', edgecolor=CHOSEN, lw=2.2, zorder=4,
                         label=f'proposed: {calibration.chosen.name}')  # fmt: skip
        axis.set_ylim(0, None)
        axis.set_xlabel('visual tokens pruned, mean over all steps [%] (numbers: retention)')
        axis.set_ylabel(f'{statistic} deviation of arm joints [rad],\nworst recording')
        axis.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=4, frameon=False,
                    fontsize=8.5)  # fmt: skip
        return to_svg(figure)


def _html(calibration: Calibration, report: Mapping[str, Any], svg: str) -> str:
    limits = ', '.join(f'{name} {value:g}' for name, value in report['limits'].items())
    if calibration.chosen is None:
        banner = f'<p class="verdict fail">No setting keeps the limits ({escape(limits)}).</p>'
    else:
        kind = 'pass' if calibration.judgements and calibration.passed else 'none'
        kind = 'fail' if not calibration.passed else kind
        kept = kept_share(by_setting(calibration)[calibration.chosen])
        text = (
            f'Proposed: {calibration.chosen.name}; {100 * (1 - kept):.0f} % of the tokens pruned'
        )
        banner = f'<p class="verdict {kind}">{escape(text)}. Limits: {escape(limits)}.</p>'
        if 'settings' in report:
            banner += (
                '<p class="quiet">In the policy file:</p>'
                f'<pre>{escape(pruner_block(report["method"], report["settings"]))}</pre>'
            )
    banner += ''.join(
        f'<p class="verdict fail">{escape(text)}</p>' for text in unpruned_problems(calibration)
    )
    if calibration.judgements:
        judged = (
            '<p class="quiet">Each recording is judged by the setting that the others would have '
            'chosen; what it says had no part in that choice.</p>'
        )
        judged += html_table(JUDGED, [_judgement_row(item) for item in calibration.judgements])
    else:
        judged = f'<p class="verdict none">{escape(ONE_RECORDING)}</p>'
    rows = [_row(setting, group) for setting, group in by_setting(calibration).items()]
    names = ', '.join(escape(Path(name).name) for name in report['recordings'])
    return html_page(
        'safe-pruner calibrate',
        [
            f'<h1>Calibration on {names}</h1>',
            banner,
            '<h2>What pruning buys and what it costs</h2>',
            svg,
            '<h2>Judged on recordings that did not choose</h2>',
            judged,
            '<h2>All settings, worst recording</h2>',
            html_table(SETTINGS, rows),
        ],
    )


def _judgement_row(item: Judgement) -> list[str]:
    name = 'none: unpruned' if item.setting is None else item.setting.name
    numbers = item.outcome.numbers
    apart = numbers['deviation_rad']
    return [
        Path(item.recording).name,
        name,
        format_number(apart['p99'], '.4f'),
        format_number(apart['max'], '.4f'),
        str(numbers['gripper_flips']),
        verdict(item),
    ]


def _row(setting: Setting, group: Sequence[Outcome]) -> list[str]:
    return [
        setting.name,
        f'{100 * kept_share(group):.1f}',
        *(format_number(worst(group, name), '.4f') for name in ('p50', 'p99', 'max')),
        str(sum(outcome.numbers['gripper_flips'] for outcome in group)),
        str(sum(outcome.numbers['keyframes'] for outcome in group)),
        'yes' if all(outcome.keeps_limits for outcome in group) else 'no',
    ]
