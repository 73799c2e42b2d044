"""Closed-loop success of pruning methods on the same scenes. Resumable, on all cores."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from safe_pruner_ros.evaluation.execution import run_jobs
from safe_pruner_ros.evaluation.plan import EvaluationPlan, Job
from safe_pruner_ros.evaluation.plots import write_plots
from safe_pruner_ros.evaluation.recorded_settings import (
    completed_settings,
    differences,
    shared_settings,
)
from safe_pruner_ros.evaluation.results import Record, ResultsError, ResultsFolder, key_of
from safe_pruner_ros.evaluation.rollout import first_observation
from safe_pruner_ros.evaluation.summary import CellSummary, as_dict, summarise
from safe_pruner_ros.evaluation.tables import markdown_summary
from safe_pruner_ros.evaluation.worker import image_size, run_job
from safe_pruner_ros.policies.policy import InstructionError
from safe_pruner_ros.runtime.code_and_machine import code_commit, machine
from safe_pruner_ros.sim.env import DualArmEnv

MACS_SCOPE = (
    'macs_mean: decoder layers only, see safe_pruner_ros/evaluation/macs.py; scoring_macs_mean: '
    'saliency, matching and selection, see safe_pruner_ros/evaluation/flops/policy_scoring.py; '
    'vision tower, projector and action head, the same for every method, in neither'
)


def check_plan(plan: EvaluationPlan, period_s: float = 0.0) -> None:
    """Raise ValueError or FileNotFoundError for whatever would make every episode of a cell fail:
    the checkpoint, a setting, a horizon, a task that the policy has no words for; and for a
    ``period_s`` (of a policy file; 0: none said) that episodes would not keep. Every cell runs one
    policy step on the first scene."""
    if not plan.seeds:
        raise ValueError('no seeds to evaluate')
    first = plan.cells[0]
    policy = plan.policy.build(first.method, first.resolved())
    policies = {first.method: policy}  # weights are in memory once
    for cell in plan.cells:
        if cell.method not in policies:
            policies[cell.method] = policy.with_pruner(cell.method, cell.resolved())
    if period_s and not math.isclose(period_s, policy.spec.period_s):
        raise ValueError(
            f'policy.period_s is {period_s:g} s in the policy file, but episodes run at the '
            f"policy's own {policy.spec.period_s:g} s; leave it at 0 to evaluate"
        )
    height, width = image_size(policy)
    with DualArmEnv(plan.task, height, width) as env:
        observation = first_observation(policy, env, plan.seeds[0], plan.rollout)
        try:
            policy.check_instruction(observation.instruction)
        except InstructionError as error:
            raise ValueError(f'this policy cannot be asked for {plan.task}: {error}') from error
    for cell in plan.cells:
        policy = policies[cell.method]
        policy.update_pruner(**cell.resolved())
        policy.reset()
        try:
            policy.predict(observation)
        except Exception as error:  # whatever a policy may raise: every episode would end so
            raise ValueError(
                f'{cell.variant} at {cell.retention_ratio:g} fails on its first policy step: '
                f'{type(error).__name__}: {error}'
            ) from error


def count_objects(task: str, seed: int) -> int:
    """How many objects the scenes of a task have."""
    with DualArmEnv(task) as env:
        env.reset(seed)
        return len(env.objects)


def evaluate(
    plan: EvaluationPlan,
    out: Path,
    jobs: int = 0,
    baselines: Sequence[str] = ('unpruned',),
    *,
    retry_errors: bool = False,
) -> list[CellSummary]:
    """Run every episode of ``plan`` that ``out`` does not hold yet, then write the summaries.

    ``jobs``: episodes at a time, 0 = one a core. joblib decides where they run, so a caller may
    choose another backend with `joblib.parallel_config`. ``baselines``: variants to take
    differences to. ``retry_errors``: episodes of the plan whose record has an error run again.
    Raises ResultsError for a folder that holds something else, OtherCheckpoint when a worker finds
    other weights than this process did, WorkerDied; episodes finished until then are kept.
    """
    commit = code_commit()
    plan = replace(plan, policy=plan.policy.pinned())
    with ResultsFolder(out, plan.config()) as folder:
        _check_settings(folder.episodes, plan, out)
        if retry_errors:
            folder.remove({key_of(episode) for episode in failed_episodes(folder.episodes, plan)})
        before = {episode.get('commit') for episode in folder.episodes} - {commit}
        if before:
            print(
                f'note: {out} also holds episodes of other commits: {sorted(map(str, before))}',
                file=sys.stderr,
            )
        everything = list(plan.jobs())
        waiting = [job for job in everything if job.key not in folder]
        began, n_before = time.monotonic(), len(folder.episodes)
        try:
            _run(waiting, jobs, commit, folder, done=len(everything) - len(waiting))
        finally:
            cells = summarise(folder.episodes, baselines[0])
            _write_summary(folder, plan, cells, baselines, commit, n_before, began)
    return cells


def failed_episodes(episodes: Iterable[Record], plan: EvaluationPlan) -> list[Record]:
    """Those of the plan that ended in an error, be it the method's or the machine's."""
    asked = {job.key for job in plan.jobs()}
    return [episode for episode in episodes if episode.get('error') and key_of(episode) in asked]


def _check_settings(episodes: Iterable[Record], plan: EvaluationPlan, out: Path) -> None:
    """One name, one set of settings: else two different methods would be counted as one, and
    hours later no summary could be made."""
    ran: dict[tuple[str, float], list[Record]] = {}
    for episode in episodes:
        if 'settings' in episode or 'config' in episode:  # the first versions wrote neither
            _, variant, ratio, _, _ = key_of(episode)
            ran.setdefault((variant, ratio), []).append(episode)
    cells = {(cell.variant, cell.retention_ratio): cell for cell in plan.cells}
    for (variant, ratio), records in ran.items():
        before = shared_settings(records, f'{out}: {variant!r} at {ratio:g}')
        cell = cells.get((variant, ratio))
        if cell is None:
            continue
        now = completed_settings(cell.method, cell.resolved(), causal=cell.causal)
        if before != now:
            old, new = differences(before, now)
            raise ResultsError(
                f'{out} holds episodes of {variant!r} with other settings: they were {old}, now '
                f'{new}; choose another --out, or repeat the old settings'
            )


def _run(waiting: Sequence[Job], jobs: int, commit: str, folder: ResultsFolder, done: int) -> None:
    successes = sum(bool(episode['success']) for episode in folder.episodes)
    commits = {commit}
    is_live = sys.stderr.isatty()
    with tqdm(
        total=len(waiting) + done,
        initial=done,
        unit='episode',
        mininterval=0.5 if is_live else 30.0,
        dynamic_ncols=is_live,
    ) as bar:
        for _, record in run_jobs(run_job, waiting, jobs):
            folder.add({**record, 'config': folder.config_of_episode})
            if record['commit'] not in commits:
                commits.add(record['commit'])
                tqdm.write(_other_code(record['commit'], commit), file=sys.stderr)
            successes += bool(record['success'])
            bar.update()
            bar.set_postfix_str(
                f'{record["variant"]} seed {record["seed"]} '
                f'{"ok" if record["success"] else record["stage"]}; '
                f'success {successes / len(folder.episodes):.0%}',
                refresh=False,
            )


def _other_code(worker: str, here: str) -> str:
    return (
        f'note: a worker runs code of commit {worker}, this command that of {here}; each episode '
        'names the commit that it ran with'
    )


def _write_summary(
    folder: ResultsFolder,
    plan: EvaluationPlan,
    cells: Sequence[CellSummary],
    baselines: Sequence[str],
    commit: str,
    n_before: int,
    began: float,
) -> None:
    if not cells:
        return
    seeds = [int(episode['seed']) for episode in folder.episodes]
    complete = all(job.key in folder for job in plan.jobs())
    wall_s = time.monotonic() - began
    folder.write(
        'summary.json',
        {
            'config': folder.config,
            'checkpoint': plan.policy.checkpoint or 'shipped',
            'commit': commit,
            'commits_of_episodes': sorted({str(e.get('commit')) for e in folder.episodes}),
            'seed_first': min(seeds),
            'seed_last': max(seeds),
            'complete': complete,
            'macs_scope': MACS_SCOPE,
            'machine': machine(),
            'last_run': {
                'episodes': len(folder.episodes) - n_before,
                'wall_s': round(wall_s, 1),
            },
            'cells': [as_dict(cell) for cell in cells],
        },
    )
    names = 'each object named in turn' if plan.asked_objects != (None,) else "the scene's target"
    folder.write(
        'summary.md',
        f'Task {plan.task}, split {plan.split or "none"}, seeds {min(seeds)} to {max(seeds)}, '
        f'{names}, commit {commit}'
        f'{"" if complete else ", NOT COMPLETE"}.\n\n'
        + markdown_summary(folder.episodes, baselines),
    )
    write_plots(folder.folder, cells, folder.episodes)
