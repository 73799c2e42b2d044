"""Dataset statistics of a checkpoint: from normalised to physical actions, and back for state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Bounds = Literal['q99', 'min_max']

_KEYS: Mapping[Bounds, tuple[str, str]] = {'q99': ('q01', 'q99'), 'min_max': ('min', 'max')}


@dataclass(frozen=True)
class Range:
    """What -1 and 1 stand for, per dimension [D]. Where ``mask`` is False the value is raw (a
    gripper, as a rule). ``epsilon`` as the checkpoint's code adds it: 1e-8 in OpenVLA-OFT, 0 in
    OpenVLA."""

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

    def normalise(self, values: npt.ArrayLike) -> FloatArray:
        """[..., D] physical -> [-1, 1], clipped (openvla-oft 213c5ff, openvla_utils.py:649-679).

        The epsilon here is 1e-8 whatever `epsilon` is: it keeps a constant dimension finite.
        """
        values = np.asarray(values, np.float64)
        scaled = 2 * (values - self.low) / (self.high - self.low + 1e-8) - 1
        return np.where(self.mask, scaled, values).clip(-1.0, 1.0)


def choose_statistics(statistics: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    """The data set's entry. Raises ValueError listing the keys there are."""
    if key not in statistics:
        raise ValueError(
            f'{source} has no statistics for {key!r}; choose from {sorted(statistics)}'
        )
    entry: dict[str, Any] = statistics[key]
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
    low, high = np.array(values[low_key], np.float64), np.array(values[high_key], np.float64)
    mask = np.array(values.get('mask', np.ones(len(low))), bool)
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
