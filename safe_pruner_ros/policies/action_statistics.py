"""Dataset statistics of a checkpoint: from normalised to physical actions, and back for state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Bounds = Literal['q99', 'min_max']

_KEYS: Mapping[Bounds, tuple[str, str]] = {'q99': ('q01', 'q99'), 'min_max': ('min', 'max')}


# Stands for a span of zero where the checkpoint's code adds no epsilon; keeps values finite.
ZERO_SPAN = 1e-8


@dataclass(frozen=True)
class Range:
    """What -1 and 1 stand for, per dimension [D]. Where ``mask`` is False the value is raw (a
    gripper, as a rule). ``epsilon`` is what the checkpoint's code adds to the span: 1e-8 in
    OpenVLA-OFT, 1e-6 in openpi, 0 in OpenVLA and lerobot."""

    low: FloatArray
    high: FloatArray
    mask: npt.NDArray[np.bool_]
    epsilon: float = 0.0

    def __len__(self) -> int:
        return len(self.low)

    def unnormalise(self, values: npt.ArrayLike) -> FloatArray:
        """[..., D] in [-1, 1] -> physical."""
        values = np.asarray(values, np.float64)
        physical = 0.5 * (values + 1) * (self.high - self.low + self.epsilon) + self.low
        return np.where(self.mask, physical, values)

    def normalise(self, values: npt.ArrayLike, *, clip: bool = True) -> FloatArray:
        """[..., D] physical -> [-1, 1]. OpenVLA-OFT clips (213c5ff, openvla_utils.py:649-679),
        pi0.5 does not."""
        values = np.asarray(values, np.float64)
        span = self.high - self.low + self.epsilon
        scaled = 2 * (values - self.low) / np.where(span == 0, ZERO_SPAN, span) - 1
        normalised: FloatArray = np.where(self.mask, scaled, values)
        return normalised.clip(-1.0, 1.0) if clip else normalised

    def first(self, n: int) -> Range:
        return Range(self.low[:n], self.high[:n], self.mask[:n], self.epsilon)


def choose_key(available: Collection[str], key: str, source: str) -> str:
    """``key``, or the only one there is for ''. Raises ValueError listing those there are."""
    if not key and len(available) == 1:
        return next(iter(available))
    if key not in available:
        asked = f'no statistics for {key!r}' if key else 'statistics of several data sets'
        raise ValueError(
            f'{source} has {asked}; choose from {sorted(available)} as statistics_key'
        )
    return key


def choose_statistics(statistics: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    """The data set's entry. Raises ValueError listing the keys there are."""
    entry = statistics[choose_key(statistics, key, source)]
    if not isinstance(entry, dict):
        raise ValueError(f'{source}: the entry {key!r} must be a mapping, got {entry!r:.80}')
    return entry


def read_range(
    entry: Mapping[str, Any], group: str, bounds: Bounds = 'q99', epsilon: float = 0.0
) -> Range:
    """``group`` is 'action' or 'proprio'. Raises ValueError for what is missing or not finite."""
    if bounds not in _KEYS:
        raise ValueError(f'bounds must be one of {list(_KEYS)}, got {bounds!r}')
    low_key, high_key = _KEYS[bounds]
    values = entry.get(group)
    if not isinstance(values, Mapping):
        raise ValueError(f'the statistics have no {group!r}, only {sorted(entry)}')
    missing = [key for key in (low_key, high_key) if key not in values]
    if missing:
        raise ValueError(f'the {group} statistics miss {missing}, they have {sorted(values)}')
    try:
        low, high = (np.asarray(values[key], np.float64) for key in (low_key, high_key))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'the {group} statistics must be lists of numbers, got {low_key} '
            f'{values[low_key]!r:.80} and {high_key} {values[high_key]!r:.80}'
        ) from error
    flags = values.get('mask', [True] * low.size)
    if not isinstance(flags, list) or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError(
            f'the mask of the {group} statistics must be a list of true and false, got '
            f'{flags!r:.80}; numpy would take "false" and NaN for true'
        )
    mask = np.array(flags, bool)
    if not low.shape == high.shape == mask.shape or low.ndim != 1:
        raise ValueError(
            f'the {group} statistics disagree in size: {low_key} {list(low.shape)}, '
            f'{high_key} {list(high.shape)}, mask {list(mask.shape)}'
        )
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (high >= low)[mask].all()):
        raise ValueError(
            f'the {group} statistics must be finite with {low_key} <= {high_key}, got '
            f'{low.tolist()} and {high.tolist()}'
        )
    return Range(low, high, mask, epsilon)
