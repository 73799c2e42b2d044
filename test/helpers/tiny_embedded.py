"""An embedded policy of tiny size with random weights, and what it looks at."""

from __future__ import annotations

import numpy as np
import torch

from safe_pruner_ros.policies.embedded import EmbeddedPolicy
from safe_pruner_ros.policies.embedded_model import EmbeddedConfig, EmbeddedVLA, TrainedTask
from safe_pruner_ros.types import ArmState, CameraImage, Observation

VIEWS = ('head', 'left_wrist', 'right_wrist')
JOINTS = ('a', 'b', 'grip')
CONFIG = EmbeddedConfig(
    VIEWS,
    JOINTS,
    ('grip',),
    ('<pad>', 'put', 'the', 'red', 'blue', 'block', 'in', 'tray'),
    width=32,
    mlp_width=48,
    n_layers=5,
    n_heads=4,
    vision_width=16,
)

TASKS = (
    TrainedTask('lifting', ('put the {object} in the tray',), ('red block', 'blue block')),
    TrainedTask('sorting', ('the red {object}',), ('block',)),
)


def model() -> EmbeddedVLA:
    torch.manual_seed(0)
    return EmbeddedVLA(CONFIG).eval()


def observation(
    instruction: str = 'put the red block in the tray', seed: int = 0, size: int = 256
) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: CameraImage(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), name, 7)
        for name in VIEWS
    }
    return Observation(images, ArmState(np.array([0.1, -0.2, 0.3]), JOINTS, 7), instruction, 7)


def policy(method: str = 'safe_pruner', **settings: object) -> EmbeddedPolicy:
    return EmbeddedPolicy(model(), method, settings)
