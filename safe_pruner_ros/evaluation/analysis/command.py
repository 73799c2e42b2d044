"""`safe-pruner analyse QUESTION`: numbers as JSON, a table as Markdown, a plot."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from safe_pruner_ros.core.catalog import alike, build_pruner
from safe_pruner_ros.core.safe_pruner import SafePrunerConfig
from safe_pruner_ros.core.safe_pruner_config import requests_of
from safe_pruner_ros.core.selection import QuotaScope
from safe_pruner_ros.evaluation.analysis import figures
from safe_pruner_ros.evaluation.analysis.core_tokens import (
    CoreRow,
    Cue,
    core_token_loss,
    early_cue,
    safe_cue,
)
from safe_pruner_ros.evaluation.analysis.estimates import Estimate
from safe_pruner_ros.evaluation.analysis.forecast import (
    FEW_PAIRS,
    Accuracy,
    ForecastRow,
    forecast_accuracy,
)
from safe_pruner_ros.evaluation.analysis.keyframes import detection_cases, keyframe_rows
from safe_pruner_ros.evaluation.analysis.recording import Recording, collect
from safe_pruner_ros.evaluation.analysis.subtasks import (
    DetectionScore,
    boundaries_of,
    replay_detections,
    score_detection,
)
from safe_pruner_ros.evaluation.closed_loop import read_results
from safe_pruner_ros.evaluation.execution import on_backend
from safe_pruner_ros.evaluation.markdown import table
from safe_pruner_ros.evaluation.methods import parse_settings
from safe_pruner_ros.evaluation.plan import build_cells, choose_seeds
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.provenance import run_facts
from safe_pruner_ros.evaluation.results import to_json
from safe_pruner_ros.runtime.config import PolicyConfig
from safe_pruner_ros.sim.tasks.catalog import get_task

DEFAULT_EPISODES = 50
THRESHOLDS = (0.2, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.95, 0.98)
KEYFRAME_AGES = (1, 4)  # policy steps, of safe_pruner's keyframe when core tokens are counted
PRUNING_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

Answer = tuple[Any, str, Figure]  # (numbers, Markdown, plot)


class _Request:
    """The command line, resolved: what the questions ask for."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        policy: PolicyConfig,
        configured: Mapping[str, Mapping[str, Any]],
        splits: Mapping[str, range],
    ) -> None:
        self.arguments = arguments
        settings = parse_settings(arguments.settings)
        methods = ['safe_pruner', arguments.method or 'safe_pruner']
        cells = build_cells(methods, [0.3], settings, configured)
        self._detector = cells[-1]
        self.config = SafePrunerConfig(**cells[0].settings)
        self.task = get_task(arguments.task)
        self.policy = PolicySource.of(policy)
        seeds, self.split = choose_seeds(arguments.seeds, arguments.split, splits)
        self.seeds = seeds if arguments.seeds else seeds[:DEFAULT_EPISODES]

    def check_policy(self) -> None:
        """ValueError unless `recordings` can make them with the policy that was asked for."""
        if self.policy.name != 'embedded':
            raise ValueError(
                f'recordings have the attention of every layer of the embedded policy; the policy '
                f'file asks for {self.policy.name!r}: choose one whose policy.name is embedded'
            )
        if self.policy.device != 'cpu':
            raise ValueError(
                f'recordings are made on the CPU, got device {self.policy.device!r}; say '
                '--device cpu'
            )

    def recordings(self) -> Iterator[Recording]:
        with on_backend(self.arguments.backend):
            yield from collect(
                self.arguments.recordings / self.task.name,
                self.seeds,
                self.task.name,
                self.policy,
                self.arguments.jobs,
            )

    def settings(self) -> dict[str, Any]:
        """Of the method that was asked about, for the record."""
        if self.arguments.question == 'subtasks':
            return {'method': self._detector.method, **self._detector.resolved()}
        return asdict(self.config)

    def detector(self) -> tuple[str, Mapping[str, Any]]:
        """(method, settings) that detect subtasks; ValueError for a method that detects none."""
        cell = self._detector
        if 'similarity_threshold' not in cell.resolved():
            raise ValueError(
                f'{cell.method} sees no subtasks, so it has no tau to vary; choose from '
                f'{alike("safe_pruner")} with --method'
            )
        return cell.method, cell.settings

    def results(self) -> list[dict[str, Any]]:
        return read_results(self.arguments.results)


def main(
    arguments: argparse.Namespace,
    policy: PolicyConfig,
    configured: Mapping[str, Mapping[str, Any]],
    splits: Mapping[str, range],
) -> int:
    """Answer ``arguments.question``. ValueError or FileNotFoundError for what is missing."""
    request = _Request(arguments, policy, configured, splits)
    questions: dict[str, Callable[[_Request], Answer]] = {
        'forecast': _forecast,
        'core-tokens': _core_tokens,
        'subtasks': _subtasks_of_results if arguments.results else _subtasks_of_recordings,
        'keyframes': _keyframes,
    }
    if arguments.question in ('forecast', 'core-tokens') and arguments.results:
        raise ValueError(f'{arguments.question} reads recordings, no results; leave them out')
    if arguments.question in ('forecast', 'core-tokens') and not request.config.forecast:
        raise ValueError(f'{arguments.question} asks about the forecast; leave out forecast=False')
    if arguments.method and (arguments.question != 'subtasks' or arguments.results):
        raise ValueError('--method is for subtasks on recordings only; leave it out')
    if not arguments.results:
        request.check_policy()
        request.policy = request.policy.pinned()
    numbers, text, figure = questions[arguments.question](request)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    name = arguments.question.replace('-', '_')
    record = {
        'question': arguments.question,
        **run_facts(),
        'answer': numbers,
    }
    if not arguments.results:
        record |= {'task': request.task.name, 'seeds': request.seeds, 'split': request.split}
        record |= {'settings': request.settings(), **request.policy.facts()}
    (out / f'{name}.json').write_text(to_json(record) + '\n')
    (out / f'{name}.md').write_text(text)
    figure.savefig(out / f'{name}.png', dpi=150, bbox_inches='tight')
    plt.close(figure)
    print(text)
    print(f'written to {out / name}.json, .md and .png')
    return 0


def _forecast(request: _Request) -> Answer:
    recordings, config = list(request.recordings()), request.config
    requests = requests_of(config, recordings[0].n_layers)
    max_lag = request.arguments.max_lag
    cohort_lag = min(request.arguments.cohort_lag, max_lag)
    parts = {
        name: forecast_accuracy(
            recordings,
            requests,
            max_lag,
            cohort_lag,
            config.match_scope,
            config.norm,
            within_subtask=within,
        )
        for name, within in (('same subtask', True), ('any steps', False))
    }
    deep = [f'{r.layer}' if r.queries == 'action' else f'{r.layer} (last)' for r in requests.deep]
    asked = f'S = {", ".join(deep)}, norm {config.norm}, early layer {requests.early.layer}'
    notes = (
        f'Same references: the pairs of steps that have every lag up to {cohort_lag}, the same '
        'steps at each lag. n: episodes, of KL those where it is finite. '
        f'*: fewer than {FEW_PAIRS} pairs.\n'
    )
    texts = [
        f'Forecast accuracy, {name}, {asked}:\n\n{_forecast_table(rows)}'
        for name, rows in parts.items()
    ]
    numbers = {name: [asdict(row) for row in rows] for name, rows in parts.items()}
    return (
        {'cohort_lag': cohort_lag, 'few_pairs': FEW_PAIRS, 'rows': numbers},
        '\n'.join([*texts, notes]),
        figures.draw_forecast(parts),
    )


def _forecast_table(rows: Sequence[ForecastRow]) -> str:
    columns = ('cosine [95 %]', 'KL, nats [95 %]', 'pairs', 'n', 'KL n')
    head = ['lag', 'saliency', 'forecast', f'all pairs: {columns[0]}', *columns[1:]]
    head += [f'same references: {columns[0]}', *columns[1:]]
    return table(
        head,
        [
            [
                str(row.lag),
                row.saliency,
                row.how,
                *_accuracy_cells(row.all_pairs),
                *(_accuracy_cells(row.same_references) if row.same_references else [''] * 5),
            ]
            for row in rows
        ],
    )


def _accuracy_cells(found: Accuracy) -> list[str]:
    infinite = f' ({found.kl.infinite} infinite)' if found.kl.infinite else ''
    return [
        found.cosine.text(),
        found.kl.text() if found.kl.episodes else 'none',
        f'{found.pairs} *' if found.is_thin else str(found.pairs),
        str(found.cosine.episodes),
        f'{found.kl.episodes}{infinite}',
    ]


def core_cues(config: SafePrunerConfig) -> tuple[dict[str, Cue], str]:
    """What ranks tokens, by name, and which of them is the baseline."""
    early = config.pruning_layer - 1
    settings = asdict(config)
    scopes: dict[QuotaScope, str] = {'joint': '', 'per_view': ', a quota a view'}
    action = {scope: f'action rows, layer {early}{text}' for scope, text in scopes.items()}
    cues = {
        **{name: early_cue('action', early, scope) for scope, name in action.items()},
        f"last row, layer {early} (FastV's release)": early_cue('last', early),
        f'prefill rows, layer {early} (FastV, as evaluated)': early_cue('prefill', early),
        f'text rows, layer {early}': early_cue('text', early),
        **{f'safe_pruner, keyframe {lag} old': safe_cue(settings, lag) for lag in KEYFRAME_AGES},
    }
    # safe_pruner without its forecast: what the forecast is worth, and nothing else
    return cues, action[config.quota_scope]


def _core_tokens(request: _Request) -> Answer:
    early = request.config.pruning_layer - 1
    cues, baseline = core_cues(request.config)
    loss = core_token_loss(list(request.recordings()), cues, PRUNING_RATIOS, early, baseline)
    texts = [
        f'Core tokens of the layers other than {early}. Policy steps that every method can judge, '
        f'from {max(KEYFRAME_AGES)} on; points against {baseline}:\n',
        _core_table(loss.same_steps, baseline),
        f'Every policy step, as the paper counts:\n\n{_core_table(loss.all_steps)}',
    ]
    return asdict(loss), '\n'.join(texts), figures.draw_core_tokens(loss.same_steps)


def _core_table(rows: Sequence[CoreRow], baseline: str = '') -> str:
    """With ``baseline``, a column of differences after each share."""
    kinds = ['core tokens dropped %', 'of later layers %', 'of a layer, at least one %']
    points = ['points [95 %]'] if baseline else []
    head = ['method', 'pruned %', *(name for kind in kinds for name in (kind, *points))]
    lines = []
    for row in rows:
        cells = [row.cue, f'{100 * row.pruning_ratio:.0f}']
        for found in (row.dropped, row.later_dropped, row.any_dropped):
            cells.append(_percent(found.share))
            if baseline:
                is_baseline = row.cue == baseline
                cells.append('baseline' if is_baseline else _points(found.minus_baseline))
        lines.append([*cells, str(row.steps or ''), str(row.dropped.share.episodes or '')])
    return table([*head, 'steps', 'n'], lines)


def _subtasks_of_recordings(request: _Request) -> Answer:
    """Every threshold on the same unpruned episodes."""
    method, settings = request.detector()
    recordings = list(request.recordings())
    scores = {}
    for threshold in THRESHOLDS:
        varied = {**settings, 'similarity_threshold': threshold, 'keyframe_interval': None}
        pruner = build_pruner(method, recordings[0].n_layers, **varied)
        scores[f'tau {threshold:g}'] = score_detection(
            [
                (boundaries_of(r.subtasks), replay_detections(r, pruner), r.n_steps)
                for r in recordings
            ],
            request.arguments.tolerance,
        )
    return _scored(scores, request)


def _subtasks_of_results(request: _Request) -> Answer:
    groups = detection_cases(request.results())
    if not groups:
        raise ValueError(
            'these results hold no episode with key timesteps and the subtask of each step; '
            'without results the question is answered on recordings'
        )
    tolerance = request.arguments.tolerance
    return _scored({name: score_detection(g, tolerance) for name, g in groups.items()}, request)


def _scored(scores: Mapping[str, DetectionScore], request: _Request) -> Answer:
    head = ['method', 'precision % [95 %]', 'by chance', 'recall % [95 %]', 'by chance', 'F1 %']
    head += ['delay, steps (mean, median)', 'steps detected %', 'boundaries', 'detections']
    rows = [
        [
            name,
            _percent(score.precision),
            _number(100 * score.chance_precision, '.1f'),
            _percent(score.recall),
            _number(100 * score.chance_recall, '.1f'),
            _number(100 * score.f1, '.1f'),
            f'{_number(score.delay_mean, "+.2f")}, {_number(score.delay_median, "+.1f")}',
            f'{100 * score.rate:.1f}',
            str(score.n_boundaries),
            str(score.n_detections),
        ]
        for name, score in scores.items()
    ]
    tolerance = request.arguments.tolerance
    text = f'Boundaries within {tolerance} policy steps of a detection:\n\n{table(head, rows)}'
    numbers = {
        'tolerance': tolerance,
        'scores': {name: asdict(score) | {'f1': score.f1} for name, score in scores.items()},
    }
    return numbers, text, figures.draw_subtasks(scores)


def _keyframes(request: _Request) -> Answer:
    if not request.arguments.results:
        raise ValueError('keyframes reads evaluation results; name their folders or files')
    rows = keyframe_rows(request.results())
    if not rows:
        raise ValueError('no method of these results took key timesteps')
    text = table(
        ['task', 'method', 'retention', 'key steps % [95 %]', 'an episode', 'gap', 'reasons', 'n'],
        [
            [
                row.task,
                row.variant,
                f'{row.retention_ratio:g}',
                _percent(row.share),
                f'{row.per_episode:.1f}',
                _number(row.gap_mean, '.1f'),
                ', '.join(f'{name} {100 * share:.0f} %' for name, share in row.reasons.items()),
                str(row.episodes),
            ]
            for row in rows
        ],
    )
    return [asdict(row) for row in rows], text, figures.draw_keyframe_shares(rows)


def _percent(value: Estimate) -> str:
    if math.isnan(value.mean):
        return 'none'
    return value.text('.1f', 100)


def _points(value: Estimate | None) -> str:
    if value is None:
        return ''
    return value.text('+.1f', 100)


def _number(value: float, style: str) -> str:
    return 'none' if math.isnan(value) else format(value, style)
