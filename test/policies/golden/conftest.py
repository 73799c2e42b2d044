"""Numbers that upstream's own code gave, and the weights and pictures they belong to.

A network is filled by name: every tensor of a checkpoint is drawn from a generator seeded with the
SHA-256 of its official name, so only outputs are stored here. Names and shapes are those that
upstream's model writes (``shapes`` in the .json files); so the checkpoints of these tests are in
the official layout, and the renaming of our loaders is tested along.

Uniform numbers of numpy's RandomState, whose stream is frozen, and plain arithmetic: the same bits
with every version and on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent
TABLES = (
    'embed_tokens.weight',
    'lm_head.weight',
    'position_embedding.weight',
    'pos_embed',
    'token',
    'latent',
)


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1)."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], 'big')
    return np.random.RandomState(seed).random_sample(shape) * 2 - 1


def filled(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 tensor of this name: gains near 1 (near 0 in Gemma, which adds 1), matrices that
    keep the scale of what they read. Of OpenVLA's vocabulary of 32064 only the 256 action tokens
    have large logits, so that greedy decoding gives actions."""
    values = uniform(key, shape)
    if len(shape) == 1:
        is_gain = key.endswith(('scale_factor', 'weight'))
        is_gemma = 'paligemma_with_expert' in key and 'vision_tower' not in key
        values = 0.1 * values + float(is_gain and not is_gemma)
    elif key.endswith(TABLES):
        if key.endswith('lm_head.weight') and shape[0] == 32064:
            values[:31744] *= 0.1
            values[32000:] *= 0.1
    else:
        is_pi05 = key.startswith(('paligemma_with_expert', 'action_', 'time_'))
        values *= (1.7 if is_pi05 else 2.5) / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def picture(key: str, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: soft colours and some grain."""
    nodes = uniform(key, (7, 9, 3)) * 110 + 128
    rows, cols = np.linspace(0, 6, height), np.linspace(0, 8, width)
    row, col = np.minimum(rows.astype(int), 5), np.minimum(cols.astype(int), 7)
    down, right = (rows - row)[:, None, None], (cols - col)[None, :, None]
    top = nodes[row][:, col] * (1 - right) + nodes[row][:, col + 1] * right
    low = nodes[row + 1][:, col] * (1 - right) + nodes[row + 1][:, col + 1] * right
    image = top * (1 - down) + low * down + uniform(f'{key} grain', (height, width, 3)) * 12
    return image.round().clip(0, 255).astype(np.uint8)


class Numbers:
    """A stored .npz. Large arrays are there as values at seeded places and the norm of all."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f'{name}.npz') as file:
            self.arrays = dict(file)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def at_places(self, name: str, ours: object) -> np.ndarray:
        """Of an array the values that are stored."""
        array, stored = np.asarray(ours), self.arrays[name]
        if f'{name} norm' not in self.arrays:
            assert array.shape == stored.shape, (name, array.shape, stored.shape)
            return array
        flat = array.reshape(-1)
        places = (uniform(f'places in {name}', stored.shape) + 1) / 2 * flat.size
        return flat[places.astype(int)]

    def difference(self, name: str, ours: object) -> float:
        """Largest difference at the stored places, or that of the norm where it is larger; in
        units of the largest stored value, if that is above 1."""
        array, stored = np.asarray(ours, np.float64), self.arrays[name].astype(np.float64)
        scale = max(1.0, float(np.abs(stored).max()))
        differences = [float(np.abs(self.at_places(name, array) - stored).max()) / scale]
        if f'{name} norm' in self.arrays:
            norm = float(np.linalg.norm(array.reshape(-1)))
            differences.append(abs(norm / float(self.arrays[f'{name} norm']) - 1))
        return max(differences)


def read_json(name: str) -> dict:
    return json.loads((FOLDER / f'{name}.json').read_text())


@pytest.fixture(scope='session')
def golden() -> SimpleNamespace:
    return SimpleNamespace(
        uniform=uniform, filled=filled, picture=picture, Numbers=Numbers, read_json=read_json
    )
