"""A process that outlives an evaluation: whose weights and whose code its episodes are of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from safe_pruner_ros.evaluation import worker
from safe_pruner_ros.evaluation.analysis import recording
from safe_pruner_ros.evaluation.evaluate import evaluate
from safe_pruner_ros.evaluation.execution import on_backend
from safe_pruner_ros.evaluation.plan import EvaluationPlan, Job, build_cells
from safe_pruner_ros.evaluation.policy_source import OtherCheckpoint, PolicySource
from safe_pruner_ros.evaluation.results import read_episodes
from safe_pruner_ros.evaluation.rollout import RolloutSettings
from safe_pruner_ros.policies.embedded import EmbeddedPolicy

SEEDS = (500_000, 500_001)


@pytest.fixture(autouse=True)
def cold() -> Iterator[None]:
    """No weights in memory; the robot stays."""
    worker._warm.loaded.clear()
    yield
    worker._warm.loaded.clear()


@pytest.fixture
def weights(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to write over."""
    return shutil.copy(checkpoint, tmp_path / 'weights.safetensors')


def make_plan(checkpoint: Path) -> EvaluationPlan:
    return EvaluationPlan(
        'pick_place',
        build_cells(['unpruned'], [1.0], {}),
        SEEDS,
        policy=PolicySource(checkpoint=str(checkpoint)),
        rollout=RolloutSettings(max_policy_steps=1),
    )


def pinned(plan: EvaluationPlan) -> EvaluationPlan:
    return replace(plan, policy=plan.policy.pinned())


def first_job(plan: EvaluationPlan) -> Job:
    return next(pinned(plan).jobs())


def recorded(folder: Path) -> set[tuple[Any, Any]]:
    """(checkpoint, what shows the weights) of the episodes."""
    episodes = read_episodes(folder / 'episodes.jsonl')
    assert len(episodes) == len(SEEDS)
    return {(episode['config']['checkpoint'], episode['macs_mean']) for episode in episodes}


def test_new_weights_at_the_same_place_are_loaded_anew(
    weights: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    plan = make_plan(weights)
    evaluate(plan, tmp_path / 'old', jobs=1)
    shutil.copy(other_checkpoint, weights)
    evaluate(plan, tmp_path / 'new', jobs=1)  # in the same process, which is warm
    evaluate(make_plan(other_checkpoint), tmp_path / 'cold', jobs=1)
    assert recorded(tmp_path / 'new') == recorded(tmp_path / 'cold') != recorded(tmp_path / 'old')


def test_new_weights_replace_the_old_ones_in_memory(weights: Path, other_checkpoint: Path) -> None:
    first = first_job(make_plan(weights))
    old = worker._policy(first)
    assert worker._policy(first) is old
    random = replace(first, cell=build_cells(['random'], [0.5], {})[0])
    assert worker._policy(random).model is old.model
    shutil.copy(other_checkpoint, weights)
    assert worker._policy(first) is old  # as long as its evaluation goes on
    new = worker._policy(first_job(make_plan(weights)))
    assert isinstance(new, EmbeddedPolicy) and len(new.model.layers) == 4
    assert len(worker._warm.loaded) == 1
    with pytest.raises(OtherCheckpoint):
        worker._policy(first)
    assert worker._policy(first_job(make_plan(weights))) is new


@pytest.mark.parametrize('jobs', [1, 2])
def test_a_worker_that_sees_other_weights_ends_the_evaluation(
    jobs: int, weights: Path, checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    """As a worker that had to be started again, or one on another machine, does."""
    plan, out = pinned(make_plan(weights)), tmp_path / 'out'
    shutil.copy(other_checkpoint, weights)
    with pytest.raises(OtherCheckpoint, match=f'{weights} on .* is not the checkpoint'):
        evaluate(plan, out, jobs=jobs)
    assert read_episodes(out / 'episodes.jsonl') == []
    shutil.copy(checkpoint, weights)
    evaluate(plan, out, jobs=1)
    assert {checkpoint for checkpoint, _ in recorded(out)} == {plan.policy.identity['checkpoint']}


def test_warm_workers_of_a_cluster_load_new_weights(
    weights: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        on_backend(f'dask:{cluster.scheduler_address}'),
    ):
        old = pinned(make_plan(weights))
        evaluate(old, tmp_path / 'old')
        shutil.copy(other_checkpoint, weights)
        evaluate(make_plan(weights), tmp_path / 'new')
        with pytest.raises(OtherCheckpoint, match='is not the checkpoint'):
            evaluate(old, tmp_path / 'gone')
    evaluate(make_plan(other_checkpoint), tmp_path / 'cold', jobs=1)
    assert recorded(tmp_path / 'new') == recorded(tmp_path / 'cold') != recorded(tmp_path / 'old')


def test_recordings_are_of_the_weights_that_they_name(
    weights: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    source = PolicySource(checkpoint=str(weights)).pinned()
    shutil.copy(other_checkpoint, weights)
    job = recording.RecordingJob('pick_place', source, 1, tmp_path / '1.npz', {})
    with pytest.raises(OtherCheckpoint):
        recording.run_recording(job)
    assert not job.path.exists()


def test_an_episode_names_the_code_and_the_cpu_that_ran_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr('safe_pruner_ros.evaluation.evaluate.code_commit', lambda: 'head')
    monkeypatch.setattr(worker, 'code_commit', lambda: 'worker')
    monkeypatch.setattr(worker, 'cpu_model', lambda: 'a CPU')
    (cell,) = evaluate(make_plan(checkpoint), tmp_path, jobs=1)
    assert (cell.commits, cell.cpus) == (('worker',), ('a CPU',))
    assert 'Code of worker. CPU: a CPU.' in (tmp_path / 'summary.md').read_text()
    told = 'a worker runs code of commit worker, this command that of head'
    assert capsys.readouterr().err.count(told) == 1
