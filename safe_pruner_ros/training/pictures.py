"""Stage 0: labelled pictures for the vision tower.

Most show a scene once, with the arms somewhere in the workspace, also with an object in a hand or
in the receptacle and with its lid at any angle: no two share their objects, so nothing can be
learnt by heart. The others come from expert episodes, as the policy will see them. Each job writes
one shard; finished shards are skipped on a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.sim import robot
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.poses import random_arms
from safe_pruner_ros.sim.receptacles import LID_OPEN_RAD
from safe_pruner_ros.sim.rollouts import run_expert
from safe_pruner_ros.sim.scene import TABLE_TOP_M
from safe_pruner_ros.training.files import whole_folder
from safe_pruner_ros.training.jobs import batches, environment, run_jobs
from safe_pruner_ros.training.labels import FIXTURES, PatchLabels, patch_labels
from safe_pruner_ros.training.recipe import (
    PICTURE_EPISODES,
    PICTURES,
    TrainingRecipe,
    noise_of,
)
from safe_pruner_ros.types import FloatArray

SCENES_PER_SHARD = 40
EPISODES_PER_SHARD = 5
HELD_SHARE = 0.25  # of the hands of posed scenes hold an object
PLACED_SHARE = 0.2  # of posed scenes have an object in the receptacle
LID_SHARE = 0.6  # of posed scenes have the lid, if there is one, at any angle
ARRAYS = ('coverage', 'offset', 'images')
Picture = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.uint8]]


def kind_labels(env: DualArmEnv, view: str, kinds: Sequence[str], grid: int) -> PatchLabels:
    """Labels with one channel for each kind of object there is (absent ones are zero)."""
    labels = patch_labels(env.segmentation(view), len(env.objects), grid)
    n_placed = len(kinds) + len(FIXTURES)
    channels = [kinds.index(item.name) for item in env.objects]
    channels += range(len(kinds), n_placed + 1)
    coverage = np.zeros((grid * grid, n_placed + 1), np.float32)
    offset = np.zeros((grid * grid, n_placed, 2), np.float32)
    coverage[:, channels] = labels.coverage
    offset[:, channels[:-1]] = labels.offset
    return PatchLabels(coverage, offset)


def _take(env: DualArmEnv, kinds: Sequence[str], grid: int) -> list[Picture]:
    """One picture of each view, in the order of ``ARRAYS``."""
    pictures = []
    for view in env.views:
        labels = kind_labels(env, view, kinds, grid)
        coverage = np.ceil(labels.coverage * 255).astype(np.uint8)
        pictures.append((coverage, labels.offset.astype(np.float16), env.render(view)))
    return pictures


def pose_scene(env: DualArmEnv, seed: int) -> None:
    """Reset to ``seed``, then put the arms and perhaps the held objects anywhere."""
    rng = np.random.default_rng((seed, 4))
    env.reset(seed)
    if rng.random() < 0.15:
        return  # the first picture of an episode, as it is
    arms = random_arms(env, rng)
    held = rng.permutation(len(env.objects))[:2]
    for hand, index in enumerate(held):
        if rng.random() < HELD_SHARE:
            arms[8 * hand + 7] = 1 - env.objects[index].radius_m / robot.FINGER_TRAVEL_M
            env.place_arms(arms)
            jitter = rng.uniform(-0.006, 0.006, size=3)
            env.place_object(int(index), env.hand_positions()[hand] + jitter, rng.uniform(-3, 3))
    if rng.random() < PLACED_SHARE:
        _put_inside(env, int(rng.integers(len(env.objects))), rng)
    if rng.random() < LID_SHARE:
        env.place_lid(float(rng.uniform(0.0, LID_OPEN_RAD)))
    env.place_arms(arms)


def _put_inside(env: DualArmEnv, index: int, rng: np.random.Generator) -> None:
    """An object on the floor of the receptacle, or on its way down there."""
    item, there = env.objects[index], env.task.receptacle
    room = max(0.0, there.inner_half_size_m - item.radius_m - 0.004)
    x, y = env.scene.receptacle_xy + rng.uniform(-room, room, size=2)
    height = TABLE_TOP_M + there.floor_m + item.half_height_m + 0.001
    if rng.random() < 0.3:
        height += rng.uniform(0.0, there.carry_m)
    env.place_object(index, np.array([x, y, height]), rng.uniform(-3, 3))


def _scene_shard(
    recipe: TrainingRecipe, task: str, seeds: Sequence[int], grid: int, target: Path
) -> None:
    env, kinds = environment(task), recipe.object_names
    pictures: list[Picture] = []
    for seed in seeds:
        pose_scene(env, seed)
        pictures.extend(_take(env, kinds, grid))
    _save(pictures, target)


def _episode_shard(
    recipe: TrainingRecipe, task: str, seeds: Sequence[int], grid: int, target: Path
) -> None:
    env, kinds = environment(task), recipe.object_names
    pictures: list[Picture] = []

    def take(env: DualArmEnv, _chunk: FloatArray) -> None:
        pictures.extend(_take(env, kinds, grid))

    for seed in seeds:
        run_expert(env, seed, noise_of(seed, recipe), on_policy_step=take)
    _save(pictures, target)


def _save(pictures: Sequence[Picture], target: Path) -> None:
    """One .npy an array."""
    with whole_folder(target) as folder:
        for name, column in zip(ARRAYS, zip(*pictures, strict=True), strict=True):
            np.save(folder / f'{name}.npy', np.stack(column))


def collect_pictures(recipe: TrainingRecipe, grid: int, folder: Path, processes: int) -> None:
    """Shards of images uint8 [N, H, W, 3], coverage uint8 [N, G*G, kinds + 3] and offset float16
    [N, G*G, kinds + 2, 2] in ``folder``/<task>; kinds are the recipe's ``object_names``."""
    for scenes in recipe.tasks:
        episodes = recipe.seeds(PICTURE_EPISODES, scenes.picture_episodes)
        posed = recipe.seeds(PICTURES, scenes.pictures)
        sources = (
            (_episode_shard, batches(episodes, EPISODES_PER_SHARD), 'episode'),
            (_scene_shard, batches(posed, SCENES_PER_SHARD), 'scene'),
        )
        for work, jobs, name in sources:
            targets = [(job, folder / scenes.task / f'{name}_{job[0]:06d}') for job in jobs]
            pending = [
                (recipe, scenes.task, job, grid, target)
                for job, target in targets
                if not target.exists()
            ]
            title = f'{scenes.task}: {name} pictures'
            run_jobs(work, pending, len(pending), processes, title)
