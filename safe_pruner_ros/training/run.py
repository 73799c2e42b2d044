"""`safe-pruner train`: the shipped weights from nothing, in one resumable schedule.

0. pictures of expert episodes -> 1. vision tower -> 2. demonstrations -> 3. decoder, growing in
depth, with DAgger rounds in between -> 4. export without the auxiliary heads.
Every stage leaves a file when it is complete; a killed run continues where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from safe_pruner_ros.policies.embedded import save_weights
from safe_pruner_ros.policies.embedded_model import PAD_WORD, EmbeddedConfig, EmbeddedVLA
from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.objects import COLOURS, SHAPES
from safe_pruner_ros.sim.tasks.pick_place import TEMPLATES
from safe_pruner_ros.training import collect, imitation
from safe_pruner_ros.training.dataset import DemonstrationSet
from safe_pruner_ros.training.parallel import launch
from safe_pruner_ros.training.pictures import collect_pictures
from safe_pruner_ros.training.recipe import TRAINING_SEEDS, TrainingRecipe, smoke_recipe
from safe_pruner_ros.training.vision_pretraining import train_vision_tower

KINDS = tuple(f'{colour} {shape}' for colour in COLOURS for shape in SHAPES)


def policy_config(task: str) -> EmbeddedConfig:
    """Shape, joints and words of the policy for ``task``."""
    with DualArmEnv(task) as env:
        layout, views = env.layout, env.views
    words = {w for t in TEMPLATES for k in KINDS for w in t.format(object=k).split()}
    grippers = tuple(joint.name for joint in layout.joints if joint.kind == 'gripper')
    return EmbeddedConfig(tuple(views), layout.names, grippers, (PAD_WORD, *sorted(words)))


def train(recipe: TrainingRecipe, run: Path, processes: int, device: str = 'cpu') -> Path:
    """Run or resume the schedule; returns the path of the exported weights.

    Simulation always uses ``processes`` worker processes. On the CPU the networks are trained by
    as many, on another ``device`` by one.
    """
    workers = processes if device == 'cpu' else 1
    began = time.monotonic()
    run.mkdir(parents=True, exist_ok=True)
    _check_same_recipe(recipe, run)
    config = policy_config(recipe.task)
    seeds = list(TRAINING_SEEDS)
    first = recipe.seed * 40_000  # other training seeds see other scenes

    def take(start: int, count: int) -> list[int]:
        return seeds[first + start : first + start + count]

    pictures = take(0, recipe.vision_episodes)
    demonstrations = take(5_000, recipe.demonstration_episodes)
    posed = take(12_000, recipe.vision_scenes)

    vision = run / 'vision'
    collect_pictures(recipe, pictures, posed, KINDS, config.grid, vision, processes)
    _say(began, 'pictures are there')
    train_vision_tower(recipe, vision, config.vision_width, workers, device)
    _say(began, 'vision tower is trained')
    collect.collect_demonstrations(recipe, demonstrations, run, config.vision_width, processes)
    data = DemonstrationSet(run / 'demonstrations', config, TEMPLATES)
    if not (run / 'statistics.npz').exists():
        np.savez(run / 'statistics.npz', **data.statistics())
    _say(began, f'{len(data)} labelled frames are there')

    for number, stage in enumerate(recipe.stages):
        record = run / f'corrections_{number}.json'
        if number in recipe.dagger_before_stages and not record.exists():
            model = trained_model(run, config, recipe)
            round_number = recipe.dagger_before_stages.index(number)
            begin = 10_000 + recipe.dagger_episodes * round_number
            scenes = take(begin, recipe.dagger_episodes)
            rate = collect.collect_corrections(recipe, scenes, model, run, processes)
            record.write_text(json.dumps({'success_rate': rate}))
            _say(began, f'policy solved {rate:.0%} of the scenes it was corrected in')
        if _progress(run) < (number, stage.steps):
            launch(imitation.train_stage, workers, recipe, number, config, TEMPLATES, run, device)
        _say(began, f'decoder stage {number} ({stage.n_layers} layers) is trained')

    target = run / 'embedded.safetensors'
    card = {'recipe': json.dumps(recipe.as_dict())}
    save_weights(trained_model(run, config, recipe), target, card)
    _say(began, f'weights are in {target}')
    return target


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


def _check_same_recipe(recipe: TrainingRecipe, run: Path) -> None:
    path = run / 'recipe.json'
    text = json.dumps(recipe.as_dict(), indent=1)
    if path.exists() and path.read_text() != text:
        raise ValueError(
            f'{path} holds another recipe than the one asked for; resume with the same arguments '
            'or choose an empty folder'
        )
    path.write_text(text)


def _say(began: float, text: str) -> None:
    print(f'[{(time.monotonic() - began) / 60:6.1f} min] {text}', flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--out', type=Path, default=Path('runs/embedded'), help='run folder')
    parser.add_argument('--processes', type=int, default=2, help='one a core is best')
    parser.add_argument('--seed', type=int, default=0, help='scenes, initial weights and order')
    parser.add_argument('--device', default='cpu', help='where the networks learn: cpu or cuda')
    parser.add_argument('--smoke', action='store_true', help='minutes long, learns nothing')


def main(args: argparse.Namespace) -> int:
    recipe = smoke_recipe() if args.smoke else TrainingRecipe(seed=args.seed)
    if args.device != 'cpu' and not torch.cuda.is_available():
        raise ValueError(f'--device {args.device}: this torch sees no GPU; use --device cpu')
    train(recipe, args.out, args.processes, args.device)
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    raise SystemExit(main(parser.parse_args()))
