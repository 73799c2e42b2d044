"""Settings brought to the type of their field, so that one value has one form: 1 and 1.0 of a
float are the same setting, a layer of 2.5 is none. Ranges are each config's own business."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_WORDS = {'true': True, 'false': False}


def canonical_settings(config: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` in the types of the dataclass ``config``, whose fields they are.

    Raises ValueError for a value of another kind.
    """
    kinds = get_type_hints(config)
    return {name: _canonical(name, kinds[name], value) for name, value in settings.items()}


def _canonical(name: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        (kind,) = (part for part in get_args(kind) if part is not type(None))
        return _canonical(name, kind, value)
    wanted, convert = _KINDS.get(get_origin(kind) or kind, ('', None))
    if convert is None:  # a choice of words, which the config checks by itself
        return value
    try:
        return convert(value)
    except ValueError:
        raise ValueError(f'{name} must be {wanted}, got {value!r}') from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if not _number(value).is_integer():
        raise ValueError
    return int(value)


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if isinstance(value, str) or value not in (0, 1):
        raise ValueError
    return bool(value)


def _layers(value: Any) -> tuple[int, ...]:
    # Unquoted in YAML, or quoted on a command line, 0,-2,-1 arrives as text.
    if isinstance(value, str):
        value = [float(layer) for layer in value.split(',')]
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(_whole(layer) for layer in values)


_KINDS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    float: ('a finite number', _number),
    int: ('a whole number', _whole),
    bool: ('True or False (or 1 or 0)', _flag),
    tuple: ('whole numbers like 0,-2,-1', _layers),
}
