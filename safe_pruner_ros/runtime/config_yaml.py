"""Strict YAML <-> config dataclasses. Every refusal names file, line and key.

Plain `yaml.safe_load` lets duplicate keys, `.nan` and ``1e3`` (a string in YAML 1.1) through; here
each value is read as the type its dataclass field declares, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from safe_pruner_ros.runtime.config import Config, PolicyConfig, PrunerConfig, RuntimeConfig
from safe_pruner_ros.runtime.config_parameters import override
from safe_pruner_ros.runtime.config_robot import RobotConfig
from safe_pruner_ros.runtime.config_schema import ConfigError, check_value

MAX_FILE_BYTES = 200_000  # the largest shipped file has 7000
MAX_OPEN_BRACKETS = 100  # PyYAML takes seconds for a thousand
_STANDARD = 'tag:yaml.org,2002:'
_INT = re.compile(r'[+-]?[0-9]{1,18}')
_FLOAT = re.compile(r'[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?')


def load_config(
    robot_path: str | Path,
    policy_path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Read ``robot_path`` (sections robot, runtime) and ``policy_path`` (policy, pruner, runtime;
    None: the defaults), then apply ``overrides`` by dotted name (see config_parameters.override).

    Where both files have runtime settings, the policy's win. Raises ConfigError with file, line
    and key, and a suggestion for misspelt keys.
    """
    found = _read_file(Path(robot_path), {'robot': RobotConfig, 'runtime': RuntimeConfig}, {})
    if 'robot' not in found:
        raise ConfigError(f'{robot_path}: has no section robot; see config/robots/sim.yaml')
    if policy_path is not None:
        sections = {'policy': PolicyConfig, 'pruner': PrunerConfig, 'runtime': RuntimeConfig}
        found |= _read_file(Path(policy_path), sections, found)
    config = Config(**found)
    return override(config, overrides) if overrides else config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars of a config dataclass, ready for json or yaml."""
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read_file(
    path: Path, sections: Mapping[str, type[Any]], base: Mapping[str, Any]
) -> dict[str, Any]:
    """Section name -> config object; ``base`` has objects whose values serve as defaults."""
    place = _Place(str(path))
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise place.error(f'is larger than {MAX_FILE_BYTES} bytes; this is no configuration')
        text = path.read_text(encoding='utf-8')
        if _open_brackets(text) > MAX_OPEN_BRACKETS:
            raise place.error('is nested too deeply')
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise place.error(f'cannot be read: {error.strerror}') from None
    except UnicodeDecodeError as error:
        raise place.error(f'is not UTF-8 text: {error.reason} at byte {error.start}') from None
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = mark.line + 1 if mark else 0
        problem = getattr(error, 'problem', None) or str(error)
        raise _Place(str(path), line).error(f'is no valid YAML: {problem}') from None
    except RecursionError:
        raise place.error('is nested too deeply') from None
    if root is None:
        raise place.error(f'is empty; expected the sections {list(sections)}')
    entries = {key: node for key, node, _ in _entries(root, place, list(sections))}
    return {
        key: _read(entries[key], cls, place.at(entries[key], key), base.get(key))
        for key, cls in sections.items()
        if key in entries
    }


def _open_brackets(text: str) -> int:
    """Most brackets open at one place, strings and comments included."""
    depth = deepest = 0
    for char in text:
        if char in '[{':
            depth += 1
            deepest = max(deepest, depth)
        elif char in ']}':
            depth -= 1
    return deepest


@dataclass(frozen=True)
class _Place:
    """Where in which file, for messages."""

    file: str
    line: int = 0
    key: str = ''

    def at(self, node: Any, key: str = '') -> _Place:
        dot = '' if not key or not self.key or key.startswith('[') else '.'
        return _Place(self.file, node.start_mark.line + 1, self.key + dot + key)

    def error(self, text: str) -> ConfigError:
        where = f'{self.file}:{self.line}' if self.line else self.file
        return ConfigError(f'{where}: {self.key + ": " if self.key else ""}{text}')


def _entries(node: Any, place: _Place, known: list[str]) -> Iterator[tuple[str, Any, _Place]]:
    """Checked keys of a mapping with their value nodes; the place is the key's line."""
    if not isinstance(node, yaml.MappingNode) or node.tag != _STANDARD + 'map':
        raise place.at(node).error(f'expected keys and values ({known}), got {_shown(node)}')
    seen: dict[str, int] = {}
    present = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    for key_node, value in node.value:
        here = place.at(key_node)
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None or key_node.tag != _STANDARD + 'str':
            raise here.error(f'keys must be plain words, got {_shown(key_node)}')
        if key in seen:
            raise here.error(f'key {key!r} appears twice, first in line {seen[key]}; remove one')
        if key not in known:
            # A key that stands there already is not what was misspelt.
            near = get_close_matches(key, [name for name in known if name not in present], n=1)
            hint = f'did you mean {near[0]!r}?' if near else f'known keys: {known}'
            raise here.error(f'unknown key {key!r}; {hint}')
        seen[key] = here.line
        yield key, value, here


def _read(node: Any, kind: Any, place: _Place, base: Any = None, item: Any = None) -> Any:
    """Value of ``node`` as the type ``kind``; ``item`` is the field it is for (bounds)."""
    if not node.tag.startswith(_STANDARD) or '/' in node.tag[len(_STANDARD) :]:
        raise place.error(f'tag {node.tag} is not allowed; write a plain value')
    if isinstance(kind, type) and is_dataclass(kind):
        return _read_dataclass(node, kind, place, base)
    if get_origin(kind) is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise place.error(f'expected a list, got {_shown(node)}; write [a, b]')
        inner = get_args(kind)[0]
        return tuple(
            _read(child, inner, place.at(child, f'[{index}]'))
            for index, child in enumerate(node.value)
        )
    if not isinstance(node, yaml.ScalarNode):
        raise place.error(f'expected one value, got {_shown(node)}')
    value = _scalar(node, kind, place)
    if item is not None:
        try:
            check_value(item, value)
        except ConfigError as error:
            raise place.error(str(error)) from None
    return value


def _read_dataclass(node: Any, cls: type[Any], place: _Place, base: Any) -> Any:
    hints = get_type_hints(cls)
    known: dict[str, Field[Any]] = {item.name: item for item in fields(cls)}
    values: dict[str, Any] = {}
    if base is not None:
        values = {name: getattr(base, name) for name in known}
    for key, child, _ in _entries(node, place, list(known)):
        inner_base = values.get(key) if is_dataclass(values.get(key)) else None
        values[key] = _read(child, hints[key], place.at(child, key), inner_base, known[key])
    missing = [
        name
        for name, item in known.items()
        if name not in values and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise place.error(f'misses the keys {missing}')
    try:
        return cls(**values)
    except ConfigError as error:
        raise place.error(str(error)) from None


def _scalar(node: Any, kind: Any, place: _Place) -> Any:
    text, tag = node.value, node.tag[len(_STANDARD) :]
    if kind is bool:
        if tag == 'bool' and text.lower() in ('true', 'false'):
            return text.lower() == 'true'
        raise place.error(f'expected true or false, got {_shown(node)}')
    if kind is int:
        if tag == 'int' and _INT.fullmatch(text):
            return int(text)
        raise place.error(f'expected an integer, got {_shown(node)}')
    if kind is float:
        if tag in ('int', 'float') and _FLOAT.fullmatch(text):
            return float(text)
        if tag == 'str' and not node.style and _FLOAT.fullmatch(text):
            plain = f'{float(text)!r}'
            raise place.error(f'{text!r} is a string in YAML 1.1; write {plain}')
        raise place.error(f'expected a finite number, got {_shown(node)}')
    if tag != 'str':
        raise place.error(f'expected text, got {_shown(node)}; put it in quotes')
    if get_origin(kind) is Literal and text not in get_args(kind):
        near = get_close_matches(text, get_args(kind), n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise place.error(f'must be one of {list(get_args(kind))}, got {text!r}{hint}')
    return text


def _shown(node: Any) -> str:
    """What arrived, short."""
    if isinstance(node, yaml.MappingNode):
        return 'a mapping'
    if isinstance(node, yaml.SequenceNode):
        return 'a list'
    name = node.tag.rsplit(':', 1)[-1]
    return f'{name} {node.value[:40]!r}'
