"""Frames on disk, as growing .npy arrays that all training processes map read-only.

Images are not kept: the frozen vision tower's tokens are (float16, 49 kB a frame), so the decoder
trains without ever running the tower.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from safe_pruner_ros.policies.embedded_model import EmbeddedConfig
from safe_pruner_ros.policies.instructions import encode_words
from safe_pruner_ros.training.demonstrations import Frame
from safe_pruner_ros.training.files import map_array, whole_folder

ARRAYS = ('tokens', 'proprioception', 'coverage', 'kinds', 'object_positions', 'receptacle')
BATCH_KEYS = (
    'visual', 'proprioception', 'words', 'chunk', 'shows_object', 'shows_named', 'places',
)  # fmt: skip
MIN_SHOWN = 3  # of 255: a patch with less of an object does not show it
INSTRUCTED_SHARE = 0.5  # of the samples ask for the object that the episode is about
LABELS = ('label_frame', 'label_object', 'label_chunk')


def save_shard(
    path: Path, frames: Sequence[Frame], tokens: Sequence[npt.NDArray[np.float16]], facts: dict
) -> None:
    """Write one shard, whole or not at all. ``facts`` name its 'task'.

    Without ``frames``, as where the expert solved none of its episodes, it holds its facts only.
    """
    with whole_folder(path) as folder:
        for name, array in _arrays(frames, tokens).items() if frames else ():
            np.save(folder / f'{name}.npy', array)
        (folder / 'facts.json').write_text(json.dumps({**facts, 'frames': len(frames)}))


def _arrays(
    frames: Sequence[Frame], tokens: Sequence[npt.NDArray[np.float16]]
) -> dict[str, npt.NDArray[np.generic]]:
    return {
        'tokens': np.stack(tokens),
        'proprioception': np.stack([f.proprioception for f in frames]),
        'coverage': np.stack([f.coverage for f in frames]),
        'kinds': np.array([f.kinds for f in frames]),
        'object_positions': np.stack([f.object_positions for f in frames]),
        'receptacle': np.stack([f.receptacle for f in frames]),
        'label_frame': np.array([i for i, f in enumerate(frames) for _ in f.labels]),
        'label_object': np.array([label.object_index for f in frames for label in f.labels]),
        'label_chunk': np.stack([label.chunk for f in frames for label in f.labels]),
    }


def _frame_rows(number: int, shard: dict[str, np.ndarray]) -> npt.NDArray[np.int64]:
    frames, first, count = np.unique(shard['label_frame'], return_index=True, return_counts=True)
    return np.stack([np.full(len(frames), number), frames, first, count], axis=1)


class DemonstrationSet:
    """All shards below ``folder``; a sample: a frame, one of its labels and a random template of
    its task (``templates``: task -> sentences with '{object}')."""

    def __init__(
        self, folder: Path, config: EmbeddedConfig, templates: Mapping[str, Sequence[str]]
    ) -> None:
        found = sorted(
            path.parent for path in folder.glob('*/facts.json') if path.parent.suffix == ''
        )
        if not found:
            raise FileNotFoundError(f'no demonstrations below {folder}; collect them first')
        facts = {path: json.loads((path / 'facts.json').read_text()) for path in found}
        shards = [path for path in found if facts[path].get('frames') != 0]
        if all(path.name.startswith('policy') for path in shards):
            raise ValueError(
                f'none of the {len(found)} shards below {folder} holds a solved demonstration; '
                'does the expert solve this task? Try more demonstrations, or less noise_rad'
            )
        self._shards = [
            {name: map_array(shard / f'{name}.npy') for name in ARRAYS + LABELS}
            for shard in shards
        ]
        # (shard, frame, row of its first label, number of labels), the instructed object's first
        rows = np.concatenate([_frame_rows(s, shard) for s, shard in enumerate(self._shards)])
        corrected = np.array([path.name.startswith('policy') for path in shards])[rows[:, 0]]
        self._demonstrated, self._corrected = rows[~corrected], rows[corrected]
        self._templates = [tuple(templates[facts[path]['task']]) for path in shards]
        self._words = {
            (kind, template): encode_words(template.format(object=kind), config)
            for shard, own in zip(self._shards, self._templates, strict=True)
            for kind in map(str, np.unique(shard['kinds']))
            for template in own
        }

    def __len__(self) -> int:
        return len(self._demonstrated) + len(self._corrected)

    def statistics(self) -> dict[str, npt.NDArray[np.float32]]:
        """Mean and spread of proprioception [J], spread of the label deltas [chunk, J], and mean
        and spread of the places [6], see ``batch``."""
        proprioception = np.concatenate([s['proprioception'] for s in self._shards])
        deltas = np.concatenate(
            [
                s['label_chunk'] - s['proprioception'][s['label_frame']][:, None]
                for s in self._shards
            ]
        )
        objects = np.concatenate([s['object_positions'].reshape(-1, 3) for s in self._shards])
        receptacles = np.concatenate([s['receptacle'] for s in self._shards])
        return {
            'proprioception_mean': proprioception.mean(0),
            'proprioception_std': proprioception.std(0) + 1e-2,
            # The arm that is not used hardly moves: a floor keeps its noise from being amplified.
            'delta_scale': np.maximum(deltas.std(0), 0.02),
            'places_mean': np.concatenate([objects.mean(0), receptacles.mean(0)]),
            'places_std': np.concatenate([objects.std(0), receptacles.std(0)]) + 1e-2,
        }

    def batch(
        self, rng: np.random.Generator, size: int, n_corrected: int = 0
    ) -> dict[str, torch.Tensor]:
        """A random batch: visual tokens [B, V, C], words [B, W], chunk [B, 8, J], places [B, 6]:
        where the instructed object is (x, y, z in m), the receptacle (x, y in m) and how far its
        lid is open (rad); [B, V] ``shows_object``: the patch shows some object, ``shows_named``:
        the largest one it shows is the instructed one. ``n_corrected`` of the samples come
        from the policy's own episodes, where there are some."""
        n_corrected = n_corrected if len(self._corrected) else 0
        picks = np.concatenate(
            [
                rng.choice(self._corrected, n_corrected),
                rng.choice(self._demonstrated, size - n_corrected),
            ]
        )
        rows: dict[str, list[np.ndarray]] = {key: [] for key in BATCH_KEYS}
        for shard_number, frame, first, count in picks:
            shard = self._shards[shard_number]
            other = count > 1 and rng.random() >= INSTRUCTED_SHARE
            row = first + (int(rng.integers(1, count)) if other else 0)
            item = int(shard['label_object'][row])
            templates = self._templates[shard_number]
            template = templates[int(rng.integers(len(templates)))]
            rows['visual'].append(shard['tokens'][frame].astype(np.float32))
            rows['proprioception'].append(shard['proprioception'][frame])
            rows['words'].append(self._words[str(shard['kinds'][frame, item]), template])
            rows['chunk'].append(shard['label_chunk'][row])
            coverage = shard['coverage'][frame]
            rows['shows_object'].append(coverage.max(axis=1) >= MIN_SHOWN)
            rows['shows_named'].append((coverage.argmax(axis=1) == item).astype(np.float32))
            places = [shard['object_positions'][frame, item], shard['receptacle'][frame]]
            rows['places'].append(np.concatenate(places))
        return {key: torch.from_numpy(np.stack(values)) for key, values in rows.items()}
