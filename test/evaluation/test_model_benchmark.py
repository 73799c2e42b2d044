"""`safe-pruner benchmark --model`: what is measured, mixed and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safe_pruner_ros import cli
from safe_pruner_ros.evaluation.flops.shapes import MODELS
from safe_pruner_ros.evaluation.latency import KEY, PRUNED, UNPRUNED, Sample
from safe_pruner_ros.evaluation.model_benchmark.measure import STAGES, measure, summarise
from safe_pruner_ros.evaluation.model_benchmark.random_models import (
    build_random_model,
    random_observations,
)


def sample(mode: str, number: int, step: float) -> Sample:
    stages = dict.fromkeys(STAGES, step / 6)
    return Sample(mode, number, {**stages, 'backbone': step / 2, 'model': step, 'step': step})


def test_mix_at_a_keyframe_share() -> None:
    samples = []
    for number in range(100):
        for mode, step in ((UNPRUNED, 100.0), (KEY, 110.0), (PRUNED, 40.0)):
            samples.append(sample(mode, number, step))
    found = summarise(samples, 0.08)
    mixed = found['modes']['method']['ms']['step']
    assert (mixed['p50'], mixed['p90'], mixed['p99']) == (40.0, 40.0, 110.0)
    step = found['speedup']['step']
    assert step['unpruned_over_pruned']['p50'] == pytest.approx(2.5)
    assert step['unpruned_over_mixed']['p50'] == pytest.approx(100 / (0.08 * 110 + 0.92 * 40))
    assert found['scoring_share'] == pytest.approx(1 / 6)
    assert summarise(samples, 0.12)['modes']['method']['ms']['step']['p90'] == 110.0


def test_method_without_key_timesteps() -> None:
    samples = [sample(m, n, s) for n in range(3) for m, s in ((UNPRUNED, 9.0), (PRUNED, 3.0))]
    found = summarise(samples, 0.5)
    assert found['keyframe_share'] == 0 and KEY not in found['modes']
    assert found['speedup']['step']['unpruned_over_mixed']['p50'] == pytest.approx(3.0)


@pytest.mark.parametrize('name', ['openvla_oft', 'pi05'])
def test_modes_are_what_they_say(name: str) -> None:
    torch.set_num_threads(1)
    model = build_random_model(name, 'tiny', torch.device('cpu'), torch.float32)
    settings = {'retention_ratio': 0.3, 'similarity_threshold': 0.0}
    unpruned, method = (
        model.make_policy('unpruned', {}),
        model.make_policy('safe_pruner', settings),
    )
    samples, errors = measure(unpruned, method, random_observations(unpruned, 4), 3)
    assert sorted(s.mode for s in samples) == sorted([UNPRUNED, KEY, PRUNED] * 3)
    assert len(errors) == 3 and all(error.any() for error in errors)
    for one in samples:
        parts = sum(one.latency_ms[stage] for stage in STAGES)
        assert parts <= one.latency_ms['step'] + 1e-6


def test_retention_1_answers_as_unpruned() -> None:
    model = build_random_model('openvla_oft', 'tiny', torch.device('cpu'), torch.float32)
    policies = [
        model.make_policy('unpruned', {}),
        model.make_policy('fastv', {'retention_ratio': 1}),
    ]
    (observation,) = random_observations(policies[0], 1)
    first, second = (policy.predict(observation).chunk.positions for policy in policies)
    assert (first == second).all()


def test_command_writes_json_beside_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ['benchmark', '--model', 'openvla_oft', '--size', 'tiny', '--rounds', '2']
    command += ['--threads', '1', '--retention', '0.25', '--dtype', 'bfloat16']
    assert cli.main([*command, '--out', str(tmp_path)]) == 0
    result = json.loads((tmp_path / 'model_step.json').read_text())
    assert result['n_retained'] == 8 and result['n_visual'] == 32 and result['commit']
    found = result['threads']['1']
    assert set(found['modes']) == {'unpruned', 'key', 'pruned', 'method'}
    assert set(found['speedup']) == {'backbone', 'model', 'step'}
    assert result['action_error']['max'] > 0 and result['peak_memory_bytes'] > 1e6
    text = (tmp_path / 'model_step.md').read_text()
    assert '10 % key, the rest pruned' in text and text in capsys.readouterr().out


def test_small_has_the_full_models_shape() -> None:
    meta = torch.device('meta')
    for name in ('openvla', 'openvla_oft', 'pi05'):
        small = build_random_model(name, 'small', meta, torch.float32)
        published = MODELS[name]()
        assert small.counted.tokens == published.tokens
        assert small.counted.decoder.n_layers == published.decoder.n_layers
        assert 0.8e8 < small.parameters < 1.3e8


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'gpt'], "no model 'gpt' of size 'small'"),
        (['--model', 'pi05', '--size', 'huge'], "sizes ['full', 'small', 'tiny']"),
        (
            ['--model', 'pi05', '--size', 'tiny', '--method', 'magic'],
            "unknown pruning method 'magic'",
        ),
        (['--model', 'pi05', '--size', 'tiny', '--retention', '0'], '(0, 1], got 0.0'),
        (['--model', 'pi05', '--size', 'tiny', '--retention', '1'], 'pruned nothing'),
        (['--model', 'pi05', '--size', 'tiny', '--method', 'unpruned'], 'pruned nothing'),
        (['--model', 'pi05', '--dtype', 'int8'], "got 'int8'"),
        (['--model', 'pi05', '--keyframe-share', '2'], 'must be in [0, 1], got 2.0'),
        (['--model', 'pi05', '--graphs', '--device', 'cpu'], '--graphs needs a GPU'),
        (['--model', 'pi05', '--threads', 'x'], "got 'x'"),
    ],
)
def test_refuses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert cli.main(['benchmark', *arguments, '--out', str(tmp_path / 'out')]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'out').exists()
