"""`safe-pruner train`: the shipped weights from nothing, in one resumable schedule.

0. pictures of expert episodes -> 1. vision tower -> 2. demonstrations -> 3. decoder, growing in
depth, with DAgger rounds in between -> 4. export without the auxiliary heads.
Every stage leaves a file when it is complete; a killed run continues where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from safe_pruner_ros.policies.device import choose_device
from safe_pruner_ros.policies.embedded import save_weights
from safe_pruner_ros.policies.embedded_model import (
    PAD_WORD,
    EmbeddedConfig,
    EmbeddedVLA,
    TrainedTask,
)
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.tasks.catalog import get_task
from safe_pruner_ros.training import collect, imitation
from safe_pruner_ros.training.dataset import DemonstrationSet
from safe_pruner_ros.training.files import whole_file
from safe_pruner_ros.training.parallel import launch
from safe_pruner_ros.training.pictures import collect_pictures
from safe_pruner_ros.training.recipe import RECIPES, TrainingRecipe
from safe_pruner_ros.training.run_record import card, open_run, this_start
from safe_pruner_ros.training.vision_pretraining import train_vision_tower


def policy_config(recipe: TrainingRecipe) -> EmbeddedConfig:
    """Shape, joints, words and tasks of the policy that ``recipe`` trains."""
    tasks = tuple(
        TrainedTask(task.name, task.templates, task.object_names)
        for task in (get_task(scenes.task) for scenes in recipe.tasks)
    )
    with DualArmEnv(tasks[0].name) as env:
        layout, views = env.layout, env.views
    words = {
        word
        for scenes in recipe.tasks
        for sentence in get_task(scenes.task).sentences
        for word in sentence.split()
    }
    grippers = tuple(joint.name for joint in layout.joints if joint.kind == 'gripper')
    return EmbeddedConfig(
        tuple(views),
        layout.names,
        grippers,
        (PAD_WORD, *sorted(words)),
        tasks,
        n_layers=recipe.stages[-1].n_layers,
    )


def train(recipe: TrainingRecipe, run: Path, processes: int, device: str = 'cpu') -> Path:
    """Run or resume the schedule; returns the path of the exported weights.

    Simulation always uses ``processes`` worker processes. On the CPU the networks are trained by
    as many, on another ``device`` by one. Raises ValueError, before anything is written, when
    these cannot divide the batches or ``run`` holds something else.
    """
    workers = processes if device == 'cpu' else 1
    recipe.check_processes(workers)
    began = time.monotonic()
    config = policy_config(recipe)
    for note in open_run(run, recipe, config, this_start(workers, device)):
        _say(began, note)

    vision = run / 'vision'
    collect_pictures(recipe, config.grid, vision, processes)
    _say(began, 'pictures are there')
    train_vision_tower(recipe, vision, config.vision_width, workers, device)
    _say(began, 'vision tower is trained')
    rates = collect.collect_demonstrations(recipe, run, config.vision_width, processes)
    n_frames = _count_and_measure(run, config)
    _say(began, f'{n_frames} labelled frames are there; the expert solved {rates}')

    for number, stage in enumerate(recipe.stages):
        record = run / f'corrections_{number}.json'
        if number in recipe.dagger_before_stages and not record.exists():
            model = trained_model(run, config, recipe)
            round_number = recipe.dagger_before_stages.index(number)
            rates = collect.collect_corrections(recipe, round_number, model, run, processes)
            with whole_file(record) as partial:
                partial.write_text(json.dumps({'success_rate': rates}))
            _say(began, f'share of the corrected scenes that the policy solved: {rates}')
        if _progress(run) < (number, stage.steps):
            launch(imitation.train_stage, workers, recipe, number, config, run, device)
        _say(began, f'decoder stage {number} ({stage.n_layers} layers) is trained')

    target = run / 'embedded.safetensors'
    with whole_file(target) as partial:
        save_weights(trained_model(run, config, recipe), partial, card(run, recipe))
    _say(began, f'weights are in {target}')
    return target


def _count_and_measure(run: Path, config: EmbeddedConfig) -> int:
    """How many labelled frames there are; their statistics are written once, without those of the
    corrections."""
    templates = {task.name: task.templates for task in config.tasks}
    data = DemonstrationSet(run / 'demonstrations', config, templates)
    if not (run / 'statistics.npz').exists():
        with whole_file(run / 'statistics.npz') as partial:
            np.savez(partial, **data.statistics())
    return len(data)


def trained_model(run: Path, config: EmbeddedConfig, recipe: TrainingRecipe) -> EmbeddedVLA:
    """The running average of the weights in ``run``."""
    state = torch.load(run / 'learner.pt', weights_only=True, map_location='cpu')
    model = EmbeddedVLA(config, recipe.stages[state['stage']].n_layers)
    model.load_state_dict(state['average'])
    return model.eval()


def _progress(run: Path) -> tuple[int, int]:
    path = run / 'learner.pt'
    if not path.exists():
        return (-1, 0)
    state = torch.load(path, weights_only=True, mmap=True, map_location='cpu')
    return int(state['stage']), int(state['step'])


def _say(began: float, text: str) -> None:
    print(f'[{(time.monotonic() - began) / 60:6.1f} min] {text}', flush=True)


def main(args: argparse.Namespace) -> int:
    """``args``: recipe, smoke, out, processes (None: one a core, as far as they divide the
    batches), seed, device, see ``safe-pruner train --help``."""
    name = 'smoke' if args.smoke else args.recipe
    if name not in RECIPES:
        raise ValueError(f'unknown recipe {name!r}; known: {sorted(RECIPES)}')
    recipe = RECIPES[name](args.seed)
    processes = args.processes or recipe.fitting_processes(os.cpu_count() or 1)
    train(recipe, args.out, processes, str(choose_device(args.device)))
    return 0
