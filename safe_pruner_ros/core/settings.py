"""Checks that every pruner's settings share. Messages say what arrived and the next move."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

# Metadata of a setting that says whose attention ranks, 'prefill' by default. On a causal decoder
# an image token is seen by later rows only: a mean over all rows keeps the top of the picture,
# whatever it shows. There the default is the last row.
LAST_IF_CAUSAL = {'causal': 'last'}


def causal_defaults(config: type[Any]) -> dict[str, Any]:
    """Defaults of a config class on a causal decoder, where they are others."""
    return {
        item.name: item.metadata['causal'] for item in fields(config) if 'causal' in item.metadata
    }


def check_retention_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(
            f'retention_ratio must be in (0, 1], got {ratio}; use 1.0 to disable pruning'
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f'{name} must be one of {list(choices)}, got {value!r}')


def check_range(name: str, value: float, low: float, high: float, hint: str) -> None:
    """``low <= value <= high`` and finite, also where ``high`` is not; NaN fails."""
    if not low <= value <= high or math.isinf(value):
        bounds = f'in [{low}, {high}]' if math.isfinite(high) else f'at least {low}'
        bounds += ' and finite' if value == math.inf else ''
        raise ValueError(f'{name} must be {bounds}, got {value}; {hint}')


def check_unused(name: str, value: object, default: object, why: str) -> None:
    """A setting that can have no effect must stay at its default: who sets it expects one."""
    if value != default:
        raise ValueError(f'{name} has no effect {why}, got {value}; leave it at {default}')


def check_pruning_layer(pruning_layer: int, n_layers: int, first: int) -> None:
    """``first``: 1 for methods that read attention of the layer before, else 0."""
    if not first <= pruning_layer < n_layers:
        raise ValueError(
            f'pruning_layer must be in [{first}, {n_layers - 1}] for a decoder of {n_layers} '
            f'layers, got {pruning_layer}; the input of this 0-based layer is already pruned'
        )


def resolve_layers(
    layers: tuple[int, ...] | None, n_layers: int, default: Iterable[int]
) -> tuple[int, ...]:
    """``deep_layers`` as 0-based layers, each once: negative ones counted from the end, None is
    ``default``. Raises ValueError for a layer outside the decoder or none at all."""
    chosen = tuple(default if layers is None else layers)
    if not chosen:
        raise ValueError(
            "deep_layers must name at least one layer, got (); use None for the method's own"
        )
    for layer in chosen:
        if not -n_layers <= layer < n_layers:
            raise ValueError(
                f'deep_layers must lie in a decoder of {n_layers} layers, got {layer}'
            )
    return tuple(dict.fromkeys(layer % n_layers for layer in chosen))
