"""Stage 2: demonstrations for the decoder, and DAgger episodes.

Episodes are independent, so they run in worker processes; each job writes one shard, finished
shards are skipped when a run is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from safe_pruner_ros.policies.embedded_model import EmbeddedVLA
from safe_pruner_ros.policies.instructions import encode_words
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.training.dataset import save_shard
from safe_pruner_ros.training.demonstrations import Frame, expert_episode, policy_episode
from safe_pruner_ros.training.jobs import batches, environment, run_jobs
from safe_pruner_ros.training.recipe import (
    CORRECTIONS,
    DEMONSTRATIONS,
    TrainingRecipe,
    noise_of,
)
from safe_pruner_ros.training.vision_pretraining import load_tower
from safe_pruner_ros.types import FloatArray

EPISODES_PER_SHARD = 20


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


def _encoded(
    tower: torch.nn.Module, episode: Sequence[Frame]
) -> tuple[list[Frame], list[npt.NDArray[np.float16]]]:
    """Frames and tokens of one episode. Its images end here: those of a whole shard of a long task
    are more than a gigabyte a worker process."""
    return [frame.without_images() for frame in episode], encode_frames(tower, episode)


def _demonstration_shard(
    recipe: TrainingRecipe, task: str, seeds: Sequence[int], run: Path, width: int, target: Path
) -> int:
    env, tower = environment(task), load_tower(run / 'vision' / 'tower.pt', width)
    frames: list[Frame] = []
    tokens: list[npt.NDArray[np.float16]] = []
    solved = 0
    for seed in seeds:
        noise_rad = noise_of(seed, recipe)
        own = _encoded(tower, expert_episode(env, seed, noise_rad, recipe.label_stride))
        solved += bool(own[0])
        frames += own[0]
        tokens += own[1]
    facts = {'task': task, 'source': 'expert', 'seeds': [seeds[0], seeds[-1]], 'solved': solved}
    save_shard(target, frames, tokens, facts)
    return solved


def collect_demonstrations(
    recipe: TrainingRecipe, run: Path, width: int, processes: int
) -> dict[str, float]:
    """Expert episodes of each task as shards in ``run``/demonstrations; answers which share of
    them was solved, and so kept."""
    rates = {}
    for scenes in recipe.tasks:
        seeds = recipe.seeds(DEMONSTRATIONS, scenes.demonstrations)
        pending = [
            (recipe, scenes.task, job, run, width, target)
            for job, target in _shards(run, scenes.task, 'expert', seeds)
            if not target.exists()
        ]
        title = f'{scenes.task}: demonstrations'
        run_jobs(_demonstration_shard, pending, len(pending), processes, title)
        rates[scenes.task] = _solved(run, scenes.task, 'expert', seeds) / len(seeds)
    return rates


def _shards(
    run: Path, task: str, source: str, seeds: Sequence[int]
) -> list[tuple[Sequence[int], Path]]:
    """The seeds and the folder of each shard, whether it is there or not."""
    folder = run / 'demonstrations'
    jobs = batches(seeds, EPISODES_PER_SHARD)
    return [(job, folder / f'{source}_{task}_{job[0]:06d}') for job in jobs]


def _solved(run: Path, task: str, source: str, seeds: Sequence[int]) -> int:
    """How many episodes were solved, those before a kill included."""
    facts = (shard / 'facts.json' for _, shard in _shards(run, task, source, seeds))
    return sum(json.loads(file.read_text())['solved'] for file in facts)


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


def _dagger_shard(task: str, seeds: Sequence[int], model: EmbeddedVLA, target: Path) -> int:
    env, actor = environment(task), FullPassActor(model)
    frames: list[Frame] = []
    tokens: list[npt.NDArray[np.float16]] = []
    solved = 0
    horizon = model.config.execution_horizon
    for seed in seeds:
        own = _encoded(model.vision, policy_episode(env, seed, actor, horizon))
        solved += env.success
        frames += own[0]
        tokens += own[1]
    facts = {'task': task, 'source': 'policy', 'seeds': [seeds[0], seeds[-1]], 'solved': solved}
    save_shard(target, frames, tokens, facts)
    return solved


def collect_corrections(
    recipe: TrainingRecipe, round_number: int, model: EmbeddedVLA, run: Path, processes: int
) -> dict[str, float]:
    """One DAgger round; answers the policy's success rate in each task (training scenes)."""
    rates = {}
    for scenes in recipe.tasks:
        count = scenes.corrections
        seeds = recipe.seeds(CORRECTIONS, count, skip=count * round_number)
        pending = [
            (scenes.task, job, model, target)
            for job, target in _shards(run, scenes.task, 'policy', seeds)
            if not target.exists()
        ]
        title = f'{scenes.task}: corrections'
        run_jobs(_dagger_shard, pending, len(pending), processes, title)
        rates[scenes.task] = _solved(run, scenes.task, 'policy', seeds) / len(seeds)
    return rates
