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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from safe_pruner_ros.policies.vision_tower import STRIDE, VisionTower
from safe_pruner_ros.training.labels import FIXTURES, MIN_COVERAGE
from safe_pruner_ros.training.parallel import average_buffers, average_gradients, launch
from safe_pruner_ros.training.recipe import TrainingRecipe

HELD_OUT_SHARDS = 4  # a task, of scenes that no step sees
FIXTURE_SHARE = 0.15  # of the windows lie around a patch of the receptacle or its lid
N_OTHERS = len(FIXTURES) + 1  # channels after the kinds of objects: fixtures and robot
WINDOW = 3  # patches
MIN_SHOWN = 6  # of 255: a window is laid around a patch that is covered that much; a far ball: 15
COLOUR_CELLS = 4  # a side of a patch


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


@dataclass(frozen=True)
class PatchBatch:
    """Images [B, 3, H, W] in [0, 1]; coverage [B, N, kinds + 3]; offset [B, N, kinds + 2, 2]."""

    images: torch.Tensor
    coverage: torch.Tensor
    offset: torch.Tensor

    def to(self, device: torch.device) -> PatchBatch:
        return PatchBatch(*(x.to(device) for x in (self.images, self.coverage, self.offset)))


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


class PictureSet:
    """Labelled pictures in shards; a sample is a window of one, flipped half the time."""

    def __init__(self, shards: Sequence[Path]) -> None:
        names = ('images', 'coverage', 'offset')
        self._shards = [[np.load(s / f'{n}.npy', mmap_mode='r') for n in names] for s in shards]
        self.grid = int(self._shards[0][1].shape[1] ** 0.5)
        self.n_kinds = self._shards[0][1].shape[2] - N_OTHERS
        kinds, fixtures = slice(0, -N_OTHERS), slice(-N_OTHERS, -1)
        self._objects, self._fixtures = self._places(kinds), self._places(fixtures)

    def _places(self, channels: slice) -> npt.NDArray[np.int64]:
        """[n, 3]: shard, row and patch wherever one of the ``channels`` is shown."""
        places = []
        for number, (_, coverage, _) in enumerate(self._shards):
            row, patch = np.nonzero(coverage[..., channels].max(-1) >= MIN_SHOWN)
            places.append(np.stack([np.full(len(row), number), row, patch], axis=1))
        return np.concatenate(places)

    def batch(self, rng: np.random.Generator, count: int, window: int) -> PatchBatch:
        """``count`` windows of ``window`` x ``window`` patches, most around random object patches,
        the others around the receptacle."""
        n_fixtures = round(FIXTURE_SHARE * count) if len(self._fixtures) else 0
        places = np.concatenate(
            [rng.choice(self._objects, count - n_fixtures), rng.choice(self._fixtures, n_fixtures)]
            if n_fixtures
            else [rng.choice(self._objects, count)]
        )
        samples = []
        for number, row, patch in places:
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


def split_shards(folder: Path, tasks: Sequence[str]) -> tuple[list[Path], dict[str, list[Path]]]:
    """Shards to learn from, and those held out by task: the last ones, which are posed scenes."""
    learn, held_out = [], {}
    for task in tasks:
        shards = sorted(p for p in (folder / task).glob('*_*') if p.is_dir() and p.suffix == '')
        count = min(HELD_OUT_SHARDS, len(shards) // 4)
        learn += shards[:-count]
        held_out[task] = shards[-count:]
    return learn, held_out


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
        loss, kind, read = dense_loss(heads, tower(jitter(batch.images, rng)), batch)
        loss.backward()
        average_gradients(both, processes)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append((float(loss.detach()), float((kind == read).float().mean())))
        if rank == 0 and (step + 1) % 50 == 0:
            recent, accuracy = np.mean(curve[-50:], axis=0)
            print(
                f'vision step {step + 1}: loss {recent:.4f}, kind right {accuracy:.3f}', flush=True
            )
        if rank == 0 and (step + 1) % 250 == 0:
            _report(tower, heads, fresh, recipe.object_names)
            _save({n: p.state_dict() for n, p in parts.items()} | {'step': step + 1}, progress)
    average_buffers(tower, processes)
    if rank == 0:
        _report(tower, heads, fresh, recipe.object_names)
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
