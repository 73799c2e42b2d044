"""The smallest pi0.5 that is one."""

from __future__ import annotations

from safe_pruner_ros.policies.pi05.config import GemmaSize, Pi05Config, VisionSize

TINY_PI05 = Pi05Config(
    prefix=GemmaSize(16, 4, 32, n_heads=2, head_dim=8),
    expert=GemmaSize(8, 4, 16, n_heads=2, head_dim=8),
    vision=VisionSize(16, 1, 24, n_heads=2, image_size=28),
    vocabulary_size=128,
    action_horizon=3,
    n_denoising_steps=2,
)
