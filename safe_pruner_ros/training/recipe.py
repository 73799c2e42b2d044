"""Every number of the shipped policy's training, and which seeds serve which purpose."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

# Scene seeds. No scene of one range is ever used for another purpose.
TRAINING_SEEDS = range(0, 400_000)
VALIDATION_SEEDS = range(500_000, 600_000)  # every choice: checkpoint, tau, alpha, ...
DEMO_SEEDS = range(800_000, 900_000)  # `safe-pruner demo` and `benchmark`
TEST_SEEDS = range(900_000, 1_000_000)  # reported numbers only


@dataclass(frozen=True)
class DepthStage:
    """``steps`` optimizer steps with ``n_layers`` decoder layers."""

    n_layers: int
    steps: int
    matrix_lr: float
    other_lr: float
    warmup_steps: int = 100
    final_multiplier: float = 1.0


@dataclass(frozen=True)
class TrainingRecipe:
    """Counts are totals over all processes; lengths in steps unless a unit is named."""

    task: str = 'pick_place'
    seed: int = 0
    vision_episodes: int = 100
    vision_scenes: int = 10_000
    vision_lr: float = 6e-3
    vision_window_steps: int = 1600
    vision_window_batch: int = 384
    vision_picture_steps: int = 400
    vision_picture_batch: int = 64
    demonstration_episodes: int = 700
    label_stride: int = 2
    noisy_share: float = 0.5
    noise_rad: float = 0.04
    batch: int = 64
    compile: bool = True
    stages: tuple[DepthStage, ...] = (
        DepthStage(n_layers=4, steps=1300, matrix_lr=4e-3, other_lr=2e-3, final_multiplier=0.4),
        DepthStage(4, 500, matrix_lr=2e-3, other_lr=1e-3, warmup_steps=30, final_multiplier=0.6),
        DepthStage(
            12, 360, matrix_lr=1.5e-3, other_lr=8e-4, warmup_steps=50, final_multiplier=0.02
        ),
    )
    grounding_weight: float = 1.0
    position_weight: float = 0.5
    ema_decay: float = 0.995
    dagger_episodes: int = 200  # a round
    correction_share: float = 0.35  # of a batch
    dagger_before_stages: tuple[int, ...] = (1, 2)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def noise_of(seed: int, recipe: TrainingRecipe) -> float:
    """Spread of the noise bursts in the expert episode of ``seed``, rad; 0 is a clean one."""
    rng = np.random.default_rng((seed, 3))
    return recipe.noise_rad if rng.random() < recipe.noisy_share else 0.0


def smoke_recipe() -> TrainingRecipe:
    """The same schedule, minutes long: it exercises every stage and learns next to nothing."""
    return TrainingRecipe(
        vision_episodes=5,
        vision_scenes=200,
        vision_window_steps=2,
        vision_window_batch=8,
        vision_picture_steps=2,
        vision_picture_batch=4,
        demonstration_episodes=4,
        batch=8,
        stages=(DepthStage(2, 3, 2e-3, 1e-3, 1), DepthStage(4, 4, 2e-3, 1e-3, 1)),
        dagger_episodes=2,
        dagger_before_stages=(1,),
        compile=False,
    )
