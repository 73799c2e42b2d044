"""Closed-loop success of pruning methods on the same scenes. Resumable, on all cores."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from safe_pruner_ros.evaluation.plan import EvaluationPlan, Job
from safe_pruner_ros.evaluation.provenance import git_commit, machine
from safe_pruner_ros.evaluation.results import ResultsFolder
from safe_pruner_ros.evaluation.summary import CellSummary, as_dict, markdown_table, summarise
from safe_pruner_ros.evaluation.worker import run_job
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.sim.env import DualArmEnv


class WorkerDied(RuntimeError):
    """A worker process ended without an answer; what was finished is saved."""


def check_plan(plan: EvaluationPlan) -> None:
    """Raise ValueError or FileNotFoundError for whatever would make every episode of a cell fail:
    the checkpoint, a setting, a horizon."""
    if not plan.seeds:
        raise ValueError('no seeds to evaluate')
    for cell in plan.cells:
        try:
            policy = build_policy(
                plan.policy, cell.method, dict(cell.settings), plan.checkpoint, plan.device
            )
        except TypeError as error:  # a setting of the wrong kind
            raise ValueError(f'method {cell.method!r}: bad value in a setting: {error}') from error
    horizon, chunk_size = plan.rollout.execution_horizon, policy.spec.chunk_size
    if horizon > chunk_size:
        raise ValueError(f'execution_horizon must be at most {chunk_size}, got {horizon}')


def count_objects(task: str, seed: int) -> int:
    """How many objects the scenes of a task have."""
    with DualArmEnv(task) as env:
        env.reset(seed)
        return len(env.objects)


def evaluate(
    plan: EvaluationPlan, out: Path, jobs: int = 0, baseline: str = 'unpruned'
) -> list[CellSummary]:
    """Run every episode of ``plan`` that ``out`` does not hold yet, then write the summaries.

    ``jobs``: worker processes, 0 = one a core. joblib decides where they run, so a caller may
    choose another backend with `joblib.parallel_config`. Raises ResultsError for a folder that
    holds something else, WorkerDied; episodes finished until then are kept.
    """
    commit = git_commit()
    jobs = jobs or os.cpu_count() or 1
    with ResultsFolder(out, plan.config()) as folder:
        before = {episode.get('commit') for episode in folder.episodes} - {commit}
        if before:
            print(
                f'note: {out} also holds episodes of other commits: {sorted(map(str, before))}',
                file=sys.stderr,
            )
        everything = list(plan.jobs())
        waiting = [job for job in everything if job.key not in folder]
        began = time.monotonic()
        try:
            _run(waiting, jobs, commit, folder, done=len(everything) - len(waiting))
        finally:
            cells = summarise(folder.episodes, baseline)
            _write_summary(folder, plan, cells, commit, len(waiting), time.monotonic() - began)
    return cells


def _run(waiting: Sequence[Job], jobs: int, commit: str, folder: ResultsFolder, done: int) -> None:
    successes = sum(bool(episode['success']) for episode in folder.episodes)
    is_live = sys.stderr.isatty()
    with tqdm(
        total=len(waiting) + done,
        initial=done,
        unit='episode',
        mininterval=0.5 if is_live else 30.0,
        dynamic_ncols=is_live,
    ) as bar:
        for record in _results(waiting, jobs):
            folder.add({**record, 'commit': commit})
            successes += bool(record['success'])
            bar.update()
            bar.set_postfix_str(
                f'{record["method"]} seed {record["seed"]} '
                f'{"ok" if record["success"] else record["stage"]}; '
                f'success {successes / len(folder.episodes):.0%}',
                refresh=False,
            )


def _results(waiting: Sequence[Job], jobs: int) -> Iterator[dict[str, Any]]:
    # A job is seconds long: one at a time, so that nothing finished waits for a batch mate.
    parallel = Parallel(
        n_jobs=min(jobs, max(1, len(waiting))),
        return_as='generator_unordered',
        batch_size=1,
        pre_dispatch='2*n_jobs',
    )
    try:
        yield from parallel(delayed(run_job)(job) for job in waiting)
    except TerminatedWorkerError as error:
        raise WorkerDied(
            'a worker process died (most often: out of memory). Finished episodes are saved; run '
            'the same command again to go on, with fewer --jobs if memory is short'
        ) from error


def _write_summary(
    folder: ResultsFolder,
    plan: EvaluationPlan,
    cells: Sequence[CellSummary],
    commit: str,
    new_episodes: int,
    wall_s: float,
) -> None:
    if not cells:
        return
    seeds = [int(episode['seed']) for episode in folder.episodes]
    complete = all(job.key in folder for job in plan.jobs())
    folder.write(
        'summary.json',
        {
            'config': folder.config,
            'checkpoint': plan.checkpoint or 'shipped',
            'commit': commit,
            'commits_of_episodes': sorted({str(e.get('commit')) for e in folder.episodes}),
            'seed_first': min(seeds),
            'seed_last': max(seeds),
            'complete': complete,
            'macs_scope': 'decoder layers only, see safe_pruner_ros/evaluation/macs.py',
            'machine': machine(),
            'last_run': {'episodes': new_episodes, 'wall_s': round(wall_s, 1)},
            'cells': [as_dict(cell) for cell in cells],
        },
    )
    names = 'each object named in turn' if plan.asked_objects != (None,) else "the scene's target"
    folder.write(
        'summary.md',
        f'Task {plan.task}, split {plan.split or "none"}, seeds {min(seeds)} to {max(seeds)}, '
        f'{names}, commit {commit}'
        f'{"" if complete else ", NOT COMPLETE"}.\n\n{markdown_table(cells)}',
    )
