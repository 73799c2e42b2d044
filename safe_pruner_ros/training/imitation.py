"""Stage 3: the decoder imitates the expert's chunks; depth grows from stage to stage.

Besides the L1 loss on the chunk, two auxiliary losses sit on the *last* layer and are dropped on
export: each visual token that shows an object says whether it is the instructed one, and the
action slots say where that and the receptacle are (m) and how far its lid is open (rad). They
teach grounding where the network decides, not before the place where pruning cuts.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F

from safe_pruner_ros.policies.embedded_model import EmbeddedConfig, EmbeddedVLA
from safe_pruner_ros.sim.tasks.catalog import get_task
from safe_pruner_ros.training.dataset import DemonstrationSet
from safe_pruner_ros.training.files import whole_file
from safe_pruner_ros.training.optimizer import Optimizers
from safe_pruner_ros.training.parallel import average_gradients, share
from safe_pruner_ros.training.recipe import DepthStage, TrainingRecipe

REPORT_STEPS = 50  # a line of the curve each
SAVE_STEPS = 200  # a killed run loses at most so many


class AuxiliaryHeads(nn.Module):
    """Grounding read-outs of the last layer; never exported."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grounding = nn.Linear(width, 1)
        self.position = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 6))


@dataclass
class Learner:
    """Model, its auxiliary heads, their running average and the optimizer: what a save holds."""

    model: EmbeddedVLA
    heads: AuxiliaryHeads
    average: EmbeddedVLA
    optimizers: Optimizers

    @property
    def trained(self) -> nn.ModuleList:
        return nn.ModuleList([self.model, self.heads])


def new_learner(model: EmbeddedVLA, heads: AuxiliaryHeads, stage: DepthStage) -> Learner:
    model.vision.requires_grad_(False)
    optimizers = Optimizers(nn.ModuleList([model, heads]), stage.matrix_lr, stage.other_lr)
    average = copy.deepcopy(model).requires_grad_(False)
    return Learner(model, heads, average, optimizers)


def grow(small: EmbeddedVLA, n_layers: int) -> EmbeddedVLA:
    """A deeper network that computes the same function.

    The trained layers move to evenly spaced depths; the new ones between them are copies of their
    successor whose output projections are zero, so each starts as the identity.
    """
    large = EmbeddedVLA(small.config, n_layers)
    state = {k: v for k, v in small.state_dict().items() if not k.startswith('layers.')}
    large.load_state_dict(state, strict=False)
    old = list(small.layers)
    homes = [math.ceil((i + 1) * n_layers / len(old)) - 1 for i in range(len(old))]
    for index, layer in enumerate(large.layers):
        source = next(i for i, home in enumerate(homes) if home >= index)
        layer.load_state_dict(old[source].state_dict())
        if index != homes[source]:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
    return large


def losses(
    learner: Learner, batch: dict[str, torch.Tensor], statistics: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Loss terms of one batch: action (L1, in units of the spread), grounding, position."""
    model, heads = learner.model, learner.heads
    proprioception = batch['proprioception']
    hidden = model.decode_full(model.embed(batch['visual'], proprioception, batch['words']))
    slots = hidden[:, model.layout.query_positions('action')]
    raw = model.head(slots)
    target = (batch['chunk'] - proprioception[:, None]) / model.delta_scale
    target = torch.where(model.is_gripper, batch['chunk'], target)
    visual = hidden[:, model.layout.visual.start : model.layout.visual.stop]
    logits = heads.grounding(visual)[..., 0]
    # Over patches that show an object only: over all patches, knowing where objects are, whatever
    # the instruction, already made this loss small (docs/experiments.md).
    shows = batch['shows_object'].float()
    grounding = F.binary_cross_entropy_with_logits(logits, batch['shows_named'], reduction='none')
    places = (batch['places'] - statistics['places_mean']) / statistics['places_std']
    return {
        'action': (raw - target).abs().mean(),
        'grounding': (grounding * shows).sum() / shows.sum().clamp(min=1),
        'position': (heads.position(slots.mean(1)) - places).abs().mean(),
    }


def multiplier(stage: DepthStage, step: int) -> float:
    """Warm-up, then linear decay to ``final_multiplier``."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    progress = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return 1 + (stage.final_multiplier - 1) * min(1.0, progress)


def train_stage(
    rank: int,
    processes: int,
    recipe: TrainingRecipe,
    stage_number: int,
    config: EmbeddedConfig,
    run: Path,
    device: str = 'cpu',
) -> None:
    """Train stage ``stage_number`` to its end, resuming from ``run``/learner.pt.

    A resumed run has the weights, their average and the optimizer's state of the last save, and
    goes on with other random samples than an uninterrupted one.
    """
    templates = {scenes.task: get_task(scenes.task).templates for scenes in recipe.tasks}
    data = DemonstrationSet(run / 'demonstrations', config, templates)
    statistics = {k: torch.from_numpy(v).to(device) for k, v in torch_load_statistics(run).items()}
    stage = recipe.stages[stage_number]
    learner, step = load_learner(recipe, stage_number, config, statistics, run, device)
    # Fusing the element-wise work makes the shallow stage 1.8 times as fast on a CPU.
    measure = torch.compile(losses) if recipe.compile else losses
    rng = np.random.default_rng((recipe.seed, stage_number, step, rank))
    size = share(recipe.batch, rank, processes)
    n_corrected = share(recipe.n_corrected, rank, processes)
    log = _open_curve(run / 'curve.jsonl', (stage_number, step)) if rank == 0 else None
    sums: dict[str, float] = {}
    began, mark = time.monotonic(), step
    with Progress(disable=rank != 0) as progress:
        task = progress.add_task(
            f'decoder, {stage.n_layers} layers', total=stage.steps, completed=step
        )
        while step < stage.steps:
            batch = data.batch(rng, size, n_corrected)
            terms = measure(learner, {k: v.to(device) for k, v in batch.items()}, statistics)
            total = (
                terms['action']
                + recipe.grounding_weight * terms['grounding']
                + recipe.position_weight * terms['position']
            )
            total.backward()
            average_gradients(learner.trained, processes)
            torch.nn.utils.clip_grad_norm_(learner.trained.parameters(), 1.0)
            learner.optimizers.step(multiplier(stage, step))
            update_average(learner, recipe.ema_decay, step)
            step += 1
            progress.advance(task)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if step % REPORT_STEPS == 0 and log is not None:
                done = step - mark
                means = {name: round(value / done, 4) for name, value in sums.items()}
                rate = done * recipe.batch / (time.monotonic() - began)
                record = {
                    'stage': stage_number,
                    'step': step,
                    **means,
                    'samples_s': round(rate, 1),
                }
                log.write(json.dumps(record) + '\n')
                log.flush()
                print(record, flush=True)
                sums, mark, began = {}, step, time.monotonic()
            if rank == 0 and (step % SAVE_STEPS == 0 or step == stage.steps):
                save_learner(learner, stage_number, step, run)
    if log is not None:
        log.close()


def _open_curve(path: Path, reached: tuple[int, int]) -> TextIO:
    """The curve to append to, without what a killed run wrote beyond (stage, step) ``reached``."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _is_up_to(line, reached)]
        if kept != lines:
            with whole_file(path) as partial:
                partial.write_text(''.join(kept))
    return path.open('a')


def _is_up_to(line: str, reached: tuple[int, int]) -> bool:
    try:
        record = json.loads(line)
    except ValueError:  # cut short by the kill
        return False
    return (record['stage'], record['step']) <= reached


def update_average(learner: Learner, decay: float, step: int) -> None:
    """Exponential moving average of the weights, with a short memory at first."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, value in zip(
            learner.average.parameters(), learner.model.parameters(), strict=True
        ):
            mean.lerp_(value, 1 - decay)


def torch_load_statistics(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / 'statistics.npz') as file:
        return {key: file[key] for key in file.files}


def save_learner(learner: Learner, stage_number: int, step: int, run: Path) -> None:
    state = {
        'stage': stage_number,
        'step': step,
        'model': learner.model.state_dict(),
        'heads': learner.heads.state_dict(),
        'average': learner.average.state_dict(),
        'optimizers': learner.optimizers.state_dict(),
    }
    with whole_file(run / 'learner.pt') as partial:
        torch.save(state, partial)


def load_learner(
    recipe: TrainingRecipe,
    stage_number: int,
    config: EmbeddedConfig,
    statistics: dict[str, torch.Tensor],
    run: Path,
    device: str,
) -> tuple[Learner, int]:
    """The learner and the step it has reached in ``stage_number`` (0 when the stage is new)."""
    torch.manual_seed(recipe.seed)
    stage = recipe.stages[stage_number]
    path = run / 'learner.pt'
    heads = AuxiliaryHeads(config.width).to(device)
    if not path.exists():
        model = EmbeddedVLA(config, stage.n_layers).to(device)
        tower = torch.load(run / 'vision' / 'tower.pt', weights_only=True, map_location=device)
        model.vision.load_state_dict(tower['tower'])
        for name in ('proprioception_mean', 'proprioception_std', 'delta_scale'):
            getattr(model, name).copy_(statistics[name])
        return new_learner(model, heads, stage), 0
    state = torch.load(path, weights_only=True, map_location=device)
    heads.load_state_dict(state['heads'])
    model = EmbeddedVLA(config, recipe.stages[state['stage']].n_layers).to(device)
    if state['stage'] == stage_number:
        model.load_state_dict(state['model'])
        learner = new_learner(model, heads, stage)
        learner.average.load_state_dict(state['average'])
        learner.optimizers.load_state_dict(state['optimizers'])
        return learner, int(state['step'])
    model.load_state_dict(state['average'])
    return new_learner(grow(model, stage.n_layers).to(device), heads, stage), 0
