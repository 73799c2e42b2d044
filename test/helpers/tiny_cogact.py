"""A policy on the tiny CogACT checkpoint of the tests, and what it may be shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.cogact.diffusion import DiffusionSettings
from safe_pruner_ros.policies.cogact.policy import CogACTPolicy, backend
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.types import ArmState, CameraImage, Observation

JOINTS = ('a', 'b', 'c', 'd', 'e', 'f', 'grip')
PERIOD_NS = 200_000_000
QUICK = DiffusionSettings(n_steps=2, ensemble_horizon=1)


def policy(
    tiny: SimpleNamespace,
    method: str = 'unpruned',
    settings: dict[str, object] | None = None,
    checkpoint: Path | None = None,
    **changes: object,
) -> CogACTPolicy:
    deployment = Deployment(
        ('head',),
        absolute(JOINTS),
        tiny.statistics_key,
        PERIOD_NS / 1e9,
        execution_horizon=1,  # so that chunks may be averaged
        dtype='float32',
        diffusion=QUICK,
    )
    deployment = replace(deployment, **changes)
    return backend.build(checkpoint or tiny.run, deployment, method, settings or {}, **tiny.sizes)


def observation(
    seed: int = 0, instruction: str = 'pick up the red block', stamp_ns: int = 0
) -> Observation:
    rgb = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    images = {'head': CameraImage(rgb, 'head', stamp_ns)}
    return Observation(images, ArmState(np.zeros(7), JOINTS, stamp_ns), instruction, stamp_ns)
