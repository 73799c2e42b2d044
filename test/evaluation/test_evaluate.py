"""The whole evaluation on the real robot and a policy with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safe_pruner_ros.evaluation import evaluate as module
from safe_pruner_ros.evaluation.evaluate import check_plan, evaluate
from safe_pruner_ros.evaluation.plan import EvaluationPlan, Job, build_cells
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import read_episodes
from safe_pruner_ros.evaluation.rollout import RolloutSettings
from safe_pruner_ros.evaluation.worker import forget_warm, run_job

VARYING = ('latency_ms_p50', 'wall_s', 'commit')


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
    assert json.loads((tmp_path / 'summary.json').read_text())['complete'] is False


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
