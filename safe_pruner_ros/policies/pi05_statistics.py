"""Normalisation of states and actions: where the statistics lie and what is done with them.

- openpi: ``assets/<asset id>/norm_stats.json`` with {"norm_stats": {"state": {...}, "actions":
  {...}}}; quantiles: 2 (x - q01) / (q99 - q01 + 1e-6) - 1 (openpi `transforms.py`).
- lerobot: ``policy_preprocessor_step_<n>_normalizer_processor.safetensors`` with tensors
  ``observation.state.q01``, ``action.q01``, ...; the same without the 1e-6, but 1e-8 in place of a
  width of zero (lerobot `processor/normalize_processor.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

FloatArray = npt.NDArray[np.float64]

LEROBOT_PATTERN = 'policy_preprocessor_step_*_normalizer_processor.safetensors'
OPENPI_EPSILON = 1e-6
ZERO_WIDTH = 1e-8


@dataclass(frozen=True)
class Affine:
    """normalised = (raw - ``offset``) / ``scale``, value by value; both [n]."""

    offset: FloatArray
    scale: FloatArray

    def normalize(self, raw: FloatArray) -> FloatArray:
        return (raw - self.offset) / self.scale

    def denormalize(self, normalised: FloatArray) -> FloatArray:
        return normalised * self.scale + self.offset

    def first(self, n: int, what: str, padded_to: int) -> Affine:
        """For a robot of ``n`` values. Longer statistics are accepted only when they are padded
        to the network's own width: otherwise they belong to another robot."""
        if len(self.offset) not in (n, padded_to):
            raise ValueError(
                f'the {what} statistics of the checkpoint have {len(self.offset)} values, the '
                f'robot has {n} joints; correct "joints" or take a checkpoint of this robot'
            )
        return Affine(self.offset[:n], self.scale[:n])


@dataclass(frozen=True)
class Statistics:
    state: Affine
    action: Affine


def quantile_affine(q01: FloatArray, q99: FloatArray, epsilon: float) -> Affine:
    """[q01, q99] -> [-1, 1]."""
    width = q99 - q01 + epsilon
    width = np.where(width == 0, ZERO_WIDTH, width)
    return Affine(q01 + width / 2, width / 2)


def load_statistics(folder: Path, asset_id: str = '') -> Statistics:
    """Statistics of a checkpoint in either layout; ``asset_id`` chooses among several of openpi.

    Raises FileNotFoundError or ValueError that lists the available ones.
    """
    lerobot = sorted(folder.glob(LEROBOT_PATTERN))
    if lerobot and not asset_id:
        return _read_lerobot(lerobot[0])
    assets = folder / 'assets'
    found = {
        path.parent.relative_to(assets).as_posix(): path
        for path in sorted(assets.rglob('norm_stats.json'))
    }
    if not found:
        raise FileNotFoundError(
            f'no normalisation statistics in {folder}: neither assets/<asset id>/norm_stats.json '
            f'(openpi; its converter copies the assets only when they lie beside the parameters) '
            f'nor {LEROBOT_PATTERN} (lerobot); copy them there'
        )
    if not asset_id and len(found) == 1:
        asset_id = next(iter(found))
    if asset_id not in found:
        raise ValueError(
            f'no statistics {asset_id!r} in {assets}; set "statistics" to one of {sorted(found)}'
        )
    return _read_openpi(found[asset_id])


def _read_openpi(path: Path) -> Statistics:
    try:
        groups = json.loads(path.read_text())['norm_stats']
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not an openpi statistics file (no "norm_stats"): {error!r}'
        ) from error
    return _statistics(path, groups, 'state', 'actions', OPENPI_EPSILON)


def _read_lerobot(path: Path) -> Statistics:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a readable safetensors file: {error}') from error
    groups: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        group, _, entry = name.rpartition('.')
        groups.setdefault(group, {})[entry] = value
    return _statistics(path, groups, 'observation.state', 'action', 0.0)


def _statistics(
    path: Path, groups: Mapping[str, Any], state: str, action: str, epsilon: float
) -> Statistics:
    affines = []
    for group in (state, action):
        if group not in groups:
            raise ValueError(f'{path} has no statistics of {group!r}; it has {sorted(groups)}')
        entries = groups[group]
        missing = [name for name in ('q01', 'q99') if entries.get(name) is None]
        if missing:
            raise ValueError(
                f'{path}: {group!r} lacks the quantiles {missing}, which pi0.5 is normalised '
                f'with; it has {sorted(entries)}. Compute them from the training data'
            )
        low, high = (np.asarray(entries[name], np.float64).ravel() for name in ('q01', 'q99'))
        if low.shape != high.shape or not (np.isfinite(low) & np.isfinite(high)).all():
            raise ValueError(
                f'{path}: q01 and q99 of {group!r} must be finite and of one length, got '
                f'{low.tolist()} and {high.tolist()}'
            )
        affines.append(quantile_affine(low, high, epsilon))
    return Statistics(*affines)
