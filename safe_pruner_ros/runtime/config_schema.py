"""How settings are declared: dataclass fields with default, unit, bounds and meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields
from typing import Any


class ConfigError(ValueError):
    """A setting is wrong; the message names it, what arrived and what is accepted."""


def setting(
    default: Any,
    doc: str,
    unit: str = '',
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    own: float | str | None = None,
) -> Any:
    """A dataclass field with its documentation; ``above`` is an exclusive minimum. ``own``:
    the value that says "not set"; a number may lie outside the bounds."""
    metadata = {'doc': doc, 'unit': unit, 'minimum': minimum, 'maximum': maximum, 'above': above}
    return field(default=default, metadata={**metadata, 'own': own})


def check_bounds(config: Any) -> None:
    """Raise ConfigError for the first number of ``config`` that is not finite or out of bounds."""
    for item in fields(config):
        check_value(item, getattr(config, item.name))


def check_value(item: Field[Any], value: Any) -> None:
    """Raise ConfigError unless a number is finite and inside the bounds of its field."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):  # NaN passes every comparison below
        raise ConfigError(f'{item.name} must be finite, got {value}')
    bounds = item.metadata
    low, high, above = bounds.get('minimum'), bounds.get('maximum'), bounds.get('above')
    if value == bounds.get('own'):
        return
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        raise ConfigError(f'{item.name} must be {describe_bounds(bounds)}, got {value}')


def describe_bounds(bounds: Mapping[str, Any]) -> str:
    """'in (0, 1]' and the like, from a field's metadata."""
    low, high, above = bounds.get('minimum'), bounds.get('maximum'), bounds.get('above')
    left = f'({above:g}' if above is not None else f'[{low:g}' if low is not None else '(-inf'
    right = f'{high:g}]' if high is not None else 'inf)'
    own = bounds.get('own')
    return f'in {left}, {right}' + ('' if own is None else f", or {own:g} for the method's own")


def check_unique(values: Sequence[str], what: str) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ConfigError(f'{what} must be unique, repeated: {repeated}')


def item_key(config_class: type[Any]) -> str:
    """The field that names one item of a list of ``config_class``: 'name', or 'joint'."""
    names = [item.name for item in fields(config_class)]
    return 'joint' if names[0] == 'joint' else 'name'
