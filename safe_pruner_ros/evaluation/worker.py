"""Runs one episode in the process that joblib chose. Robot and policies stay warm for the next."""

from __future__ import annotations

import atexit
import hashlib
import json
import threading
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from safe_pruner_ros.evaluation.flops.policy_scoring import scoring_counter
from safe_pruner_ros.evaluation.macs import macs_counter
from safe_pruner_ros.evaluation.plan import Job
from safe_pruner_ros.evaluation.rollout import run_episode
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.code_and_machine import code_commit, cpu_model
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.expert import ScriptedExpert

SEED_STRIDE = 10**9  # above every scene seed


class _Loaded(NamedTuple):
    """Policies by method, all on the same weights, and whose weights these are."""

    key: str
    policies: dict[str, Policy]


class _Warm(threading.local):
    """A thread's own robots and policies: a GL context answers only to the thread that made it,
    and some backends run several episodes in threads of one process."""

    def __init__(self) -> None:
        self.environments: dict[tuple[str, int, int], tuple[DualArmEnv, ScriptedExpert]] = {}
        self.loaded: dict[str, _Loaded] = {}  # by place


_warm = _Warm()
_open: list[DualArmEnv] = []  # of all threads, to close them when they have ended


def run_job(job: Job) -> dict[str, Any]:
    """The episode's record, ready for JSON; the same whichever process runs it and after what.

    Its ``commit`` and ``cpu`` are those of the process here, which may be others than those of
    the one that asks. Raises OtherCheckpoint when the weights here are not those of the job.
    """
    commit = code_commit()
    torch.set_num_threads(1)  # all cores are taken by episodes; more threads only fight
    settings = episode_settings(job)
    policy = _policy(job)
    policy.update_pruner(**settings)  # a fresh pruner: nothing is left of the episode before
    env, expert = warm_environment(job.task, *image_size(policy))
    result = run_episode(
        policy, env, job.seed, job.asked_object, job.rollout,
        macs=macs_counter(policy, job.cell.method, settings),
        subtask=lambda: expert.subtask(env.target_index),
        scoring_macs=scoring_counter(policy, job.cell.method, settings),
    )  # fmt: skip
    return {
        'task': job.task,
        'method': job.cell.method,
        'variant': job.cell.variant,
        'retention_ratio': job.cell.retention_ratio,
        **asdict(result),
        'settings': job.cell.resolved(),
        'settings_hash': settings_hash(job),
        'commit': commit,
        'cpu': cpu_model(),
    }


def episode_settings(job: Job) -> dict[str, Any]:
    """All settings of the pruner for this episode."""
    settings = job.cell.resolved()
    if 'seed' in settings:
        # A random method goes on drawing where the last episode stopped; here an episode must not
        # depend on the ones before it. So its draws belong to the scene.
        settings['seed'] = int(settings['seed']) * SEED_STRIDE + job.seed
    return settings


def settings_hash(job: Job) -> str:
    """Eight hex digits that change with whatever is set for this cell."""
    text = json.dumps([job.cell.resolved(), asdict(job.rollout)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _policy(job: Job) -> Policy:
    """One policy a method, whatever its settings, all of a source on the same weights: those of a
    big policy fit into memory once. Other weights may lie at their place by now."""
    source, method, settings = job.policy, job.cell.method, job.cell.settings
    place = replace(source, identity={}).key
    loaded = _warm.loaded.get(place)
    if loaded is None or loaded.key != source.key:
        del loaded  # two big policies may not fit into memory
        with source.unchanged():
            _warm.loaded.pop(place, None)
            loaded = _Loaded(source.key, {method: source.build(method, settings)})
        _warm.loaded[place] = loaded
    policies = loaded.policies
    if method not in policies:
        policies[method] = next(iter(policies.values())).with_pruner(method, settings)
    return policies[method]


def image_size(policy: Policy) -> tuple[int, int]:
    """(height, width) in px of pictures that are large enough for every view."""
    views = policy.spec.views
    return max(view.height for view in views), max(view.width for view in views)


def warm_environment(task: str, height: int, width: int) -> tuple[DualArmEnv, ScriptedExpert]:
    """This thread's simulated robot of that task and picture size, which stays open, and who
    knows what to do there."""
    name = (task, height, width)
    if name not in _warm.environments:
        env = DualArmEnv(task, height, width)
        _open.append(env)
        _warm.environments[name] = (env, ScriptedExpert(env))
    return _warm.environments[name]


def forget_warm() -> None:
    """Free this thread's GL contexts, robots and policies; jobs build them anew. Those of a thread
    that lives are nobody else's to free."""
    for env, _ in _warm.environments.values():
        _open.remove(env)
        env.close()
    _warm.environments.clear()
    _warm.loaded.clear()


@atexit.register
def _close_all() -> None:
    while _open:
        _open.pop().close()
