"""Stage 1: the vision tower learns from simulator segmentation what a patch shows and where.

Dense targets for each patch: the share of its pixels that objects, the tray and the robot cover;
which kind its largest object is; the offsets to the centroids of that object and of the tray; and
its coarse colours (4 x 4 RGB). The kind is a softmax over patches that show an object: as shares
of all patches, kinds are so rare that the tower learned where things are but not what they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from safe_pruner_ros.policies.vision_tower import VisionTower
from safe_pruner_ros.training.labels import MIN_COVERAGE
from safe_pruner_ros.training.parallel import average_gradients, launch
from safe_pruner_ros.training.recipe import TrainingRecipe

HELD_OUT = 300  # pictures


class DenseHeads(nn.Module):
    """Read-outs of one patch token; dropped after this stage."""

    def __init__(self, width: int, n_kinds: int) -> None:
        super().__init__()
        self.sizes = (3, n_kinds, 4, 48)
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, sum(self.sizes))
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, N, C] -> shares [.., 3], kinds [.., n], offsets [.., 2, 2], colours [.., 48]."""
        shares, kinds, offsets, colours = self.net(tokens).split(self.sizes, dim=-1)
        return shares, kinds, offsets.unflatten(-1, (2, 2)), colours


def dense_loss(
    heads: DenseHeads,
    tokens: torch.Tensor,
    images: torch.Tensor,
    coverage: torch.Tensor,
    offset: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """Loss, and the share of object patches whose kind is right.

    Images [B, 3, H, W]; coverage [B, N, kinds + 2]; offset [B, N, kinds + 1, 2].
    """
    shares, kinds, offsets, colours = heads(tokens)
    objects, others = coverage[..., :-2], coverage[..., -2:]
    largest = objects.argmax(-1)
    target_shares = torch.cat([objects.sum(-1, keepdim=True), others], dim=-1).clamp(max=1)
    loss = 2 * F.binary_cross_entropy_with_logits(shares, target_shares)

    shown = objects.amax(-1) > MIN_COVERAGE
    loss = loss + F.cross_entropy(kinds[shown], largest[shown])
    right = (kinds[shown].argmax(-1) == largest[shown]).float().mean()

    own = offset.gather(2, largest[..., None, None].expand(*largest.shape, 1, 2))
    target_offsets = torch.cat([own, offset[..., -1:, :]], dim=2)
    visible = torch.stack([shown, others[..., 0] > MIN_COVERAGE], dim=-1)
    loss = loss + (offsets - target_offsets).abs()[visible].mean()

    grid = int(tokens.shape[1] ** 0.5)
    small = F.adaptive_avg_pool2d(images, grid * 4)
    target_colours = F.unfold(small, 4, stride=4).transpose(1, 2)
    return loss + 2 * F.l1_loss(colours, target_colours), float(right)


def jitter(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness, contrast and pixel noise, one draw an image, as real cameras have."""
    batch = len(images)
    gain, bias, sigma = torch.rand(3, batch, 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator) * sigma * 0.02
    return ((images - 0.5) * (0.85 + 0.3 * gain) + 0.5 + (bias - 0.5) * 0.15 + noise).clamp(0, 1)


def _train(rank: int, processes: int, recipe: TrainingRecipe, folder: Path, width: int) -> None:
    images = np.load(folder / 'images.npy', mmap_mode='r')
    coverage = np.load(folder / 'coverage.npy', mmap_mode='r')
    offset = np.load(folder / 'offset.npy', mmap_mode='r')
    torch.manual_seed(recipe.seed)
    tower = VisionTower(width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = DenseHeads(width, coverage.shape[-1] - 2)
    both = nn.ModuleList([tower, heads])
    optimizer = torch.optim.AdamW(both.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=recipe.vision_steps + 1, pct_start=0.1
    )
    rng = np.random.default_rng((recipe.seed, rank))
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + rank)
    size, curve = max(1, recipe.vision_batch // processes), []
    held_out = min(HELD_OUT, len(images) // 10)  # the last pictures, of scenes seen nowhere else
    first = 0
    if (folder / 'progress.pt').exists():
        state = torch.load(folder / 'progress.pt', weights_only=True)
        tower.load_state_dict(state['tower'])
        heads.load_state_dict(state['heads'])
        optimizer.load_state_dict(state['optimizer'])
        schedule.load_state_dict(state['schedule'])
        first = state['step']
        rng = np.random.default_rng((recipe.seed, rank, first))
    steps = range(first, recipe.vision_steps)
    for step in track(steps, description='vision tower', disable=rank != 0):
        pick = np.sort(rng.choice(len(images) - held_out, size, replace=False))
        clean = torch.from_numpy(images[pick]).permute(0, 3, 1, 2).float() / 255
        tokens = tower(jitter(clean, generator))
        loss, right = dense_loss(
            heads,
            tokens,
            clean,
            torch.from_numpy(coverage[pick]).float() / 255,
            torch.from_numpy(offset[pick]).float(),
        )
        loss.backward()
        average_gradients(both, processes)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append((float(loss.detach()), right))
        if rank == 0 and (step + 1) % 50 == 0:
            recent, accuracy = np.mean(curve[-50:], axis=0)
            print(
                f'vision step {step + 1}: loss {recent:.4f}, kind right {accuracy:.3f}', flush=True
            )
        if rank == 0 and (step + 1) % 250 == 0:
            progress = {
                'tower': tower.state_dict(),
                'heads': heads.state_dict(),
                'optimizer': optimizer.state_dict(),
                'schedule': schedule.state_dict(),
                'step': step + 1,
            }
            torch.save(progress, folder / 'progress.partial')
            (folder / 'progress.partial').rename(folder / 'progress.pt')
    if rank == 0:
        rows = slice(len(images) - held_out, len(images))
        with torch.inference_mode():
            clean = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float() / 255
            labels = torch.from_numpy(coverage[rows]).float() / 255
            offsets = torch.from_numpy(offset[rows]).float()
            _, right = dense_loss(heads, tower(clean), clean, labels, offsets)
        print(f'held-out scenes: kind right {right:.3f}', flush=True)
        state = {'tower': tower.state_dict(), 'heads': heads.state_dict()}
        torch.save(state, folder / 'tower.partial')
        (folder / 'tower.partial').rename(folder / 'tower.pt')


def train_vision_tower(
    recipe: TrainingRecipe, folder: Path, width: int, processes: int
) -> VisionTower:
    """Train on ``folder``/{images,coverage,offset}.npy; a killed run goes on at most 250 steps
    earlier."""
    if not (folder / 'tower.pt').exists():
        launch(_train, processes, recipe, folder, width)
    return load_tower(folder / 'tower.pt', width)


def load_tower(path: Path, width: int) -> VisionTower:
    tower = VisionTower(width)
    tower.load_state_dict(torch.load(path, weights_only=True)['tower'])
    return tower.eval().requires_grad_(False)
