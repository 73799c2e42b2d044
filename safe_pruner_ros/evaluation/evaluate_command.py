"""`safe-pruner evaluate`: command line -> checked plans -> results folders."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.baselines import check_baseline, read_baseline
from safe_pruner_ros.evaluation.evaluate import (
    check_plan,
    count_objects,
    evaluate,
    failed_episodes,
)
from safe_pruner_ros.evaluation.execution import WorkerDied, check_backend, on_backend
from safe_pruner_ros.evaluation.methods import (
    parse_ratios,
    parse_settings,
    split_methods,
)
from safe_pruner_ros.evaluation.named_plans import NamedRun, load_named_plan
from safe_pruner_ros.evaluation.plan import EvaluationPlan, build_cells, choose_seeds
from safe_pruner_ros.evaluation.policy_source import PolicySource
from safe_pruner_ros.evaluation.results import key_of, read_episodes
from safe_pruner_ros.evaluation.rollout import RolloutSettings
from safe_pruner_ros.policies.catalog import CAUSAL
from safe_pruner_ros.runtime.config import PolicyConfig
from safe_pruner_ros.sim.tasks.catalog import get_task

__all__ = ['WorkerDied', 'main']

FAILED = 1  # exit code: it ran, and something failed
DEFAULT_METHODS = ('unpruned', 'diverse_forecast', 'safe_pruner', 'random', 'fastv')

Configured = Mapping[str, Mapping[str, Any]]


def main(
    arguments: argparse.Namespace,
    policy: PolicyConfig,
    configured: Configured,
    splits: Mapping[str, range],
) -> int:
    """Check everything, then run; ``configured`` as in `build_cells`, ``splits`` by name.

    0 done, 1 when an episode ended in an error. Raises ValueError or FileNotFoundError before a
    results folder is touched, OtherCheckpoint when the weights change during the runs; WorkerDied
    when all runs of the plan have had their turn.
    """
    runs = _runs(arguments, splits)
    plans = {arguments.out / run.name: _plan(run, arguments, policy, configured) for run in runs}
    baselines = [_baseline(text, list(plans.values())) for text in arguments.baseline]
    _check_folders(plans)
    for plan in plans.values():
        check_plan(plan, policy.period_s)
    check_backend(arguments.backend)
    if arguments.dry_run:
        print(_overview(plans))
        return 0
    # One command, one checkpoint: all runs are held to what is there now.
    checkpoint = PolicySource.of(policy).pinned()
    plans = {out: replace(plan, policy=checkpoint) for out, plan in plans.items()}
    failures, deaths = [], []
    with on_backend(arguments.backend):
        for out, plan in plans.items():
            try:
                evaluate(plan, out, arguments.jobs, baselines, retry_errors=arguments.retry_errors)
            except WorkerDied as death:
                deaths.append(death)
            if (out / 'summary.md').is_file():
                print((out / 'summary.md').read_text())
            failures += _failures(out, plan)
    if failures:
        print('\n'.join(failures), file=sys.stderr)
    if deaths:
        raise WorkerDied('\n'.join(map(str, deaths)))
    return FAILED if failures else 0


def _check_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise ValueError(f'--out is a folder for results, but {path} is a file')


def _failures(out: Path, plan: EvaluationPlan) -> list[str]:
    """A line that says how many episodes of the plan ended in an error, and in which variants."""
    failed = failed_episodes(read_episodes(out / 'episodes.jsonl'), plan)
    if not failed:
        return []
    counts = Counter(f'{variant} at {ratio:g}' for _, variant, ratio, _, _ in map(key_of, failed))
    where = ', '.join(f'{count} of {name}' for name, count in counts.items())
    return [
        f'{out}: {len(failed)} episodes ended in an error ({where}; the first: '
        f'{failed[0]["error"]}). They count as failures; when the reason is gone, repeat the '
        'command with --retry-errors'
    ]


def _runs(arguments: argparse.Namespace, splits: Mapping[str, range]) -> list[NamedRun]:
    if not arguments.plan:
        if arguments.episodes:
            raise ValueError('--episodes shortens a --plan; without one, say --seeds')
        seeds, split = choose_seeds(arguments.seeds, arguments.split, splits)
        methods = split_methods(arguments.methods or DEFAULT_METHODS)
        ratios = parse_ratios(arguments.retention or ['0.3'])
        task = arguments.task or 'pick_place'
        return [NamedRun('', task, tuple(methods), tuple(ratios), split, seeds)]
    given = [name for name in ('methods', 'retention', 'seeds') if getattr(arguments, name)]
    if given or arguments.each_object:
        more = ['each_object'] if arguments.each_object else []
        names = ', '.join(f'--{name.replace("_", "-")}' for name in given + more)
        raise ValueError(f'--plan says what runs; leave out {names}')
    runs = load_named_plan(arguments.plan, splits, arguments.episodes, arguments.split)
    if arguments.task:
        runs = [run for run in runs if run.task == get_task(arguments.task).name]
        if not runs:
            raise ValueError(f'plan {arguments.plan!r} has no run of task {arguments.task!r}')
    return runs


def _plan(
    run: NamedRun, arguments: argparse.Namespace, policy: PolicyConfig, configured: Configured
) -> EvaluationPlan:
    get_task(run.task)  # an unknown one is refused before anything is built
    settings = parse_settings(arguments.settings)
    asked: tuple[int | None, ...] = (None,)
    if arguments.each_object:
        asked = tuple(range(count_objects(run.task, run.seeds[0])))
    for method, values in run.configured.items():
        configured = {**configured, method: {**configured.get(method, {}), **values}}
    return EvaluationPlan(
        task=run.task,
        cells=build_cells(
            run.methods, run.retention, settings, configured, causal=policy.name in CAUSAL
        ),
        seeds=run.seeds,
        split=run.split,
        asked_objects=asked,
        policy=PolicySource.of(policy),
        rollout=RolloutSettings(
            arguments.max_policy_steps,
            arguments.execution_horizon or policy.execution_horizon,
            arguments.latency_ticks,
        ),
        settings=settings,
        configured=configured,
    )


def _baseline(text: str, plans: Sequence[EvaluationPlan]) -> str:
    """Its full name (`Baseline`); ValueError when no plan runs it."""
    baseline = read_baseline(text)
    if text != 'unpruned':  # the default, which stands for the first cell where it does not run
        ran = [(c.method, c.variant, c.retention_ratio) for plan in plans for c in plan.cells]
        check_baseline(baseline, ran, '--methods')
    return str(baseline)


def _overview(plans: Mapping[Path, EvaluationPlan]) -> str:
    lines, total = [], 0
    for out, plan in plans.items():
        scenes = len(plan.seeds) * len(plan.asked_objects)
        total += len(plan.cells) * scenes
        lines.append(
            f'{out}: {plan.task}, {len(plan.cells)} cells x {scenes} episodes, split '
            f'{plan.split}, seeds {plan.seeds[0]} to {plan.seeds[-1]}'
        )
        lines += [f'  {cell.variant} at {cell.retention_ratio:g}' for cell in plan.cells]
    time = 'how long they take depends on this machine: try some with --episodes or --seeds'
    return '\n'.join([*lines, f'{total} episodes; {time}'])
