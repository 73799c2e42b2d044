"""A run folder of made-up shards, and a recipe of a few steps for a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from safe_pruner_ros.policies.embedded_model import PAD_WORD, EmbeddedConfig, TrainedTask
from safe_pruner_ros.policies.vision_tower import VisionTower
from safe_pruner_ros.sim.tasks.catalog import get_task
from safe_pruner_ros.training.dataset import DemonstrationSet, save_shard
from safe_pruner_ros.training.demonstrations import Frame, Label
from safe_pruner_ros.training.recipe import DepthStage, TaskScenes, TrainingRecipe

TASK = get_task('pick_place')
TEMPLATES = {TASK.name: TASK.templates}
CONFIG = EmbeddedConfig(
    ('head', 'left_wrist', 'right_wrist'),
    ('a', 'grip'),
    ('grip',),
    (PAD_WORD, *sorted({word for sentence in TASK.sentences for word in sentence.split()})),
    (TrainedTask(TASK.name, TASK.templates, TASK.object_names),),
    width=16,
    mlp_width=24,
    n_layers=4,
    n_heads=2,
    vision_width=8,
    grid=2,
)
RECIPE = TrainingRecipe(
    tasks=(TaskScenes(TASK.name, 160, 5, 4, 2),),
    stages=(
        DepthStage(2, 6, 2e-3, 1e-3, warmup_steps=2, final_multiplier=0.5),
        DepthStage(4, 4, 2e-3, 1e-3, warmup_steps=2),
    ),
    dagger_before_stages=(1,),
    vision_window_steps=3,
    vision_window_batch=8,
    vision_picture_steps=3,
    vision_picture_batch=8,
    batch=8,
    compile=False,
)
PICTURE_GRID, PICTURE_KINDS = 2, 12


def frames(count: int, seed: int) -> list[Frame]:
    """Two objects, each shown by one patch; joint 'a' says the frame, 'grip' the seed."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        coverage = np.zeros((CONFIG.n_visual, 2), np.uint8)
        coverage[number % 4, 0], coverage[4 + number % 8, 1] = 255, 255
        made.append(
            Frame(
                images=np.zeros((3, 4, 4, 3), np.uint8),
                proprioception=np.array([number, seed], np.float32),
                coverage=coverage,
                kinds=('red ball', 'blue block'),
                object_positions=rng.normal(size=(2, 3)).astype(np.float32),
                receptacle=rng.normal(size=3).astype(np.float32),
                labels=tuple(Label(i, rng.random((8, 2), np.float32)) for i in range(2)),
            )
        )
    return made


def write_shard(folder: Path, n_frames: int = 5, seed: int = 0) -> None:
    """A folder name that begins with 'policy' makes corrections of it."""
    rng = np.random.default_rng((seed, 1))
    tokens = rng.normal(size=(n_frames, CONFIG.n_visual, CONFIG.vision_width)).astype(np.float16)
    save_shard(folder, frames(n_frames, seed), list(tokens), {'task': TASK.name, 'solved': 1})


def write_pictures(folder: Path) -> None:
    """Four pictures, each of one object."""
    folder.mkdir(parents=True)
    coverage = np.zeros((4, PICTURE_GRID**2, PICTURE_KINDS + 3), np.uint8)
    coverage[np.arange(4), np.arange(4), np.arange(4)] = 200
    size = 32 * PICTURE_GRID
    np.save(folder / 'images.npy', np.full((4, size, size, 3), 99, np.uint8))
    np.save(folder / 'coverage.npy', coverage)
    offset = np.zeros((4, PICTURE_GRID**2, PICTURE_KINDS + 2, 2), np.float16)
    np.save(folder / 'offset.npy', offset)


def demonstrations(run: Path) -> DemonstrationSet:
    return DemonstrationSet(run / 'demonstrations', CONFIG, TEMPLATES)


def write_run(run: Path) -> None:
    """All that the decoder's training reads: a tower, demonstrations, corrections, statistics."""
    (run / 'vision').mkdir(parents=True)
    torch.manual_seed(5)
    tower = {'tower': VisionTower(CONFIG.vision_width).state_dict()}
    torch.save(tower, run / 'vision' / 'tower.pt')
    for number, source in enumerate(('expert', 'expert', 'policy')):
        write_shard(run / 'demonstrations' / f'{source}_{number}', seed=number)
    np.savez(run / 'statistics.npz', **demonstrations(run).statistics())
