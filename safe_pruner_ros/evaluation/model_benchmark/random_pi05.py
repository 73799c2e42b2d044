"""pi0.5 with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from safe_pruner_ros.evaluation.flops import shapes
from safe_pruner_ros.evaluation.flops.work import Stack
from safe_pruner_ros.evaluation.model_benchmark.random_weights import (
    JOINTS,
    RandomModel,
    count_parameters,
    materialise,
)
from safe_pruner_ros.policies.action_layout import absolute
from safe_pruner_ros.policies.action_statistics import Range
from safe_pruner_ros.policies.deployment import Deployment
from safe_pruner_ros.policies.pi05.config import GemmaSize, Pi05Config, VisionSize
from safe_pruner_ros.policies.pi05.model import Pi05
from safe_pruner_ros.policies.pi05.policy import Pi05Policy
from safe_pruner_ros.policies.pi05.statistics import Statistics
from safe_pruner_ros.policies.policy import Policy

_PI05 = {
    'full': Pi05Config(action_horizon=10),
    'small': Pi05Config(
        prefix=GemmaSize(384, 18, 3072, head_dim=48),
        expert=GemmaSize(192, 18, 768, head_dim=48),
        vision=VisionSize(192, 27, 720, n_heads=3),
        vocabulary_size=8192,
        action_horizon=10,
    ),
    'tiny': Pi05Config(
        prefix=GemmaSize(32, 6, 64, n_heads=4, head_dim=8),
        expert=GemmaSize(16, 6, 32, n_heads=4, head_dim=8),
        vision=VisionSize(24, 2, 48, n_heads=2, image_size=56),
        vocabulary_size=128,
        action_dim=8,
        action_horizon=3,
        n_denoising_steps=3,
    ),
}


def _gemma_stack(size: GemmaSize) -> Stack:
    return Stack(
        size.depth, size.width, size.mlp_width, size.n_heads, size.n_kv_heads, size.head_dim
    )


def random_pi05(size: str, device: torch.device, dtype: torch.dtype, seed: int) -> RandomModel:
    config, n_text = _PI05[size], 20
    with torch.device('meta'):
        model = Pi05(config)
    materialise(model, device, dtype, seed)
    model.rebuild_constants(device)
    deployment = Deployment(
        ('head', 'wrist'), absolute(JOINTS), '', 0.05, execution_horizon=1, prompt='text'
    )
    unit = Range(-np.ones(len(JOINTS)), np.ones(len(JOINTS)), np.ones(len(JOINTS), bool))
    prompt = SimpleNamespace(encode=lambda _, __: np.arange(2, 2 + n_text))

    def make(method: str, settings: Mapping[str, Any]) -> Policy:
        return Pi05Policy(
            model,
            prompt,  # type: ignore[arg-type]
            Statistics(unit, unit),
            deployment,
            method,
            settings,
        )

    vision = config.vision
    tower = Stack(
        vision.depth,
        vision.width,
        vision.mlp_width,
        vision.n_heads,
        vision.n_heads,
        vision.width // vision.n_heads,
        gated=False,
    )
    counted = shapes.pi05(
        n_text,
        _gemma_stack(config.prefix),
        _gemma_stack(config.expert),
        tower,
        vision.grid**2,
        action_dim=config.action_dim,
        horizon=config.action_horizon,
        n_steps=config.n_denoising_steps,
        vocabulary=config.vocabulary_size,
    )
    return RandomModel(counted, count_parameters(model), make)
