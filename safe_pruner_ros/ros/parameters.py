"""The config schema as ROS parameters: declared with range and meaning, read back, guarded.

Dotted names are the schema's (``pruner.retention_ratio``, ``robot.joints.<name>.upper``). They are
declared when the node is configured, because the YAML files decide which ones exist. While the
node is active only ``LIVE_PARAMETERS`` may change: limits must not move under moving arms.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from safe_pruner_ros.ros.resources import config_file
from safe_pruner_ros.runtime.config import Config, ConfigError
from safe_pruner_ros.runtime.config_parameters import ParameterSpec, override, parameter_specs
from safe_pruner_ros.runtime.config_yaml import load_config

LIVE_PRUNER_PARAMETERS = ('pruner.retention_ratio', 'pruner.similarity_threshold')
LIVE_PARAMETERS = ('instruction', *LIVE_PRUNER_PARAMETERS)

# Before a configuration is read: name, default, meaning.
_NODE_PARAMETERS: tuple[tuple[str, Any, str], ...] = (
    ('robot_file', 'sim', 'robot: a name in config/robots, or the path of a YAML file'),
    ('policy_file', 'embedded', 'policy: a name in config/policies, or the path of a YAML file'),
    (
        'instruction',
        '',
        'what the robot shall do; may change while active; empty: wait for topic. What comes on '
        'the topic, and what is refused, makes it empty',
    ),
    ('autostart', False, 'configure and activate without a lifecycle manager'),
    (
        'activation_timeout_s',
        10.0,
        'activate waits this long for fresh data of every source; 0 or more [s]',
    ),
    (
        'diagnostics_rate_hz',
        2.0,
        'rate of /diagnostics, once a second while activate waits; 0.1 to 100; counts from the '
        'start of the node on [Hz]',
    ),
)
# Least and most of the numbers among them; a wait without end, or a rate of zero, is a mute node.
_NODE_BOUNDS = {'activation_timeout_s': (0.0, math.inf), 'diagnostics_rate_hz': (0.1, 100.0)}
_OF_ROBOT = 'robot.'
# Of these and rclpy's own: what a session is built from, besides the schema.
_SESSION_PARAMETERS = ('robot_file', 'policy_file', 'use_sim_time')
# rclpy's own, which may stand in a parameter file as well.
_FOREIGN = ('use_sim_time', 'qos_overrides.', 'start_type_description_service')


class NodeParameters:
    """Owns every parameter of the node.

    ``is_active`` answers whether the arms may be moving; ``on_live_change`` applies a change of
    the live parameters (new config, new instruction or None) and raises ValueError to refuse it.
    """

    def __init__(
        self,
        node: Node,
        is_active: Callable[[], bool],
        on_live_change: Callable[[Config, str | None], None],
    ) -> None:
        self._node = node
        self._is_active, self._on_live_change = is_active, on_live_change
        self._declared: dict[str, ParameterSpec] = {}
        self._base: Config | None = None
        self._initial: dict[str, Any] = {}  # what each was declared with
        self._loaded: dict[str, Any] = {}  # what the last `load` answered with
        self._robot: tuple[str, str] | None = None  # file and name
        self._first_robot: tuple[str, str] | None = None  # whom the values at the start are for
        self._set_for: dict[tuple[str, str], dict[str, Any]] = {}
        self._loading = False
        for name, default, doc in _NODE_PARAMETERS:
            node.declare_parameter(name, default, ParameterDescriptor(description=doc))
        # rclpy asks the callback added last first, and one refusal ends it: its own, which would
        # switch the clock with use_sim_time, is not reached.
        node.add_on_set_parameters_callback(self._on_set)

    def value(self, name: str) -> Any:
        value = self._node.get_parameter(name).value
        # An empty list has no type in ROS; rclpy hands it back as bytes.
        return list(value) if isinstance(value, (bytes, tuple)) or _is_array(value) else value

    def diagnostics_period_s(self) -> float:
        """As set; as by default if that is out of bounds, so that a `load` which refuses it can
        be seen."""
        name = 'diagnostics_rate_hz'
        rate_hz = self.value(name)
        if not _is_within_bounds(name, rate_hz):
            rate_hz = {name: default for name, default, _ in _NODE_PARAMETERS}[name]
        return float(1.0 / rate_hz)

    def withdraw_instruction(self) -> None:
        """Make the parameter empty: what it says is not in force any more, and a later configure
        must not bring it back."""
        if not self.value('instruction'):
            return
        before, self._loading = self._loading, True  # not for `_on_set`
        try:
            self._node.set_parameters([Parameter('instruction', value='')])
        finally:
            self._loading = before

    def load(self) -> Config:
        """Read the YAML files, declare every value, apply what was set. Raises ConfigError, and
        then every parameter is as it was.

        What a user set before stays set, as long as the new files still know it. What is called
        ``robot.*`` belongs to the robot it was set for: dry_run=false must not move another one.
        """
        for name in _NODE_BOUNDS:
            _check_bounds(name, self.value(name))
        robot_file = config_file('robots', self.value('robot_file'))
        policy_file = config_file('policies', self.value('policy_file'))
        base = self._for_method(load_config(robot_file, policy_file))
        robot = (str(robot_file), base.robot.name)
        specs = {spec.name: spec for spec in parameter_specs(base)}
        is_first = robot == (self._first_robot or robot)
        self._refuse_unknown_overrides(specs, is_first)
        was_set = self._was_set()
        if self._robot is not None:
            of_robot = {name: v for name, v in was_set.items() if name.startswith(_OF_ROBOT)}
            self._set_for[self._robot] = of_robot
        kept = {n: v for n, v in was_set.items() if not n.startswith(_OF_ROBOT) and n in specs}
        kept |= {n: v for n, v in self._set_for.get(robot, {}).items() if n in specs}

        declared, initial = dict(self._declared), dict(self._initial)
        values = {name: self.value(name) for name in declared}
        before = self._base
        self._loading = True
        try:
            self._undeclare()
            for spec in specs.values():
                self._declare(spec, ignore_override=not is_first)
            self._initial = {name: self.value(name) for name in specs}
            self._set(kept)
            self._base = base
            config = self._config()
        except Exception:
            self._undeclare()
            for name, spec in declared.items():
                self._declare(spec, values[name])
            self._base, self._initial = before, initial
            raise
        finally:
            self._loading = False
        self._robot, self._first_robot = robot, self._first_robot or robot
        self._loaded = self._locked_values()
        return config

    def _was_set(self) -> dict[str, Any]:
        """What was set after it had been declared, by name.

        Compared with the value it was declared with, not with the file's: who sets a value that
        was given at the start back to what the file says has set it.
        """
        values = {name: self.value(name) for name in self._declared}
        return {name: value for name, value in values.items() if value != self._initial[name]}

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            (result,) = self._node.set_parameters([Parameter(name, value=value)])
            if not result.successful:
                raise ConfigError(
                    f'parameter {name} was set to {value!r}, which does not fit the new files '
                    f'({result.reason}); set it to something else'
                )

    def changed_since_load(self) -> list[str]:
        """Names of values that no longer are what `load` answered with.

        A node that is inactive takes changes, but what was built from the old values stays as it
        is. Live parameters are not listed: those reach what is loaded at once.
        """
        now = self._locked_values()
        return sorted(name for name, value in self._loaded.items() if now.get(name) != value)

    def _locked_values(self) -> dict[str, Any]:
        names = [*_SESSION_PARAMETERS, *self._declared]
        return {name: self.value(name) for name in names if name not in LIVE_PARAMETERS}

    def _for_method(self, base: Config) -> Config:
        """``base`` under the method that was asked for: what the policy file says for another
        method must not show as the value of a parameter, or pass for one that was set."""
        name = 'pruner.method'
        given = getattr(self._node, '_parameter_overrides', {}).get(name)
        asked = given.value if given is not None else base.pruner.method
        return override(base, {name: self._was_set().get(name, asked)})

    def _config(self, changes: dict[str, Any] | None = None) -> Config:
        assert self._base is not None
        values = {name: self.value(name) for name in self._declared} | (changes or {})
        changed = {n: v for n, v in values.items() if v != _ros_value(self._declared[n])}
        return override(self._base, changed)

    def _declare(
        self, spec: ParameterSpec, value: Any = None, ignore_override: bool = False
    ) -> None:
        """With ``value``, or with the file's or what was given at the start."""
        try:
            self._node.declare_parameter(
                spec.name,
                _ros_value(spec) if value is None else value,
                _descriptor(spec),
                ignore_override=value is not None
                or (ignore_override and spec.name.startswith(_OF_ROBOT)),
            )
        except Exception as error:
            raise ConfigError(f'parameter {spec.name}: {error}') from error
        self._declared[spec.name] = spec

    def _undeclare(self) -> None:
        for name in self._declared:
            self._node.undeclare_parameter(name)
        self._declared.clear()

    def _refuse_unknown_overrides(self, specs: Iterable[str], is_first: bool) -> None:
        """rclpy ignores a misspelt name in a parameter file; a limit would silently stay put.

        What was given for the first robot (``is_first``) is not applied to another one.
        """
        known = [*specs, *(name for name, _, _ in _NODE_PARAMETERS)]
        given = list(getattr(self._node, '_parameter_overrides', {}))
        if not is_first and (others := [name for name in given if name.startswith(_OF_ROBOT)]):
            self._node.get_logger().warning(
                f'{others} were given at the start for another robot and do not count for this one'
            )
            given = [name for name in given if name not in others]
        for name in given:
            if name not in known and not name.startswith(_FOREIGN):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f'; did you mean {near[0]!r}?' if near else ''
                raise ConfigError(f'no parameter {name!r} exists{hint}')

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        """Check changes; apply the live ones. A callback that raised would end the node."""
        if self._loading:
            return SetParametersResult(successful=True)
        try:
            self._check(parameters)
        except Exception as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check(self, parameters: list[Parameter]) -> None:
        changes = {parameter.name: parameter.value for parameter in parameters}
        for name in _NODE_BOUNDS:
            if name in changes:
                _check_bounds(name, changes[name])
        if self._is_active():
            locked = sorted(
                name
                for name in changes
                if name in _SESSION_PARAMETERS
                or (name not in LIVE_PARAMETERS and not name.startswith(_FOREIGN))
            )
            if locked:
                raise ValueError(
                    f'{locked} cannot change while the node is active; deactivate and clean up, '
                    f'set them, then configure again. Live: {list(LIVE_PARAMETERS)}'
                )
        if self._base is None:
            return
        schema = {name: value for name, value in changes.items() if name in self._declared}
        config = self._config(schema)
        if any(name in LIVE_PARAMETERS for name in changes):
            self._on_live_change(config, changes.get('instruction'))


def _is_within_bounds(name: str, value: float) -> bool:
    low, high = _NODE_BOUNDS[name]
    return math.isfinite(value) and low <= value <= high


def _check_bounds(name: str, value: float) -> None:
    if not _is_within_bounds(name, value):
        low, high = _NODE_BOUNDS[name]
        wanted = f'in [{low:g}, {high:g}]' if math.isfinite(high) else f'{low:g} or more'
        raise ConfigError(f'{name} must be finite and {wanted}, got {value:g}')


def _is_array(value: object) -> bool:
    return type(value).__name__ == 'array'


def _ros_value(spec: ParameterSpec) -> Any:
    return float(spec.default) if spec.type == 'float' else spec.default  # type: ignore[arg-type]


def _descriptor(spec: ParameterSpec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.doc)
    if spec.choices:
        descriptor.additional_constraints = f'one of {", ".join(spec.choices)}'
    if spec.above is not None:
        descriptor.additional_constraints = f'greater than {spec.above:g}'
    low = spec.minimum if spec.minimum is not None else spec.above
    if spec.type == 'float' and (low is not None or spec.maximum is not None):
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=float(-1e300 if low is None else low),
                to_value=float(1e300 if spec.maximum is None else spec.maximum),
            )
        ]
    elif spec.type == 'int' and (low is not None or spec.maximum is not None):
        descriptor.integer_range = [
            IntegerRange(
                from_value=int(-(2**63) if low is None else low),
                to_value=int(2**63 - 1 if spec.maximum is None else spec.maximum),
            )
        ]
    # An empty list has no type in ROS, so lists may change it; the schema checks the value.
    descriptor.dynamic_typing = spec.type in ('int_list', 'str_list')
    return descriptor
