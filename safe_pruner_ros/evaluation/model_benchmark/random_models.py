"""The big policies with random weights: the right shapes, no checkpoint, no meaning.

Sizes: ``full`` as published; ``small`` has the full model's depth, token counts and shares of
vision and decoder at about 100 M parameters, so that a CPU shows honest ratios; ``tiny`` is for
tests. Networks are laid out on the meta device and filled in place: memory holds them once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from safe_pruner_ros.evaluation.flops import shapes
from safe_pruner_ros.evaluation.model_benchmark.random_openvla import (
    random_openvla,
    random_openvla_oft,
)
from safe_pruner_ros.evaluation.model_benchmark.random_pi05 import random_pi05
from safe_pruner_ros.evaluation.model_benchmark.random_weights import RandomModel, count_parameters
from safe_pruner_ros.policies.embedded import EmbeddedPolicy
from safe_pruner_ros.policies.embedded_model import PAD_WORD, EmbeddedConfig, EmbeddedVLA
from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.types import ArmState, CameraImage, Observation

__all__ = ['SIZES', 'RandomModel', 'build_random_model', 'random_observations']

SIZES = ('full', 'small', 'tiny')
INSTRUCTION = 'pick up the red block'


def build_random_model(
    name: str, size: str, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> RandomModel:
    """Raises ValueError for an unknown model or size."""
    if name not in _BUILDERS or size not in SIZES:
        raise ValueError(
            f'no model {name!r} of size {size!r}; models {list(_BUILDERS)}, sizes {list(SIZES)}'
        )
    return _BUILDERS[name](size, device, dtype, seed)


def random_observations(policy: Policy, count: int, seed: int = 0) -> list[Observation]:
    """A scene of coarse coloured patches that changes a little from one to the next; 256 px, as
    LIBERO renders."""
    rng = np.random.default_rng(seed)
    scenes = {
        v.name: rng.integers(0, 256, (16, 16, 3)).astype(np.float64) for v in policy.spec.views
    }
    observations = []
    for number in range(count):
        images = {}
        for name, scene in scenes.items():
            scene += rng.normal(0, 4, scene.shape)
            rgb = np.kron(scene.clip(0, 255), np.ones((16, 16, 1))).astype(np.uint8)
            images[name] = CameraImage(rgb, name, number)
        names = policy.spec.joint_names
        state = ArmState(rng.uniform(-0.5, 0.5, len(names)), names, number)
        observations.append(Observation(images, state, INSTRUCTION, number))
    return observations


def _embedded(size: str, device: torch.device, dtype: torch.dtype, seed: int) -> RandomModel:
    """One size only: the shipped one."""
    names = tuple(f'joint_{number}' for number in range(16))
    words = (PAD_WORD, *INSTRUCTION.split())
    config = EmbeddedConfig(('head', 'left_wrist', 'right_wrist'), names, names[-2:], words)
    torch.manual_seed(seed)
    model = EmbeddedVLA(config).to(dtype)

    def make(method: str, settings: Mapping[str, Any]) -> Policy:
        return EmbeddedPolicy(model, method, settings, str(device))

    counted = shapes.embedded(vocabulary=len(words), n_words=len(words) - 1)
    return RandomModel(counted, count_parameters(model), make)


_BUILDERS: dict[str, Callable[..., RandomModel]] = {
    'openvla': random_openvla,
    'openvla_oft': random_openvla_oft,
    'pi05': random_pi05,
    'embedded': _embedded,
}
