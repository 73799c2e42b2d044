"""Runs one episode in the process that joblib chose. Robot and policies stay warm for the next."""

from __future__ import annotations

import atexit
import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict
from typing import Any

import torch

from safe_pruner_ros.core.catalog import accepted_settings
from safe_pruner_ros.evaluation.macs import MacsOfStep, macs_counter
from safe_pruner_ros.evaluation.plan import Job
from safe_pruner_ros.evaluation.rollout import run_episode
from safe_pruner_ros.policies.catalog import build_policy
from safe_pruner_ros.policies.policy import Policy, PolicySpec
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.expert import ScriptedExpert

MAX_WARM_POLICIES = 32  # a copy of the weights each
SEED_STRIDE = 10**9  # above every scene seed

_environments: dict[tuple[str, int, int], tuple[DualArmEnv, ScriptedExpert]] = {}
_policies: OrderedDict[str, tuple[Policy, MacsOfStep | None]] = OrderedDict()


def run_job(job: Job) -> dict[str, Any]:
    """The episode's record, ready for JSON; the same whichever process runs it and after what."""
    torch.set_num_threads(1)  # all cores are taken by episodes; more threads only fight
    policy, macs = _policy(job)
    env, expert = _environment(job.task, policy.spec)
    result = run_episode(
        policy, env, job.seed, job.asked_object, job.rollout, macs,
        subtask=lambda: expert.subtask(env.target_index),
    )  # fmt: skip
    return {
        'task': job.task,
        'method': job.cell.method,
        'retention_ratio': job.cell.retention_ratio,
        'settings_hash': settings_hash(job),
        **asdict(result),
    }


def settings_hash(job: Job) -> str:
    """Eight hex digits that change with whatever is set for this cell."""
    text = json.dumps([job.cell.settings, asdict(job.rollout)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _policy(job: Job) -> tuple[Policy, MacsOfStep | None]:
    settings = dict(job.cell.settings)
    if 'seed' in accepted_settings(job.cell.method):
        # A random method goes on drawing where the last episode stopped; here an episode must not
        # depend on the ones before it. So its draws belong to the scene.
        settings['seed'] = int(settings.get('seed', 0)) * SEED_STRIDE + job.seed
        return _build(job, settings)
    name = repr((job.policy, job.checkpoint, job.device, job.cell))
    if name not in _policies:
        _policies[name] = _build(job, settings)
        if len(_policies) > MAX_WARM_POLICIES:
            _policies.popitem(last=False)
    _policies.move_to_end(name)
    return _policies[name]


def _build(job: Job, settings: dict[str, Any]) -> tuple[Policy, MacsOfStep | None]:
    policy = build_policy(job.policy, job.cell.method, settings, job.checkpoint, job.device)
    return policy, macs_counter(policy, job.cell.method, settings)


def _environment(task: str, spec: PolicySpec) -> tuple[DualArmEnv, ScriptedExpert]:
    height = max(view.height for view in spec.views)
    width = max(view.width for view in spec.views)
    name = (task, height, width)
    if name not in _environments:
        env = DualArmEnv(task, height, width)
        _environments[name] = (env, ScriptedExpert(env))
    return _environments[name]


@atexit.register
def forget_warm() -> None:
    """Free GL contexts and policies; the next job builds them anew."""
    for env, _ in _environments.values():
        env.close()
    _environments.clear()
    _policies.clear()
