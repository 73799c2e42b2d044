"""Stage 1: the vision tower learns from simulator segmentation what a patch shows and where.

Dense targets for each patch: the share of its pixels that objects, the receptacle, its lid and the
robot cover; which kind its largest object is; the offsets to the centroids of that object, of the
receptacle and of the lid, which say how far it is open; and its coarse colours (4 x 4 RGB). The
kind is a softmax over patches that show an object: as shares of all patches, kinds are so rare
that the tower learned where things are but not what they are.

Most steps see windows of 3 x 3 patches, most of them around an object, which teach shapes seven
times as fast as whole pictures do; the last steps see whole pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from safe_pruner_ros.policies.vision_tower import STRIDE, VisionTower
from safe_pruner_ros.training.files import whole_file
from safe_pruner_ros.training.labels import FIXTURES, MIN_COVERAGE
from safe_pruner_ros.training.parallel import average_buffers, average_gradients, launch, share
from safe_pruner_ros.training.picture_set import (
    N_OTHERS,
    PatchBatch,
    PictureSet,
    jitter,
    split_shards,
)
from safe_pruner_ros.training.recipe import TrainingRecipe

WINDOW = 3  # patches
COLOUR_CELLS = 4  # a side of a patch
REPORT_STEPS = 50
SAVE_STEPS = 250  # a killed run loses at most so many


class DenseHeads(nn.Module):
    """Read-outs of one patch token; dropped after this stage."""

    def __init__(self, width: int, n_kinds: int) -> None:
        super().__init__()
        self.sizes = (1 + N_OTHERS, n_kinds, 2 + 2 * len(FIXTURES), 3 * COLOUR_CELLS**2)
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, sum(self.sizes))
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, N, C] -> shares [.., 4], kinds [.., n], offsets [.., 3, 2], colours [.., 48]."""
        shares, kinds, offsets, colours = self.net(tokens).split(self.sizes, dim=-1)
        return shares, kinds, offsets.unflatten(-1, (-1, 2)), colours


def dense_loss(
    heads: DenseHeads, tokens: torch.Tensor, batch: PatchBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of the tokens of ``batch``'s pictures, and for each object patch [n] the kind it shows
    and the kind that is read."""
    shares, kinds, offsets, colours = heads(tokens)
    objects, others = batch.coverage[..., :-N_OTHERS], batch.coverage[..., -N_OTHERS:]
    largest = objects.argmax(-1)
    target_shares = torch.cat([objects.sum(-1, keepdim=True), others], dim=-1).clamp(max=1)
    loss = 2 * F.binary_cross_entropy_with_logits(shares, target_shares)

    shown = objects.amax(-1) > MIN_COVERAGE
    loss = loss + F.cross_entropy(kinds[shown], largest[shown])
    read = kinds[shown].argmax(-1)

    own = batch.offset.gather(2, largest[..., None, None].expand(*largest.shape, 1, 2))
    target_offsets = torch.cat([own, batch.offset[..., -len(FIXTURES) :, :]], dim=2)
    visible = torch.cat([shown[..., None], others[..., :-1] > MIN_COVERAGE], dim=-1)
    if visible.any():
        loss = loss + (offsets - target_offsets).abs()[visible].mean()

    small = F.avg_pool2d(batch.images, STRIDE // COLOUR_CELLS)
    target_colours = F.unfold(small, COLOUR_CELLS, stride=COLOUR_CELLS).transpose(1, 2)
    return loss + 2 * F.l1_loss(colours, target_colours), largest[shown], read


def held_out_accuracy(
    tower: VisionTower, heads: DenseHeads, data: PictureSet
) -> npt.NDArray[np.int64]:
    """How often which kind is read where [kind, kind read], over the object patches of whole
    pictures as they are."""
    device = next(tower.parameters()).device
    counts = torch.zeros(data.n_kinds, data.n_kinds, dtype=torch.int64)
    tower.eval()
    with torch.inference_mode():
        for first in range(0, len(data), 60):
            batch = data.pictures(first, 60).to(device)
            _, kind, read = dense_loss(heads, tower(batch.images), batch)
            cells = (kind * data.n_kinds + read).cpu()
            counts += torch.bincount(cells, minlength=counts.numel()).view_as(counts)
    tower.train()
    return counts.numpy()


def describe(counts: npt.NDArray[np.int64], kinds: Sequence[str]) -> str:
    """'0.93 (ball 0.91, block 0.95)': the share of patches whose kind is right, by shape."""
    shapes = np.array([kind.split()[-1] for kind in kinds])
    parts = []
    for shape in sorted(set(shapes)):
        own = counts[shapes == shape]
        if own.sum():
            parts.append(f'{shape} {np.diag(counts)[shapes == shape].sum() / own.sum():.3f}')
    return f'{np.trace(counts) / max(1, counts.sum()):.3f} ({", ".join(parts)})'


def _report(
    tower: VisionTower, heads: DenseHeads, fresh: Mapping[str, PictureSet], kinds: Sequence[str]
) -> None:
    for task, data in fresh.items():
        counts = held_out_accuracy(tower, heads, data)
        print(f'  held-out scenes of {task}: kind right {describe(counts, kinds)}', flush=True)


def _train(
    rank: int, processes: int, recipe: TrainingRecipe, folder: Path, width: int, device: str
) -> None:
    learn, held_out = split_shards(folder, [scenes.task for scenes in recipe.tasks])
    data, fresh = PictureSet(learn), {task: PictureSet(own) for task, own in held_out.items()}
    torch.manual_seed(recipe.seed)
    tower = VisionTower(width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = DenseHeads(width, data.n_kinds).to(device)
    both = nn.ModuleList([tower, heads])
    optimizer = torch.optim.AdamW(both.parameters(), lr=recipe.vision_lr, weight_decay=0.02)
    steps = recipe.vision_window_steps + recipe.vision_picture_steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.vision_lr, total_steps=steps + 1, pct_start=0.15
    )
    parts = {'tower': tower, 'heads': heads, 'optimizer': optimizer, 'schedule': schedule}
    first, progress, curve = 0, folder / 'progress.pt', []
    if progress.exists():
        state = torch.load(progress, weights_only=True, map_location='cpu')
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state['step']
    rng = np.random.default_rng((recipe.seed, rank, first))
    for step in track(range(first, steps), description='vision tower', disable=rank != 0):
        windows = step < recipe.vision_window_steps
        size = recipe.vision_window_batch if windows else recipe.vision_picture_batch
        window = min(WINDOW, data.grid) if windows else data.grid
        batch = data.batch(rng, share(size, rank, processes), window).to(torch.device(device))
        loss, kind, read = dense_loss(heads, tower(jitter(batch.images, rng)), batch)
        loss.backward()
        average_gradients(both, processes)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append((float(loss.detach()), float((kind == read).float().mean())))
        if rank == 0 and (step + 1) % REPORT_STEPS == 0:
            recent, accuracy = np.mean(curve[-REPORT_STEPS:], axis=0)
            print(
                f'vision step {step + 1}: loss {recent:.4f}, kind right {accuracy:.3f}', flush=True
            )
        if rank == 0 and (step + 1) % SAVE_STEPS == 0:
            _report(tower, heads, fresh, recipe.object_names)
            _save({n: p.state_dict() for n, p in parts.items()} | {'step': step + 1}, progress)
    average_buffers(tower, processes)
    if rank == 0:
        _report(tower, heads, fresh, recipe.object_names)
        final = {'tower': tower.state_dict(), 'heads': heads.state_dict()}
        _save(final, folder / 'tower.pt')


def _save(state: dict[str, object], path: Path) -> None:
    with whole_file(path) as partial:
        torch.save(state, partial)


def train_vision_tower(
    recipe: TrainingRecipe, folder: Path, width: int, processes: int, device: str = 'cpu'
) -> VisionTower:
    """Train on the shards of ``folder``; a killed run goes on at most ``SAVE_STEPS`` earlier."""
    if not (folder / 'tower.pt').exists():
        launch(_train, processes, recipe, folder, width, device)
    return load_tower(folder / 'tower.pt', width)


def load_tower(path: Path, width: int) -> VisionTower:
    """The trained tower on the CPU, frozen."""
    tower = VisionTower(width)
    state = torch.load(path, weights_only=True, map_location='cpu')['tower']
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)
