"""The schema as a flat list, for ROS parameters and launch arguments; overrides by dotted name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from safe_pruner_ros.runtime.config import Config
from safe_pruner_ros.runtime.config_schema import ConfigError, check_value, item_key

ParameterType = Literal['bool', 'int', 'float', 'str', 'int_list', 'str_list']
ParameterValue = bool | int | float | str | list[int] | list[str]
_TYPES: dict[Any, ParameterType] = {
    bool: 'bool',
    int: 'int',
    float: 'float',
    str: 'str',
    tuple[int, ...]: 'int_list',
    tuple[str, ...]: 'str_list',
}
_HINTS: dict[type[Any], dict[str, Any]] = {}


@dataclass(frozen=True)
class ParameterSpec:
    """One overridable value. ``name`` is dotted; items of lists are named by their ``name``
    (joint mappings: by ``joint``): ``robot.joints.astribot_arm_left_joint_1.lower``,
    ``robot.cameras.head.topic``, ``runtime.guard.soft_start_s``, ``pruner.retention_ratio``.

    ``default`` is the value in the Config that the list was made from (after the YAML files);
    lists are Python lists. ``minimum``/``maximum`` are inclusive, ``above`` is exclusive, None is
    unbounded. ``choices`` is empty unless only these strings are accepted.
    """

    name: str
    type: ParameterType
    default: ParameterValue
    doc: str
    unit: str = ''
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()


def _hints(config_class: type[Any]) -> dict[str, Any]:
    """Field types; cached, because evaluating annotations is slow."""
    if config_class not in _HINTS:
        _HINTS[config_class] = get_type_hints(config_class)
    return _HINTS[config_class]


def parameter_specs(config: Config) -> list[ParameterSpec]:
    """Every value of ``config``, in the order of the schema. Names of list items are no values."""
    return list(_specs(config, ''))


def _specs(config: Any, prefix: str) -> Iterator[ParameterSpec]:
    hints = _hints(type(config))
    for item in fields(config):
        name, value, kind = prefix + item.name, getattr(config, item.name), hints[item.name]
        if is_dataclass(value):
            yield from _specs(value, f'{name}.')
        elif _is_item_list(kind):
            key = item_key(get_args(kind)[0])
            for child in value:
                child_prefix = f'{name}.{getattr(child, key)}.'
                for spec in _specs(child, child_prefix):
                    if spec.name != child_prefix + key:
                        yield spec
        else:
            is_choice = get_origin(kind) is Literal
            yield ParameterSpec(
                name=name,
                type='str' if is_choice else _TYPES[kind],
                default=list(value) if isinstance(value, tuple) else value,
                choices=get_args(kind) if is_choice else (),
                **_bounds(item.metadata),
            )


def _bounds(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """As `ParameterSpec` has them: ROS knows one range, so it reaches to the number that says
    "not set"; `check_value` refuses what lies between."""
    bounds = dict(metadata)
    own = bounds.pop('own')
    if isinstance(own, (int, float)):
        bounds['minimum'] = min(bounds['minimum'], own)
    return bounds


def _is_item_list(kind: Any) -> bool:
    return get_origin(kind) is tuple and is_dataclass(get_args(kind)[0])


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """``config`` with ``values`` by dotted name, all checks run again.

    An int is accepted for a float; nothing else is converted. Another ``pruner.method`` first
    drops what was set for one that is not like it (`pruner_settings.for_method`). Raises
    ConfigError for an unknown name (with the nearest one) and for a wrong type or value.
    """
    specs = {spec.name: spec for spec in parameter_specs(config)}
    checked = {}
    for name, value in values.items():
        if name not in specs:
            near = get_close_matches(name, specs, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ConfigError(f'no setting is called {name!r}{hint}')
        checked[name] = _checked(specs[name], value)
    method = checked.get('pruner.method', config.pruner.method)
    if method != config.pruner.method:
        from safe_pruner_ros.runtime.pruner_settings import for_method  # imports torch

        config = replace(config, pruner=for_method(config.pruner, method))
    replaced: Config = _replaced(config, checked, '')
    return replaced


def _checked(spec: ParameterSpec, value: Any) -> Any:
    ok: bool
    if spec.type == 'float':
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if ok else value
    elif spec.type in ('int_list', 'str_list'):
        inner = int if spec.type == 'int_list' else str
        ok = isinstance(value, (list, tuple)) and all(type(item) is inner for item in value)
        value = tuple(value) if ok else value
    else:
        ok = type(value) is {'bool': bool, 'int': int, 'str': str}[spec.type]
    if not ok:
        raise ConfigError(f'{spec.name} must be of type {spec.type}, got {value!r}')
    if spec.choices and value not in spec.choices:
        raise ConfigError(f'{spec.name} must be one of {list(spec.choices)}, got {value!r}')
    return value


def _replaced(config: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """``config`` with the values whose names start with ``prefix``; unchanged parts are shared."""
    changes: dict[str, Any] = {}
    hints = _hints(type(config))
    for item in fields(config):
        name, old = prefix + item.name, getattr(config, item.name)
        if name in values:
            new = values[name]
            try:
                check_value(item, new)
            except ConfigError as error:
                raise ConfigError(f'{prefix}{error}') from None
        elif is_dataclass(old):
            new = _replaced(old, values, f'{name}.')
        elif _is_item_list(hints[item.name]):
            key = item_key(get_args(hints[item.name])[0])
            new = tuple(_replaced(c, values, f'{name}.{getattr(c, key)}.') for c in old)
        else:
            continue
        if new != old:
            changes[item.name] = new
    try:
        return replace(config, **changes) if changes else config
    except ConfigError as error:
        raise ConfigError(f'{prefix.rstrip(".")}: {error}' if prefix else str(error)) from None


def parse_text(spec: ParameterSpec, text: str) -> Any:
    """Launch argument -> value of ``spec.type``; lists are comma separated. ConfigError if not."""
    text = text.strip()
    try:
        if spec.type == 'bool':
            return {'true': True, 'false': False}[text.lower()]
        if spec.type == 'int':
            return int(text)
        if spec.type == 'float':
            return float(text)
        if spec.type in ('int_list', 'str_list'):
            parts = [part.strip() for part in text.split(',') if part.strip()]
            return [int(part) for part in parts] if spec.type == 'int_list' else parts
    except (KeyError, ValueError):
        raise ConfigError(f'{spec.name} must be of type {spec.type}, got {text!r}') from None
    return text
