"""Checks that every pruner's settings share. Messages say what arrived and the next move."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_retention_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(
            f'retention_ratio must be in (0, 1], got {ratio}; use 1.0 to disable pruning'
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name} must be one of {list(choices)}, got {value!r}')


def check_range(name: str, value: float, low: float, high: float, hint: str) -> None:
    """``low <= value <= high``, where ``high`` may be infinite; NaN fails."""
    if not low <= value <= high:
        bounds = f'in [{low}, {high}]' if math.isfinite(high) else f'at least {low}'
        raise ValueError(f'{name} must be {bounds}, got {value}; {hint}')


def check_pruning_layer(pruning_layer: int, n_layers: int, first: int) -> None:
    """``first``: 1 for methods that read attention of the layer before, else 0."""
    if not first <= pruning_layer < n_layers:
        raise ValueError(
            f'pruning_layer must be in [{first}, {n_layers - 1}] for a decoder of {n_layers} '
            f'layers, got {pruning_layer}; the input of this 0-based layer is already pruned'
        )
