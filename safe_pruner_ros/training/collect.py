"""Stages 0 and 2: pictures for the vision tower, demonstrations for the decoder, DAgger episodes.

Episodes are independent, so they run in worker processes; each job writes one shard, finished
shards are skipped when a run is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from joblib import Parallel, delayed
from rich.progress import track

from safe_pruner_ros.policies.embedded_model import EmbeddedVLA
from safe_pruner_ros.policies.instructions import encode_words
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.rollouts import run_expert
from safe_pruner_ros.training.dataset import save_shard
from safe_pruner_ros.training.demonstrations import Frame, expert_episode, policy_episode
from safe_pruner_ros.training.labels import PatchLabels, patch_labels
from safe_pruner_ros.training.recipe import TrainingRecipe
from safe_pruner_ros.training.vision_pretraining import load_tower
from safe_pruner_ros.types import FloatArray

EPISODES_PER_SHARD = 20
Pictures = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float16]]


@cache
def _environment(task: str) -> DualArmEnv:
    """One environment a worker process, with its renderer."""
    torch.set_num_threads(1)
    return DualArmEnv(task)


def _jobs(seeds: Sequence[int]) -> list[Sequence[int]]:
    return [seeds[i : i + EPISODES_PER_SHARD] for i in range(0, len(seeds), EPISODES_PER_SHARD)]


def _run(jobs: Iterable[object], count: int, processes: int, description: str) -> list[object]:
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    results = Parallel(n_jobs=processes, return_as='generator')(jobs)
    return list(track(results, description=description, total=count))


def noise_of(seed: int, recipe: TrainingRecipe) -> float:
    rng = np.random.default_rng((seed, 3))
    return recipe.noise_rad if rng.random() < recipe.noisy_share else 0.0


# -- stage 0 ----------------------------------------------------------------------------------


def _kind_labels(env: DualArmEnv, view: str, kinds: Sequence[str], grid: int) -> PatchLabels:
    """Labels with one channel for each kind of object there is (absent ones are zero)."""
    labels = patch_labels(env.segmentation(view), len(env.objects), grid)
    channels = [kinds.index(item.name) for item in env.objects] + [len(kinds), len(kinds) + 1]
    coverage = np.zeros((grid * grid, len(kinds) + 2), np.float32)
    offset = np.zeros((grid * grid, len(kinds) + 1, 2), np.float32)
    coverage[:, channels] = labels.coverage
    offset[:, channels[:-1]] = labels.offset
    return PatchLabels(coverage, offset)


def _picture_episode(
    recipe: TrainingRecipe, seed: int, kinds: Sequence[str], grid: int
) -> Pictures:
    env = _environment(recipe.task)
    images, coverage, offset = [], [], []

    def take(env: DualArmEnv, _chunk: FloatArray) -> None:
        for view in env.views:
            labels = _kind_labels(env, view, kinds, grid)
            images.append(env.render(view))
            coverage.append(np.ceil(labels.coverage * 255).astype(np.uint8))
            offset.append(labels.offset.astype(np.float16))

    run_expert(env, seed, noise_of(seed, recipe), on_policy_step=take)
    return np.stack(images), np.stack(coverage), np.stack(offset)


def _first_pictures(
    recipe: TrainingRecipe, seeds: Sequence[int], kinds: Sequence[str], grid: int
) -> Pictures:
    """The first pictures of many scenes: nothing else shows as many different objects."""
    env = _environment(recipe.task)
    parts = []
    for seed in seeds:
        env.reset(seed)
        for view in env.views:
            labels = _kind_labels(env, view, kinds, grid)
            coverage = np.ceil(labels.coverage * 255).astype(np.uint8)
            parts.append((env.render(view), coverage, labels.offset.astype(np.float16)))
    images, coverages, offsets = zip(*parts, strict=True)
    return np.stack(images), np.stack(coverages), np.stack(offsets)


def collect_pictures(
    recipe: TrainingRecipe,
    episode_seeds: Sequence[int],
    scene_seeds: Sequence[int],
    kinds: Sequence[str],
    grid: int,
    folder: Path,
    processes: int,
) -> None:
    """images.npy uint8 [N, H, W, 3], coverage.npy uint8 [N, G*G, kinds + 2], offset.npy float16
    [N, G*G, kinds + 1, 2] in ``folder``: whole episodes of some scenes, then the first pictures
    of many. Hundreds of scenes alone are learnt by heart, shapes and all."""
    if (folder / 'images.npy').exists():
        return
    jobs = [delayed(_picture_episode)(recipe, seed, kinds, grid) for seed in episode_seeds]
    jobs += [delayed(_first_pictures)(recipe, job, kinds, grid) for job in _jobs(scene_seeds)]
    parts = _run(jobs, len(jobs), processes, 'pictures')
    folder.mkdir(parents=True, exist_ok=True)
    # images.npy last: its presence says that the stage is complete.
    for name, column in (('offset', 2), ('coverage', 1), ('images', 0)):
        np.save(folder / f'{name}.npy', np.concatenate([part[column] for part in parts]))  # type: ignore[index]


# -- stage 2 ----------------------------------------------------------------------------------


def encode_frames(
    tower: torch.nn.Module, frames: Sequence[Frame]
) -> list[npt.NDArray[np.float16]]:
    """Vision-tower tokens [V, C] of each frame, all views in order."""
    tokens = []
    with torch.inference_mode():
        for frame in frames:
            pixels = torch.from_numpy(frame.images).permute(0, 3, 1, 2).float() / 255
            tokens.append(tower(pixels).flatten(0, 1).half().numpy())
    return tokens


def _demonstration_shard(
    recipe: TrainingRecipe, seeds: Sequence[int], run: Path, width: int, target: Path
) -> int:
    env, tower = _environment(recipe.task), load_tower(run / 'vision' / 'tower.pt', width)
    frames: list[Frame] = []
    solved = 0
    for seed in seeds:
        frames.extend(expert_episode(env, seed, noise_of(seed, recipe), recipe.label_stride))
        solved += env.success
    facts = {'source': 'expert', 'seeds': [seeds[0], seeds[-1]], 'solved': int(solved)}
    save_shard(target, frames, encode_frames(tower, frames), facts)
    return int(solved)


def collect_demonstrations(
    recipe: TrainingRecipe, seeds: Sequence[int], run: Path, width: int, processes: int
) -> None:
    folder = run / 'demonstrations'
    pending = [
        (job, folder / f'expert_{job[0]:06d}')
        for job in _jobs(seeds)
        if not (folder / f'expert_{job[0]:06d}').exists()
    ]
    jobs = (
        delayed(_demonstration_shard)(recipe, job, run, width, target) for job, target in pending
    )
    _run(jobs, len(pending), processes, 'demonstrations')


class FullPassActor:
    """The network without a pruner, for episodes that the expert corrects."""

    def __init__(self, model: EmbeddedVLA) -> None:
        self._model = model.eval()

    @torch.inference_mode()
    def __call__(self, env: DualArmEnv) -> FloatArray:
        model, config = self._model, self._model.config
        pixels = np.stack([env.render(view) for view in config.views])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        joints = torch.from_numpy(env.state().positions.astype(np.float32))[None]
        words = torch.from_numpy(encode_words(env.instruction, config))[None]
        visual = model.vision(images).reshape(1, config.n_visual, -1)
        hidden = model.decode_full(model.embed(visual, joints, words))
        slots = hidden[:, model.layout.query_positions('action')]
        return model.actions(slots, joints)[0].double().numpy()


def _dagger_shard(
    recipe: TrainingRecipe, seeds: Sequence[int], model: EmbeddedVLA, target: Path
) -> int:
    env, actor = _environment(recipe.task), FullPassActor(model)
    frames: list[Frame] = []
    solved = 0
    horizon = model.config.execution_horizon
    for seed in seeds:
        frames.extend(policy_episode(env, seed, actor, horizon))
        solved += env.success
    facts = {'source': 'policy', 'seeds': [seeds[0], seeds[-1]], 'solved': int(solved)}
    save_shard(target, frames, encode_frames(model.vision, frames), facts)
    return int(solved)


def collect_corrections(
    recipe: TrainingRecipe,
    seeds: Sequence[int],
    model: EmbeddedVLA,
    run: Path,
    processes: int,
) -> float:
    """One DAgger round; returns the policy's success rate in it (training scenes)."""
    folder = run / 'demonstrations'
    pending = [
        (job, folder / f'policy_{job[0]:06d}')
        for job in _jobs(seeds)
        if not (folder / f'policy_{job[0]:06d}').exists()
    ]
    jobs = (delayed(_dagger_shard)(recipe, job, model, target) for job, target in pending)
    solved = _run(jobs, len(pending), processes, 'corrections')
    return sum(solved) / max(1, sum(len(job) for job, _ in pending))  # type: ignore[arg-type]
