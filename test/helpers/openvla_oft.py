"""A tiny OpenVLA-OFT policy on a robot with seven joints, and what it sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.openvla.oft_policy import (
    OpenVLAOFTPolicy,
    backend,
)
from safe_pruner_ros.types import ArmState, CameraImage, Observation

VIEWS = ('head', 'wrist')
JOINTS = ('a', 'b', 'c', 'd', 'e', 'f', 'grip')
CHUNK = 4
HEAD, PROPRIO = 'action_head--150000_checkpoint.pt', 'proprio_projector--150000_checkpoint.pt'
CPU = torch.device('cpu')


def deployment(tiny: SimpleNamespace, **changes: object) -> Deployment:
    base = Deployment(
        VIEWS,
        absolute(JOINTS),
        tiny.statistics_key,
        0.1,
        dtype='float32',
        chunk_size=CHUNK,
        proprioception=JOINTS,
    )
    return replace(base, **changes)


def policy(
    tiny: SimpleNamespace,
    method: str = 'safe_pruner',
    folder: Path | None = None,
    settings: dict[str, object] | None = None,
    **changes: object,
) -> OpenVLAOFTPolicy:
    return backend.build(
        folder or tiny.oft,
        deployment(tiny, **changes),
        method,
        settings or {},
        vision_sizes=tiny.vision_sizes,
    )


def observation(
    instruction: str = 'pick up the red block', seed: int = 0, views: tuple[str, ...] = VIEWS
) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: CameraImage(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), name, 7)
        for name in views
    }
    return Observation(images, ArmState(np.linspace(-0.5, 0.8, 7), JOINTS, 7), instruction, 7)
