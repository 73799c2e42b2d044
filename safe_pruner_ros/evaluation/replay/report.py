"""report.json and report.html of a replay. The page is one file: no scripts, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.replay.plots import draw_plots
from safe_pruner_ros.evaluation.replay.replay import Replay
from safe_pruner_ros.evaluation.results import to_json
from safe_pruner_ros.types import JointCommand

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 66rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e6ea; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { color: #555; font-weight: 600; } .quiet { color: #667; } .wide { overflow-x: auto; }
.verdict { padding: .6rem 1rem; border-radius: .4rem; font-weight: 600; margin: 1rem 0; }
.pass { background: #e2f3ec; color: #00543c; } .fail { background: #fbe4dc; color: #8a2b00; }
.none { background: #eef1f4; color: #334; } svg { max-width: 100%; height: auto; }
video { width: 100%; }
"""
COLUMNS = (
    'method', 'failed', 'compared steps', 'tokens kept', 'deviation p50 [rad]', 'p99', 'max',
    'gripper flips', 'hand max [mm]', 'key steps', 'step p50 [ms]', 'p99', 'missed', 'speedup',
)  # fmt: skip


def write_report(
    folder: Path,
    record: Replay,
    report: Mapping[str, Any],
    commands: Sequence[JointCommand],
    has_video: bool,
) -> tuple[Path, Path]:
    """Write both files into ``folder``; returns (report.json, report.html)."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / 'report.json', folder / 'report.html'
    json_path.write_text(to_json({**report, 'steps': _steps(record)}) + '\n')
    html_path.write_text(render_html(report, draw_plots(record, report, commands), has_video))
    return json_path, html_path


def _steps(record: Replay) -> list[dict[str, Any]]:
    """One entry a policy step: what each method did, for other tools and for golden numbers."""
    return [
        {
            'stamp_ns': stamp_ns,
            'instruction': record.instructions[number],
            'methods': {
                lane.name: {
                    'first_target': lane.steps[number].targets[0].tolist(),
                    'last_executed_target': lane.steps[number]
                    .targets[record.horizon - 1]
                    .tolist(),
                    'n_retained': lane.steps[number].n_retained,
                    'keyframe_reason': lane.steps[number].reason,
                    'attention_similarity': lane.steps[number].similarity,
                    'latency_ms': lane.steps[number].total_ms,
                    'error': lane.steps[number].error,
                }
                for lane in record.lanes
            },
        }
        for number, stamp_ns in enumerate(record.stamps_ns)
    ]


def render_html(report: Mapping[str, Any], plots: Mapping[str, str], has_video: bool) -> str:
    """The page as text. Everything that came from a bag is escaped."""
    source = report.get('source', {})
    parts = [
        f'<h1>Replay of {escape(Path(str(source.get("bag", "a recording"))).name)}</h1>',
        f'<p class="quiet">{_facts(report)}</p>',
        _verdict(report),
        '<h2>Methods</h2>',
        '<p class="quiet">Each method answers the same recorded observations; deviation is the '
        'distance of its executed joint targets from those of the unpruned policy, over the '
        'compared steps, which neither of the two failed.</p>',
        html_table(COLUMNS, [_method_row(method) for method in report['methods']]),
    ]
    if any('versus_commands' in method for method in report['methods']):
        parts += ['<h2>Distance from the recorded commands [rad]</h2>', _commands(report)]
    for heading, svg in plots.items():
        parts += [f'<h2>{escape(heading)}</h2>', svg]
    if has_video:
        parts += [
            '<h2>What was kept</h2>',
            '<p class="quiet">overlay.mp4, beside this page: kept patches are clear, pruned ones '
            'dark; an orange frame marks a key timestep.</p>',
        ]
    parts += ['<h2>Keyframes</h2>', _keyframes(report), '<h2>The recording</h2>', _sources(source)]
    return html_page('safe-pruner replay', parts)


def html_page(title: str, parts: Sequence[str]) -> str:
    """A page of its own: no scripts, nothing loaded."""
    body = '\n'.join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f'<body>{body}</body></html>\n'
    )


def _facts(report: Mapping[str, Any]) -> str:
    said = '; '.join(f'"{text}"' for text in report['instructions'][:3])
    return escape(
        f'{report["policy_steps"]} policy steps over {report["duration_s"]:.1f} s. '
        f'Instruction: {said}. {report["execution_horizon"]} actions of '
        f'{report["period_s"]:g} s are executed of each chunk. '
        f'Policy {report.get("policy", "")}, '
        f'checkpoint {report.get("checkpoint_sha256", "unknown")}, '
        f'commit {report.get("commit", "unknown")}, {report.get("date", "")}.'
    )


def _verdict(report: Mapping[str, Any]) -> str:
    if not report['limits']:
        return '<p class="verdict none">No limit was given, so nothing is judged.</p>'
    if report['passed']:
        limits = ', '.join(f'{name} {value:g}' for name, value in report['limits'].items())
        return f'<p class="verdict pass">All methods keep the limits: {escape(limits)}.</p>'
    lines = [
        f'{method["name"]}: {"; ".join(method["exceeded"])}'
        for method in report['methods']
        if method['exceeded']
    ]
    return f'<p class="verdict fail">Limits exceeded. {"<br>".join(map(escape, lines))}</p>'


def _method_row(method: Mapping[str, Any]) -> list[str]:
    apart, latency = method['deviation_rad'], method['latency_ms']
    return [
        method['name'],
        str(len(method['failed_steps'])),
        str(method['compared_steps']),
        f'{format_number(method["retained_tokens_mean"], ".1f")} of {method["n_visual"]}',
        *(format_number(apart[name], '.4f') for name in ('p50', 'p99', 'max')),
        str(method['gripper_flips']),
        format_number(_largest(method['end_effector_mm']), '.1f'),
        str(method['keyframes']),
        *(format_number(latency[name], '.1f') for name in ('p50', 'p99')),
        str(method['missed_deadlines']),
        format_number(method['speedup'], '.2f'),
    ]


def _commands(report: Mapping[str, Any]) -> str:
    rows = []
    for method in report['methods']:
        found = method.get('versus_commands')
        if found is None:
            continue
        apart = found['deviation_rad']
        rows.append(
            [
                method['name'],
                *(format_number(apart[name], '.4f') for name in ('p50', 'p99', 'max')),
                str(found['gripper_flips']),
                format_number(_largest(found['end_effector_mm']), '.1f'),
            ]
        )
    return html_table(('method', 'p50', 'p99', 'max', 'gripper flips', 'hand max [mm]'), rows)


def _largest(hands: Mapping[str, Any] | None) -> float | None:
    """Over both sides [mm]."""
    values = [v['max'] for v in hands.values() if v['max'] is not None] if hands else []
    return max(values, default=None)


def _keyframes(report: Mapping[str, Any]) -> str:
    reasons = list(dict.fromkeys(r for m in report['methods'] for r in m['keyframe_reasons']))
    if not reasons:
        return '<p class="quiet">No method had a key timestep.</p>'
    rows = [
        [m['name'], *(str(m['keyframe_reasons'].get(reason, 0)) for reason in reasons)]
        for m in report['methods']
    ]
    return html_table(('method', *reasons), rows)


def _sources(source: Mapping[str, Any]) -> str:
    rows = [
        [
            entry['name'],
            str(entry['accepted']),
            ', '.join(f'{code} {n}' for code, n in entry['refused'].items()) or 'none',
            format_number(entry['rate_hz'], '.1f'),
            entry['last_refusal'],
        ]
        for entry in source.get('sources', ())
    ]
    text = html_table(('source', 'used', 'refused', 'rate at the end [Hz]', 'last refusal'), rows)
    held = source.get('held', ())
    rows = [
        [f'{entry["duration_s"]:.2f}', '; '.join(entry['reasons'])]
        for entry in sorted(held, key=lambda entry: -entry['duration_s'])[:20]
    ]
    if rows:
        text += '<p class="quiet">The node would have waited or held the arms:</p>'
        text += html_table(('for [s]', 'because'), rows)
    return text


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells) + '</tr>'

    body = ''.join(line(row, 'td') for row in rows)
    return f'<div class="wide"><table>{line(head, "th")}{body}</table></div>'


def format_number(value: float | None, style: str) -> str:
    return '–' if value is None or value != value else format(value, style)
