"""The vision tower's training data: labelled pictures in shards, cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from safe_pruner_ros.policies.vision_tower import STRIDE
from safe_pruner_ros.training.files import map_array
from safe_pruner_ros.training.labels import FIXTURES

HELD_OUT_SHARDS = 4  # a task, of scenes that no step sees
SHARDS_FOR_ONE_HELD_OUT = 4  # at most every fourth is held out
MIN_SHOWN = 6  # of 255: a window is laid around a patch that is covered that much; a far ball: 15
FIXTURE_SHARE = 0.15  # of the windows lie around a patch of the receptacle or its lid
N_OTHERS = len(FIXTURES) + 1  # channels after the kinds of objects: fixtures and robot


@dataclass(frozen=True)
class PatchBatch:
    """Images [B, 3, H, W] in [0, 1]; coverage [B, N, kinds + 3]; offset [B, N, kinds + 2, 2]."""

    images: torch.Tensor
    coverage: torch.Tensor
    offset: torch.Tensor

    def to(self, device: torch.device) -> PatchBatch:
        return PatchBatch(*(x.to(device) for x in (self.images, self.coverage, self.offset)))


class PictureSet:
    """Labelled pictures in shards; a sample is a window of one, flipped half the time."""

    def __init__(self, shards: Sequence[Path]) -> None:
        names = ('images', 'coverage', 'offset')
        self._shards = [[map_array(s / f'{n}.npy') for n in names] for s in shards]
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
        places = rng.choice(self._objects, count)
        if len(self._fixtures):
            others = rng.random(count) < FIXTURE_SHARE
            places[others] = rng.choice(self._fixtures, int(others.sum()))
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


def split_shards(folder: Path, tasks: Sequence[str]) -> tuple[list[Path], dict[str, list[Path]]]:
    """Shards to learn from, and those held out by task: the last ones, which are posed scenes.

    ValueError for a task with fewer shards than a quarter of can be held out.
    """
    learn, held_out = [], {}
    for task in tasks:
        shards = sorted(p for p in (folder / task).glob('*_*') if p.is_dir() and p.suffix == '')
        if len(shards) < SHARDS_FOR_ONE_HELD_OUT:
            raise ValueError(
                f'{task} needs {SHARDS_FOR_ONE_HELD_OUT} shards of pictures, to hold one out, and '
                f'{folder / task} has {len(shards)}; use a recipe with more pictures'
            )
        first = len(shards) - min(HELD_OUT_SHARDS, len(shards) // SHARDS_FOR_ONE_HELD_OUT)
        learn += shards[:first]
        held_out[task] = shards[first:]
    return learn, held_out
