"""The whole evaluation on the real robot and a policy with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safe_pruner_ros.cli import main
from safe_pruner_ros.core.baselines.fastv import FastV
from safe_pruner_ros.evaluation import evaluate as module
from safe_pruner_ros.evaluation import worker
from safe_pruner_ros.evaluation.evaluate import check_plan, evaluate
from safe_pruner_ros.evaluation.plan import EvaluationPlan, Job, build_cells
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import read_episodes
from safe_pruner_ros.evaluation.rollout import RolloutSettings
from safe_pruner_ros.evaluation.worker import forget_warm, run_job
from safe_pruner_ros.policies.embedded import EmbeddedPolicy, load_weights
from safe_pruner_ros.policies.policy import PolicyOutput
from safe_pruner_ros.types import Observation

LATENCIES = tuple(f'latency_ms_{part}' for part in ('mean', 'p50', 'key_p50', 'pruned_p50'))
VARYING = (*LATENCIES, 'wall_s', 'commit')


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    yield
    forget_warm()


def make_plan(checkpoint: Path, seeds: tuple[int, ...] = (500_000, 500_001)) -> EvaluationPlan:
    return EvaluationPlan(
        'pick_place',
        build_cells(['unpruned', 'safe_pruner', 'random'], [0.25], {'safe_pruner.alpha': 0.3}),
        seeds,
        policy=PolicySource(checkpoint=str(checkpoint)),
        rollout=RolloutSettings(max_policy_steps=2, execution_horizon=1),
    )


def without_times(episodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [{k: v for k, v in episode.items() if k not in VARYING} for episode in episodes]
    return sorted(kept, key=lambda episode: (episode['method'], episode['seed']))


def test_evaluates_resumes_and_repeats(checkpoint: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    cells = evaluate(make_plan(checkpoint), whole, jobs=1)
    unpruned, random, safe = cells
    assert [cell.method for cell in cells] == ['unpruned', 'random', 'safe_pruner']
    assert all(cell.episodes == 2 and cell.errors == 0 for cell in cells)
    assert unpruned.retained_tokens_mean == 192 and random.retained_tokens_mean == 48
    assert safe.retained_tokens_mean == 120  # the first of two steps is a key timestep
    assert unpruned.macs_mean > safe.macs_mean > random.macs_mean > 0
    assert safe.versus_baseline.pairs == 2

    first = read_episodes(whole / 'episodes.jsonl')
    assert {'commit', 'settings_hash', 'instruction', 'target'} <= set(first[0])
    scoring = {episode['method']: episode['scoring_macs_mean'] for episode in first}
    assert scoring['safe_pruner'] > scoring['random'] == scoring['unpruned'] == 0
    assert all(episode['latency_ms_mean'] > 0 for episode in first)
    kinds = [episode['latency_ms_key_p50'] is None for episode in first]
    assert kinds == [episode['method'] != 'safe_pruner' for episode in first]

    # In two goes, the first of them killed while it wrote: the same episodes, each once.
    evaluate(make_plan(checkpoint, (500_000,)), parts, jobs=1)
    path = parts / 'episodes.jsonl'
    path.write_bytes(path.read_bytes()[:-30])
    forget_warm()
    evaluate(make_plan(checkpoint), parts, jobs=1)
    second = read_episodes(path)
    assert without_times(second) == without_times(first)

    summary = json.loads((parts / 'summary.json').read_text())
    assert summary['complete'] and len(summary['cells']) == 3
    assert 'safe_pruner' in (parts / 'summary.md').read_text()


def test_an_interrupted_run_keeps_what_it_has(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(
        function: object, waiting: list[Job], jobs: int
    ) -> Iterator[tuple[Job, dict[str, Any]]]:
        yield waiting[0], run_job(waiting[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, 'run_jobs', interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_plan(checkpoint), tmp_path, jobs=1)
    assert len(read_episodes(tmp_path / 'episodes.jsonl')) == 1
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['complete'] is False and summary['last_run']['episodes'] == 1


def test_weights_are_loaded_once_for_all_methods(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load_once(path: Path) -> Any:
        loaded.append(path)
        return load_weights(path)

    monkeypatch.setattr('safe_pruner_ros.policies.embedded.load_weights', load_once)
    plan = make_plan(checkpoint)
    check_plan(plan)
    assert len(loaded) == 1
    policies = {job.cell.method: worker._policy(job) for job in plan.jobs()}
    assert len(loaded) == 2 and len({id(policy) for policy in policies.values()}) == 3
    assert len({id(policy.model) for policy in policies.values()}) == 1
    assert [policy._method for policy in policies.values()] == list(policies)


def test_another_period_than_the_policys_is_refused(
    checkpoint: Path, tmp_path: Path, capsys
) -> None:
    for period_s, code in ((0.2, 2), (0.1, 0)):
        file = tmp_path / f'{period_s}.yaml'
        file.write_text(f'policy:\n  name: embedded\n  period_s: {period_s}\n')
        found = main(
            ['evaluate', '--policy-file', str(file), '--checkpoint', str(checkpoint), '--methods',
             'random', '--seeds', '500000', '--dry-run', '--out', str(tmp_path / 'out')]
        )  # fmt: skip
        error = capsys.readouterr().err
        assert found == code, error
        assert ('policy.period_s is 0.2 s in the policy file' in error) == (code == 2)


def test_plan_is_checked_before_anything_runs(checkpoint: Path, tmp_path: Path) -> None:
    check_plan(make_plan(checkpoint))
    with pytest.raises(FileNotFoundError, match='nowhere'):
        check_plan(make_plan(tmp_path / 'nowhere.safetensors'))
    with pytest.raises(ValueError, match='cannot be asked for pack_doll'):  # no word for a box
        check_plan(EvaluationPlan(**{**vars(make_plan(checkpoint)), 'task': 'pack_doll'}))
    deployed = PolicySource(checkpoint=str(checkpoint), deployment={'views': ['head']})
    assert deployed.facts()['deployment'] == {'views': ['head']}  # and it reaches the policy:
    with pytest.raises(ValueError, match='takes no deployment'):
        check_plan(EvaluationPlan(**{**vars(make_plan(checkpoint)), 'policy': deployed}))
    cells = build_cells(['random', 'safe_pruner:K=5'], [0.3], {})  # this policy has 5 layers
    with pytest.raises(ValueError, match='pruning_layer'):
        check_plan(
            EvaluationPlan(
                'pick_place', cells, (1,), policy=PolicySource(checkpoint=str(checkpoint))
            )
        )


def test_first_step_and_latency_are_checked_before_anything_runs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(checkpoint)
    late = replace(plan, rollout=RolloutSettings(max_policy_steps=2, latency_ticks=60))
    with pytest.raises(ValueError, match='latency_ticks must be below 20'):
        check_plan(late)

    def fails(self: FastV, context: object) -> None:
        raise RuntimeError('no such kernel')

    monkeypatch.setattr(FastV, 'saliency', fails)
    cells = build_cells(['random', 'fastv@0.5'], [0.3], {})
    with pytest.raises(ValueError, match='fastv at 0.5 fails on its first policy step: Runtime'):
        check_plan(replace(plan, cells=cells))


def test_errors_end_in_exit_code_one_and_can_be_run_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    command = [
        'evaluate', '--methods', 'unpruned,random', '--seeds', '500000,500001', '--jobs', '1',
        '--checkpoint', str(checkpoint), '--max-policy-steps', '2', '--out', str(tmp_path / 'out'),
    ]  # fmt: skip
    predict, path = EmbeddedPolicy.predict, tmp_path / 'out' / 'episodes.jsonl'

    def short_of_memory(self: EmbeddedPolicy, observation: Observation) -> PolicyOutput:
        if self._step == 1 and self._method == 'random':
            raise MemoryError('out of memory')
        return predict(self, observation)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedPolicy, 'predict', short_of_memory)
        assert main(command) == 1
    assert '2 episodes ended in an error (2 of random at 0.3; the first: MemoryError' in (
        capsys.readouterr().err
    )
    assert main(command) == 1  # what is recorded stays recorded
    assert main([*command, '--retry-errors']) == 0
    episodes = read_episodes(path)
    assert len(episodes) == 4 and not any(episode['error'] for episode in episodes)
    before = path.read_bytes()
    assert main([*command, '--retry-errors']) == 0 and path.read_bytes() == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--methods', 'safe_pruner:K=2.5'], 'pruning_layer must be a whole number, got 2.5'),
        (['--methods', 'safe_pruner:tau=abc'], "a finite number, got 'abc'"),
        (['--latency-ticks', '60'], 'latency_ticks must be below'),
        (['--out', '{file}'], '--out is a folder for results'),
        (['--out', '{file}/below'], '--out is a folder for results'),
    ],
)
def test_wrong_commands_leave_nothing_behind(
    arguments: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    file = tmp_path / 'file'
    file.write_text('x')
    given = [argument.format(file=file) for argument in arguments]
    out = [] if '--out' in arguments else ['--out', str(tmp_path / 'out')]
    assert main(['evaluate', '--checkpoint', str(checkpoint), *out, *given]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_latency_of_both_variants_in_one_run(checkpoint: Path) -> None:
    from safe_pruner_ros.evaluation.latency import markdown_table, ratio_line, run_benchmark
    from safe_pruner_ros.sim.env import DualArmEnv

    cell = build_cells(['safe_pruner'], [0.25], {'similarity_threshold': 0.0})[0]
    with DualArmEnv() as env:
        found = run_benchmark(
            env, cell, [1], [800_100], 2, PolicySource(checkpoint=str(checkpoint))
        )
    result = found['threads']['1']
    modes = result['modes']
    assert modes['unpruned']['samples'] == modes['method']['samples'] == 2 * found['observations']
    assert modes['key']['samples'] == 2  # the first step of each replay
    assert modes['pruned']['ms']['deep']['p50'] > 0 and result['ratio_pruned'] > 0
    assert result['speedup_range'][0] <= result['speedup_range'][1]
    assert markdown_table(result).count('\n') == 6 and 'Speedup' in ratio_line(result)
