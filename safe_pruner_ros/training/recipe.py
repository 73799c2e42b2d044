"""Every number of the shipped policy's training, and which seeds serve which purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import gcd

import numpy as np

from safe_pruner_ros.sim.tasks.catalog import TASKS, get_task

# Scene seeds. No scene of one range is ever used for another purpose.
TRAINING_SEEDS = range(0, 400_000)
VALIDATION_SEEDS = range(500_000, 600_000)  # every choice: checkpoint, tau, alpha, ...
DEMO_SEEDS = range(800_000, 900_000)  # `safe-pruner demo` and `benchmark`
TEST_SEEDS = range(900_000, 1_000_000)  # reported numbers only

# Within the training seeds each --seed has a block, and in it each purpose a part. All tasks use
# the same parts: a seed gives another scene in each, but light, table, the arms' start jitter and
# the noise on the expert's commands are alike.
SEEDS_A_RUN = 40_000
PICTURE_EPISODES = range(0, 5_000)
DEMONSTRATIONS = range(5_000, 10_000)
CORRECTIONS = range(10_000, 12_000)
PICTURES = range(12_000, 40_000)


@dataclass(frozen=True)
class TaskScenes:
    """How many scenes of a task the schedule uses: posed ones and expert episodes for the vision
    tower, expert episodes as demonstrations, policy episodes in each correction round."""

    task: str
    pictures: int
    picture_episodes: int
    demonstrations: int
    corrections: int

    def __post_init__(self) -> None:
        for name, least in (
            ('pictures', 1),
            ('picture_episodes', 0),
            ('demonstrations', 1),
            ('corrections', 0),
        ):
            _at_least(f'{name} of {self.task}', getattr(self, name), least)


@dataclass(frozen=True)
class DepthStage:
    """``steps`` optimizer steps with ``n_layers`` decoder layers."""

    n_layers: int
    steps: int
    matrix_lr: float
    other_lr: float
    warmup_steps: int = 100
    final_multiplier: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (('n_layers', 1), ('steps', 1), ('warmup_steps', 0)):
            _at_least(f'{name} of a stage', getattr(self, name), least)


@dataclass(frozen=True)
class TrainingRecipe:
    """Counts are totals over all processes; lengths in steps unless a unit is named."""

    tasks: tuple[TaskScenes, ...]
    stages: tuple[DepthStage, ...]
    dagger_before_stages: tuple[int, ...]
    seed: int = 0
    vision_lr: float = 6e-3
    vision_window_steps: int = 1600
    vision_window_batch: int = 384
    vision_picture_steps: int = 400
    vision_picture_batch: int = 64
    label_stride: int = 2
    noisy_share: float = 0.5
    noise_rad: float = 0.04
    batch: int = 64
    compile: bool = True
    grounding_weight: float = 1.0
    position_weight: float = 0.5
    ema_decay: float = 0.995
    correction_share: float = 0.35  # of a batch

    def __post_init__(self) -> None:
        last = len(TRAINING_SEEDS) // SEEDS_A_RUN - 1
        if not 0 <= self.seed <= last:
            raise ValueError(f'the training seed must be in 0..{last}, got {self.seed}')
        if not self.tasks or not self.stages:
            raise ValueError(
                f'a recipe needs a task and a stage, got {len(self.tasks)} tasks and '
                f'{len(self.stages)} stages'
            )
        if not 0 <= self.correction_share < 1:
            raise ValueError(
                f'correction_share must be in [0, 1), got {self.correction_share}: the rest of a '
                'batch is demonstrations'
            )
        self._check_rounds()
        self._check_scenes()

    def _check_rounds(self) -> None:
        rounds, stages = self.dagger_before_stages, range(1, len(self.stages))
        if list(rounds) != sorted(set(rounds) & set(stages)):
            raise ValueError(
                f'dagger_before_stages must be ascending stages of {list(stages)}, got '
                f'{list(rounds)}: before stage 0 there is no policy to correct; use () for none'
            )
        depths = [stage.n_layers for stage in self.stages]
        if depths != sorted(depths):
            raise ValueError(f'n_layers may only grow from stage to stage, got {depths}')

    def _check_scenes(self) -> None:
        rounds = len(self.dagger_before_stages)
        for scenes in self.tasks:
            get_task(scenes.task)
            if rounds and not scenes.corrections:
                raise ValueError(
                    f'corrections of {scenes.task} must be at least 1 with dagger_before_stages='
                    f'{self.dagger_before_stages}, got 0; use dagger_before_stages=() for none'
                )
            self.seeds(PICTURES, scenes.pictures)
            self.seeds(PICTURE_EPISODES, scenes.picture_episodes)
            self.seeds(DEMONSTRATIONS, scenes.demonstrations)
            self.seeds(CORRECTIONS, scenes.corrections * rounds)

    @property
    def n_corrected(self) -> int:
        """How many samples of a batch, that of all processes together, are corrections."""
        return round(self.batch * self.correction_share)

    def fitting_processes(self, processes: int) -> int:
        """The largest number up to ``processes`` by which every batch can be divided."""
        common = gcd(self.batch, self.vision_window_batch, self.vision_picture_batch)
        return max(n for n in range(1, max(1, processes) + 1) if common % n == 0)

    def check_processes(self, processes: int) -> None:
        """ValueError where ``processes`` training processes would be given batches of other sizes
        than the recipe's."""
        fitting = self.fitting_processes(processes)
        if fitting != processes:
            batches = (self.batch, self.vision_window_batch, self.vision_picture_batch)
            raise ValueError(
                f'the batches of {batches} samples cannot be divided by {processes} processes; '
                f'use {fitting}'
            )

    @property
    def object_names(self) -> tuple[str, ...]:
        """Every kind of object there is in any of the tasks."""
        names = (name for scenes in self.tasks for name in get_task(scenes.task).object_names)
        return tuple(dict.fromkeys(names))

    def seeds(self, purpose: range, count: int, skip: int = 0) -> list[int]:
        """``count`` scene seeds of ``purpose``, one of the parts above, after the first ``skip``.

        ValueError when the part is too small.
        """
        if skip + count > len(purpose):
            raise ValueError(
                f'{purpose} holds {len(purpose)} scenes, asked for {skip + count}; use fewer'
            )
        block = TRAINING_SEEDS[self.seed * SEEDS_A_RUN : (self.seed + 1) * SEEDS_A_RUN]
        return list(block[purpose.start + skip : purpose.start + skip + count])

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')


def noise_of(seed: int, recipe: TrainingRecipe) -> float:
    """Spread of the noise bursts in the expert episode of ``seed``, rad; 0 is a clean one."""
    rng = np.random.default_rng((seed, 3))
    return recipe.noise_rad if rng.random() < recipe.noisy_share else 0.0


def all_tasks_recipe(seed: int = 0) -> TrainingRecipe:
    """One policy for every task, sized from the measured rates of `pick_place_recipe`'s run.

    Pictures: 3,500 scenes a task, as many in all as one task had, because blocks, cylinders and
    balls are in all of them; more episodes of pack_doll, whose lid and hands go where no posed
    scene has them. Four more kinds and smaller balls: the tower learns a third longer. An episode
    of pack_doll has twice the frames of the others and the samples are drawn by frame, so about as
    many of each give the long task the most. The decoder sees 1.8 times the samples of the one
    task: reaching, grasping and carrying are shared.
    """
    return TrainingRecipe(
        tasks=(
            TaskScenes('pick_place', 3_500, 60, 400, 100),
            TaskScenes('throw_basketball', 3_500, 60, 400, 150),
            TaskScenes('pack_doll', 3_500, 100, 400, 150),
        ),
        stages=(
            DepthStage(4, 2400, matrix_lr=4e-3, other_lr=2e-3, final_multiplier=0.4),
            DepthStage(
                4, 900, matrix_lr=2e-3, other_lr=1e-3, warmup_steps=30, final_multiplier=0.6
            ),
            DepthStage(
                12, 600, matrix_lr=1.5e-3, other_lr=8e-4, warmup_steps=50, final_multiplier=0.02
            ),
        ),
        dagger_before_stages=(1, 2),
        seed=seed,
        vision_window_steps=2200,
        vision_picture_steps=500,
    )


def pick_place_recipe(seed: int = 0) -> TrainingRecipe:
    """The first shipped policy's: one task, 86 minutes on two cores."""
    return TrainingRecipe(
        tasks=(TaskScenes('pick_place', 10_000, 100, 700, 200),),
        stages=(
            DepthStage(4, 1300, matrix_lr=4e-3, other_lr=2e-3, final_multiplier=0.4),
            DepthStage(
                4, 500, matrix_lr=2e-3, other_lr=1e-3, warmup_steps=30, final_multiplier=0.6
            ),
            DepthStage(
                12, 360, matrix_lr=1.5e-3, other_lr=8e-4, warmup_steps=50, final_multiplier=0.02
            ),
        ),
        dagger_before_stages=(1, 2),
        seed=seed,
    )


def smoke_recipe(seed: int = 0) -> TrainingRecipe:
    """The schedule for every task, minutes long: it exercises all of it and learns nothing."""
    return TrainingRecipe(
        tasks=tuple(TaskScenes(task, 160, 5, 4, 2) for task in TASKS),
        stages=(DepthStage(2, 3, 2e-3, 1e-3, 1), DepthStage(4, 4, 2e-3, 1e-3, 1)),
        dagger_before_stages=(1,),
        seed=seed,
        vision_window_steps=2,
        vision_window_batch=8,
        vision_picture_steps=2,
        vision_picture_batch=4,
        batch=8,
        compile=False,
    )


RECIPES: dict[str, Callable[[int], TrainingRecipe]] = {
    'all_tasks': all_tasks_recipe,
    'pick_place': pick_place_recipe,
    'smoke': smoke_recipe,
}
