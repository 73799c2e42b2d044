"""Settings of old episodes: the same where what ran is the same, before a run and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safe_pruner_ros.core.catalog import METHODS, resolved_settings
from safe_pruner_ros.evaluation.closed_loop import read_results
from safe_pruner_ros.evaluation.evaluate import evaluate
from safe_pruner_ros.evaluation.plan import EvaluationPlan, build_cells
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.recorded_settings import (
    completed_settings,
    settings_of,
    shared_settings,
)
from safe_pruner_ros.evaluation.results import ResultsError, to_json
from safe_pruner_ros.evaluation.rollout import RolloutSettings
from safe_pruner_ros.evaluation.summary import CellSummary, summarise


def run(checkpoint: Path, out: Path, *seeds: int, method: str = 'safe_pruner') -> CellSummary:
    plan = EvaluationPlan(
        'pick_place',
        build_cells([method], [0.25], {'alpha': 1}),
        seeds,
        policy=PolicySource(checkpoint=str(checkpoint)),
        rollout=RolloutSettings(max_policy_steps=1),
    )
    return evaluate(plan, out, jobs=1)[-1]


def rewrite(path: Path, *gone: str, **changes: Any) -> None:
    """Take settings out of all lines, and change others."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line['settings'] |= changes
        for name in gone:
            del line['settings'][name]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_what_a_resume_accepts_a_summary_can_be_made_of(checkpoint: Path, tmp_path: Path) -> None:
    """Lines as of a version that had fewer settings, and wrote a number in another form."""
    run(checkpoint, tmp_path, 500_000)
    path = tmp_path / 'episodes.jsonl'
    line = json.loads(path.read_text())
    assert line['settings']['alpha'] == 1.0
    rewrite(path, 'deep_weight', 'deep_layers', alpha=1, pruning_layer=3.0)
    cell = run(checkpoint, tmp_path, 500_000, 500_001)
    assert cell.episodes == 2
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['complete'] and len(summary['cells']) == 1
    assert len({len(json.loads(row)['settings']) for row in path.read_text().splitlines()}) == 2
    read_results([tmp_path])  # and a table


@pytest.mark.parametrize(
    ('gone', 'changes', 'message'),
    [
        (['alpha'], {}, "they were {'alpha': 0.5}, now {'alpha': 1.0}"),  # not the default now
        ([], {'alpha': 0.7}, "they were {'alpha': 0.7}, now {'alpha': 1.0}"),
        ([], {'alpha': 7}, "they were {'alpha': 7}, now {'alpha': 1.0}"),  # refused today
        (['deep_weight'], {'of_old': 5}, "they were {'of_old': 5}, now {}"),  # nobody knows it
    ],
)
def test_what_a_summary_would_refuse_a_resume_refuses(
    gone: list[str], changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    run(checkpoint, tmp_path, 500_000)
    path = tmp_path / 'episodes.jsonl'
    rewrite(path, *gone, **changes)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=message):
        run(checkpoint, tmp_path, 500_000, 500_001)
    assert path.read_bytes() == before


def test_a_cell_of_two_kinds_is_refused_before_another_one_runs(
    checkpoint: Path, tmp_path: Path
) -> None:
    run(checkpoint, tmp_path, 500_000, 500_001)
    path = tmp_path / 'episodes.jsonl'
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    second['settings']['deep_weight'] = 0.5
    path.write_text(f'{json.dumps(first)}\n{json.dumps(second)}\n')
    with pytest.raises(ResultsError, match="'safe_pruner' at 0.25 ran with different settings"):
        run(checkpoint, tmp_path, 500_000, method='diverse_forecast')
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('causal', [False, True])
def test_settings_are_completed_with_defaults(method: str, causal: bool) -> None:
    complete = json.loads(to_json(resolved_settings(method, {}, causal=causal)))
    assert completed_settings(method, {}, causal=causal) == complete
    assert completed_settings(method, complete, causal=causal) == complete
    assert completed_settings(method, {'of_old': 1}, causal=causal) == complete | {'of_old': 1}


@pytest.mark.parametrize(
    'value', [None, [], {}, 'abc', [[]], 10**400, float('inf'), True, {'x': [1]}], ids=str
)
@pytest.mark.parametrize('method', [*METHODS, 'of_old'])
def test_whatever_stands_in_a_file_is_itself(method: str, value: Any) -> None:
    names = [*resolved_settings('diverse_forecast', {}), 'queries', 'seed', 'of_old']
    for name in names:
        found = completed_settings(method, {name: value}, causal=False)
        assert found == completed_settings(method, found, causal=False)


def test_a_causal_decoder_has_defaults_of_its_own() -> None:
    record = {'method': 'fastv', 'settings': {}, 'config': {'policy': 'openvla'}}
    assert settings_of(record)['queries'] == 'last'
    assert settings_of(record | {'config': {'policy': ['odd']}})['queries'] == 'prefill'
    assert settings_of({'method': 'fastv'})['queries'] == 'prefill'


def test_equal_settings_are_one_cell() -> None:
    line = {'task': 'a', 'method': 'safe_pruner', 'retention_ratio': 0.3, 'asked_object': None}
    line |= {'success': True, 'policy_steps': 5}
    settings = [{'alpha': 1}, {'alpha': 1.0, 'deep_weight': 1}, {'alpha': 0.9}]
    lines = [{**line, 'seed': seed, 'settings': found} for seed, found in enumerate(settings)]
    (cell,) = summarise(lines[:2])
    assert cell.episodes == 2
    with pytest.raises(ResultsError, match='different settings'):
        summarise(lines)
    assert shared_settings(lines[:2], 'x')['alpha'] == 1.0


def test_one_episode_of_two_versions_counts_once_in_a_table(tmp_path: Path) -> None:
    line = {'task': 'a', 'method': 'random', 'retention_ratio': 0.3, 'asked_object': None}
    line |= {'success': True, 'seed': 1, 'config': {}}
    files = []
    for number, settings in enumerate([{'retention_ratio': 0.3}, {'seed': 0}, {'seed': 1}]):
        files.append(tmp_path / f'{number}.jsonl')
        files[-1].write_text(json.dumps({**line, 'settings': settings}) + '\n')
    assert len(read_results(files[:2])) == 1
    with pytest.raises(ResultsError, match=r"disagree about episode .*: \['settings'\]"):
        read_results(files)
