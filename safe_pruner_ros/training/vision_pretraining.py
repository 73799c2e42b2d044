"""Stage 1: the vision tower learns from simulator segmentation what a patch shows and where.

Dense targets for each patch: the share of its pixels that objects, the tray and the robot cover;
which kind its largest object is; the offsets to the centroids of that object and of the tray; and
its coarse colours (4 x 4 RGB). The kind is a softmax over patches that show an object: as shares
of all patches, kinds are so rare that the tower learned where things are but not what they are.

Most steps see windows of 3 x 3 patches around an object, which teach shapes seven times as fast as
whole pictures do; the last steps see whole pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from safe_pruner_ros.policies.vision_tower import STRIDE, VisionTower
from safe_pruner_ros.training.labels import MIN_COVERAGE
from safe_pruner_ros.training.parallel import average_buffers, average_gradients, launch
from safe_pruner_ros.training.recipe import TrainingRecipe

HELD_OUT_SHARDS = 8  # of scenes that no step sees
WINDOW = 3  # patches
MIN_SHOWN = 12  # of 255: a window is laid around a patch that an object covers that much
COLOUR_CELLS = 4  # a side of a patch


class DenseHeads(nn.Module):
    """Read-outs of one patch token; dropped after this stage."""

    def __init__(self, width: int, n_kinds: int) -> None:
        super().__init__()
        self.sizes = (3, n_kinds, 4, 3 * COLOUR_CELLS**2)
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, sum(self.sizes))
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, N, C] -> shares [.., 3], kinds [.., n], offsets [.., 2, 2], colours [.., 48]."""
        shares, kinds, offsets, colours = self.net(tokens).split(self.sizes, dim=-1)
        return shares, kinds, offsets.unflatten(-1, (2, 2)), colours


@dataclass(frozen=True)
class PatchBatch:
    """Images [B, 3, H, W] in [0, 1]; coverage [B, N, kinds + 2]; offset [B, N, kinds + 1, 2]."""

    images: torch.Tensor
    coverage: torch.Tensor
    offset: torch.Tensor

    def to(self, device: torch.device) -> PatchBatch:
        return PatchBatch(*(x.to(device) for x in (self.images, self.coverage, self.offset)))


def dense_loss(
    heads: DenseHeads, tokens: torch.Tensor, batch: PatchBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the tokens of ``batch``'s pictures, and for each object patch whether its kind is
    right [n]."""
    shares, kinds, offsets, colours = heads(tokens)
    objects, others = batch.coverage[..., :-2], batch.coverage[..., -2:]
    largest = objects.argmax(-1)
    target_shares = torch.cat([objects.sum(-1, keepdim=True), others], dim=-1).clamp(max=1)
    loss = 2 * F.binary_cross_entropy_with_logits(shares, target_shares)

    shown = objects.amax(-1) > MIN_COVERAGE
    loss = loss + F.cross_entropy(kinds[shown], largest[shown])
    right = kinds[shown].argmax(-1) == largest[shown]

    own = batch.offset.gather(2, largest[..., None, None].expand(*largest.shape, 1, 2))
    target_offsets = torch.cat([own, batch.offset[..., -1:, :]], dim=2)
    visible = torch.stack([shown, others[..., 0] > MIN_COVERAGE], dim=-1)
    if visible.any():
        loss = loss + (offsets - target_offsets).abs()[visible].mean()

    small = F.avg_pool2d(batch.images, STRIDE // COLOUR_CELLS)
    target_colours = F.unfold(small, COLOUR_CELLS, stride=COLOUR_CELLS).transpose(1, 2)
    return loss + 2 * F.l1_loss(colours, target_colours), right


class PictureSet:
    """Labelled pictures in shards; a sample is a window of one, flipped half the time."""

    def __init__(self, shards: Sequence[Path]) -> None:
        names = ('images', 'coverage', 'offset')
        self._shards = [[np.load(s / f'{n}.npy', mmap_mode='r') for n in names] for s in shards]
        self.grid = int(self._shards[0][1].shape[1] ** 0.5)
        self.n_kinds = self._shards[0][1].shape[2] - 2
        places = []
        for number, (_, coverage, _) in enumerate(self._shards):
            row, patch = np.nonzero(coverage[..., :-2].max(-1) >= MIN_SHOWN)
            places.append(np.stack([np.full(len(row), number), row, patch], axis=1))
        self._places = np.concatenate(places)  # shard, row, patch that shows an object

    def batch(self, rng: np.random.Generator, count: int, window: int) -> PatchBatch:
        """``count`` windows of ``window`` x ``window`` patches around random object patches."""
        samples = []
        for number, row, patch in self._places[rng.integers(len(self._places), size=count)]:
            top, left = (
                int(np.clip(place - rng.integers(window), 0, self.grid - window))
                for place in divmod(int(patch), self.grid)
            )
            samples.append(self._window(number, row, top, left, window, bool(rng.random() < 0.5)))
        return _stack(samples)

    def pictures(self, first: int, count: int) -> PatchBatch:
        """Whole pictures ``first``.. of the shards, in order."""
        rows = [(s, r) for s, shard in enumerate(self._shards) for r in range(len(shard[0]))]
        return _stack(
            [self._window(s, r, 0, 0, self.grid, False) for s, r in rows[first : first + count]]
        )

    def __len__(self) -> int:
        return sum(len(shard[0]) for shard in self._shards)

    def _window(
        self, number: int, row: int, top: int, left: int, size: int, flip: bool
    ) -> tuple[npt.NDArray[np.generic], ...]:
        images, coverage, offset = self._shards[number]
        rows, columns = slice(top, top + size), slice(left, left + size)
        pixels = images[
            row, STRIDE * top : STRIDE * (top + size), STRIDE * left : STRIDE * (left + size)
        ]
        cover = coverage[row].reshape(self.grid, self.grid, -1)[rows, columns]
        away = offset[row].reshape(self.grid, self.grid, -1, 2)[rows, columns]
        if flip:
            pixels, cover = pixels[:, ::-1], cover[:, ::-1]
            away = away[:, ::-1] * np.array([1, -1], np.float16)
        return pixels, cover.reshape(size * size, -1), away.reshape(size * size, -1, 2)


def _stack(samples: Sequence[tuple[npt.NDArray[np.generic], ...]]) -> PatchBatch:
    pixels, coverage, offset = (
        torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True)
    )
    # A permuted view: channels-last memory, which convolutions like best on a CPU.
    images = pixels.permute(0, 3, 1, 2).float().div_(255)
    return PatchBatch(images, coverage.float().div_(255), offset.float())


def jitter(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast and pixel noise as of real cameras; the noise is one draw a batch."""

    def draw(low: float, high: float) -> torch.Tensor:
        values = rng.uniform(low, high, size=(len(images), 1, 1, 1)).astype(np.float32)
        return torch.from_numpy(values).to(images.device)

    gain = draw(0.85, 1.15)
    shape = (1, *images.shape[2:], images.shape[1])
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).permute(0, 3, 1, 2)
    noise = noise.to(images.device) * float(rng.uniform(0, 0.02))
    return images * gain + (0.5 - 0.5 * gain + draw(-0.075, 0.075)) + noise


def held_out_accuracy(tower: VisionTower, heads: DenseHeads, data: PictureSet) -> float:
    """Share of object patches whose kind is right, in whole pictures as they are."""
    device, right = next(tower.parameters()).device, []
    tower.eval()
    with torch.inference_mode():
        for first in range(0, len(data), 60):
            batch = data.pictures(first, 60).to(device)
            right.append(dense_loss(heads, tower(batch.images), batch)[1])
    tower.train()
    return float(torch.cat(right).float().mean())


def _train(
    rank: int, processes: int, recipe: TrainingRecipe, folder: Path, width: int, device: str
) -> None:
    shards = sorted(p for p in folder.glob('*_*') if p.is_dir() and p.suffix == '')
    count = min(HELD_OUT_SHARDS, len(shards) // 4)
    data, fresh = PictureSet(shards[:-count]), PictureSet(shards[-count:])  # scenes sort last
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
        state = torch.load(progress, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state['step']
    rng = np.random.default_rng((recipe.seed, rank, first))
    for step in track(range(first, steps), description='vision tower', disable=rank != 0):
        windows = step < recipe.vision_window_steps
        size = recipe.vision_window_batch if windows else recipe.vision_picture_batch
        window = min(WINDOW, data.grid) if windows else data.grid
        batch = data.batch(rng, max(1, size // processes), window).to(torch.device(device))
        loss, right = dense_loss(heads, tower(jitter(batch.images, rng)), batch)
        loss.backward()
        average_gradients(both, processes)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append((float(loss.detach()), float(right.float().mean())))
        if rank == 0 and (step + 1) % 50 == 0:
            recent, accuracy = np.mean(curve[-50:], axis=0)
            print(
                f'vision step {step + 1}: loss {recent:.4f}, kind right {accuracy:.3f}', flush=True
            )
        if rank == 0 and (step + 1) % 250 == 0:
            accuracy = held_out_accuracy(tower, heads, fresh)
            print(f'  scenes seen nowhere else: kind right {accuracy:.3f}', flush=True)
            _save({n: p.state_dict() for n, p in parts.items()} | {'step': step + 1}, progress)
    average_buffers(tower, processes)
    if rank == 0:
        accuracy = held_out_accuracy(tower, heads, fresh)
        print(f'vision tower: kind right {accuracy:.3f} in scenes seen nowhere else', flush=True)
        final = {'tower': tower.state_dict(), 'heads': heads.state_dict()}
        _save(final, folder / 'tower.pt')


def _save(state: dict[str, object], path: Path) -> None:
    partial = path.with_suffix('.partial')
    torch.save(state, partial)
    partial.rename(path)


def train_vision_tower(
    recipe: TrainingRecipe, folder: Path, width: int, processes: int, device: str = 'cpu'
) -> VisionTower:
    """Train on the shards of ``folder``; a killed run goes on at most 250 steps earlier."""
    if not (folder / 'tower.pt').exists():
        launch(_train, processes, recipe, folder, width, device)
    return load_tower(folder / 'tower.pt', width)


def load_tower(path: Path, width: int) -> VisionTower:
    """The trained tower on the CPU, frozen."""
    tower = VisionTower(width)
    state = torch.load(path, weights_only=True, map_location='cpu')['tower']
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)
