"""What tells cells of one method apart: the keys of their configurations that differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]
Show = Callable[[Config], str]


def differing(configs: Iterable[Config]) -> list[tuple[str, Show]]:
    """(name, how to show it) of each key that is not the same in all; the training seed stands
    for the checkpoint where it tells as many apart."""
    distinct = list({_text(config): config for config in configs}.values())
    names = list(dict.fromkeys(name for config in distinct for name in config))
    names = [name for name in names if len(_values(distinct, name)) > 1]
    if 'checkpoint' in names and 'training_seed' in names:
        both = {(_show(c, 'checkpoint'), _show(c, 'training_seed')) for c in distinct}
        if len(both) == len(_values(distinct, 'training_seed')):
            names.remove('checkpoint')
    return [(name.replace('_', ' '), _shower(name)) for name in names]


def labeller(configs: Iterable[Config]) -> Show:
    """Config -> ' (split test, latency ticks 0)', '' where all configurations are the same."""
    keys = differing(configs)

    def label(config: Config) -> str:
        parts = [f'{name} {show(config)}' for name, show in keys]
        return f' ({", ".join(parts)})' if parts else ''

    return label


def _shower(name: str) -> Show:
    return lambda config: _show(config, name)


def _values(configs: Sequence[Config], name: str) -> set[str]:
    return {_show(config, name) for config in configs}


def _show(config: Config, name: str) -> str:
    """A line of an older version may lack the key: 'not said', which is not None."""
    if name not in config:
        return 'not said'
    value = config[name]
    if isinstance(value, (Mapping, list)) and value:  # too long for a column
        return hashlib.sha256(_text(value).encode()).hexdigest()[:6]
    return str(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
