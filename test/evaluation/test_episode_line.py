"""Lines and configurations of the wrong types are refused where they are read."""

from __future__ import annotations

import json
import lzma
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from safe_pruner_ros.cli import main
from safe_pruner_ros.evaluation import episode_line
from safe_pruner_ros.evaluation.episode_line import NotAnEpisode, NotJson, parse_line
from safe_pruner_ros.evaluation.evaluate import evaluate
from safe_pruner_ros.evaluation.plan import EvaluationPlan, build_cells
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import (
    ResultsError,
    ResultsFolder,
    read_episodes,
    to_json,
)
from safe_pruner_ros.evaluation.rollout import EpisodeResult

COMMITTED = Path(__file__).parents[2] / 'docs/results/episodes'

WRONG: list[tuple[str, Any, str]] = [
    ('task', None, 'text, got null'),
    ('task', 5, 'text, got 5'),
    ('method', ['random'], r'text, got \["random"\]'),
    ('variant', 3, 'text, or null, got 3'),
    ('seed', None, 'a whole number from 0, got null'),
    ('seed', 'abc', 'a whole number from 0, got "abc"'),
    ('seed', '5', 'a whole number'),
    ('seed', 5.5, 'a whole number'),
    ('seed', True, 'a whole number'),
    ('seed', -1, 'a whole number'),
    ('seed', 1 << 63, 'a whole number'),
    ('retention_ratio', None, 'a finite number, got null'),
    ('retention_ratio', '0.3', 'a finite number'),
    ('retention_ratio', float('nan'), 'a finite number, got NaN'),
    ('retention_ratio', float('inf'), 'a finite number'),
    ('retention_ratio', 10**400, r'a finite number, got 10{59}\.\.\.;'),
    ('retention_ratio', {}, 'a finite number'),
    ('asked_object', 'cube', 'a whole number from 0, or null, got "cube"'),
    ('asked_object', False, 'a whole number'),
    ('success', None, 'true or false, got null'),
    ('success', 1, 'true or false'),
    ('success', 'true', 'true or false'),
    ('settings', None, 'an object, got null'),
    ('settings', [], 'an object'),
    ('config', None, 'an object'),
    ('config', 'none', 'an object'),
    ('policy_steps', 'many', 'a whole number from 0, got "many"'),
    ('policy_steps', None, 'a whole number'),
    ('policy_steps', -3, 'a whole number'),
    ('keyframes', [1], 'a whole number'),
    ('keyframe_steps', 3, 'a list of whole numbers from 0, got 3'),
    ('keyframe_steps', [1, None], 'a list of whole numbers'),
    ('keyframe_reasons', 'first step', 'a list of texts'),
    ('subtasks', [1], 'a list of texts'),
    ('macs_mean', 'much', 'a finite number, or null where nothing was measured, got "much"'),
    ('latency_ms_p50', [3.0], 'a finite number, or null'),
    ('retained_tokens_mean', float('nan'), 'a finite number, or null'),
    ('error', None, 'text, got null'),
    ('commit', 7, 'text'),
]


def record(seed: Any, **changes: Any) -> dict[str, Any]:
    return {
        'task': 'pick_place',
        'method': 'random',
        'retention_ratio': 0.3,
        'seed': seed,
        'asked_object': None,
        'success': True,
        'policy_steps': 5,
        'keyframe_steps': [0],
        'macs_mean': None,
        'settings': {},
        'of_a_newer_version': {'any': [None]},
    } | changes


@pytest.fixture
def plan(checkpoint: Path) -> EvaluationPlan:
    source = PolicySource(checkpoint=str(checkpoint))
    return EvaluationPlan('pick_place', build_cells(['random'], [0.3], {}), (0,), policy=source)


@pytest.mark.parametrize(('name', 'value', 'message'), WRONG)
def test_a_value_of_the_wrong_kind_is_refused_where_it_stands(
    name: str, value: Any, message: str, plan: EvaluationPlan, tmp_path: Path, capsys
) -> None:
    path = tmp_path / 'episodes.jsonl'
    path.write_text(f'{json.dumps(record(0))}\n{json.dumps(record(1) | {name: value})}\n')
    before = path.read_bytes()
    pattern = f'line 2 of {path} is not an episode: {name} must be {message}'
    with pytest.raises(ResultsError, match=pattern):
        evaluate(plan, tmp_path, jobs=1)
    assert path.read_bytes() == before
    assert main(['table', str(tmp_path), '--out', str(tmp_path / 'table.json')]) == 2
    assert f'line 2 of {path} is not an episode: {name} must be' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('[]', r'it must be an object, got \[\]'),
        ('null', 'it must be an object, got null'),
        ('"a"', 'it must be an object'),
        ('{}', 'it lacks task, method, retention_ratio, seed, asked_object, success'),
        ('{"task": "a"', 'it is no JSON'),
        ('', 'it is no JSON'),
        ('\0', 'it is no JSON'),
        pytest.param('9' * 5000, 'it (is no JSON|must be an object)', id='long'),
        ('\udc80', 'it is no JSON'),
        pytest.param('[' * 100_000, 'it is (nested too deeply|no JSON)', id='deep'),
    ],
)
def test_a_line_of_something_else_is_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / 'episodes.jsonl.xz'
    path.write_bytes(
        lzma.compress(f'{json.dumps(record(0))}\n{line}\n'.encode(errors='surrogateescape'))
    )
    with pytest.raises(ResultsError, match=f'line 2 of {path} is not an episode: {message}'):
        read_episodes(path)


def test_a_last_line_without_its_end_is_cut_only_if_it_was_ours(tmp_path: Path) -> None:
    path = tmp_path / 'episodes.jsonl'
    whole = json.dumps(record(0)) + '\n'
    path.write_text(whole + json.dumps(record(1)))
    assert [episode['seed'] for episode in read_episodes(path)] == [0]
    path.write_text(whole + json.dumps(record('one')))
    with pytest.raises(ResultsError, match='line 2 .* seed must be'):
        read_episodes(path)


DEEP = pytest.param('[' * 100_000, id='deep')


@pytest.mark.parametrize('text', ['[]', 'null', '5', '"a"', DEEP, '{"task":', '\0'])
def test_a_configuration_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    with ResultsFolder(tmp_path, {'task': 'pick_place'}) as folder:
        folder.add(record(0))
    path = tmp_path / 'config.json'
    path.write_text(text)
    for _ in range(2):
        with (
            pytest.raises(ResultsError, match=f'{path} (must hold an object|is not readable)'),
            ResultsFolder(tmp_path, {'task': 'pick_place'}),
        ):
            pass
    assert path.read_text() == text


def test_what_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path, {'task': 'pick_place'}) as folder:
        with pytest.raises(NotAnEpisode, match='success must be true or false, got 1'):
            folder.add(record(0, success=1))
        folder.add(record(0))
    assert [episode['seed'] for episode in read_episodes(tmp_path / 'episodes.jsonl')] == [0]


def test_every_field_of_an_episode_is_checked() -> None:
    assert {field.name for field in fields(EpisodeResult)} <= set(episode_line._KINDS)
    line = to_json(record(0, macs_mean=float('nan')), indent=None).encode()
    assert parse_line(line)['macs_mean'] is None
    with pytest.raises(NotJson):
        parse_line(line[:-2])


@pytest.mark.parametrize('plan', ['latency', 'few_tokens'])
def test_committed_episodes_are_read(plan: str, tmp_path: Path) -> None:
    """By `table`, and gone on with by `evaluate`, which reads a copy of them."""
    found = sorted((COMMITTED / plan).rglob('episodes.jsonl.xz'))
    assert found
    for packed in found:
        episodes = read_episodes(packed)
        folder = tmp_path / packed.parent.name
        folder.mkdir()
        shutil.copy(packed, folder)
        config = {'task': episodes[0]['task'], **episodes[0]['config']}
        with ResultsFolder(folder, config) as opened:
            assert len(opened.episodes) == len(episodes) > 0
