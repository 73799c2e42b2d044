"""JointCommand -> the message each part of the robot takes. By joint name, in the robot's units.

A sink is a topic, a message class and a builder; publishing is the node's business. Adding one
means one builder and one entry in ``_ADAPTERS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_pruner_ros.ros.conversions import NS_PER_S, ns_to_stamp
from safe_pruner_ros.runtime.config import ConfigError, SinkConfig
from safe_pruner_ros.runtime.joint_mapping import sink_values
from safe_pruner_ros.types import JointCommand

# Values of astribot_msgs/RobotJointController.mode. The default 0 makes the robot's own simulator
# set every target to zero, so mode is always written.
ASTRIBOT_POSITION_MODE = 1


@dataclass(frozen=True)
class CommandSink:
    """Where one part of a command goes. ``build`` makes the message of one control tick."""

    name: str
    topic: str
    message_type: type
    build: Callable[[JointCommand], Any]


def make_sink(
    config: SinkConfig, period_s: float, dry_run: bool, message_type: type | None = None
) -> CommandSink:
    """A sink for ``config``; ``period_s`` is the control period.

    With ``dry_run`` the same messages go to ``~/preview/<name>``, where no robot listens. Raises
    ConfigError if the message package of the adapter is not installed.
    """
    module, class_name, builder = _ADAPTERS[config.adapter]
    if message_type is None:
        message_type = _import_message(config, module, class_name)
    cls = message_type

    def build(command: JointCommand) -> Any:
        names, values = _finite_values(config, command)
        return builder(cls, names, values, command.stamp_ns, period_s)

    topic = f'~/preview/{config.name}' if dry_run else config.topic
    return CommandSink(config.name, topic, message_type, build)


def _import_message(config: SinkConfig, module: str, class_name: str) -> type:
    try:
        message_type: type = getattr(importlib.import_module(module), class_name)
    except ImportError as error:
        raise ConfigError(
            f'sink {config.name!r} uses the adapter {config.adapter}, which needs {module} '
            f'({error}); build that package in your workspace, source it, and start again'
        ) from error
    return message_type


def _finite_values(config: SinkConfig, command: JointCommand) -> tuple[list[str], list[float]]:
    """Names and values of this sink in its order and in the robot's units; every one finite."""
    if len(command.positions) != len(command.joint_names):
        raise ValueError(
            f'command has {len(command.positions)} values for {len(command.joint_names)} joints'
        )
    names, values = sink_values(config, command)
    # The guard has checked already; scaling can still overflow, and nothing may leave non-finite.
    if len(values) != len(config.joints) or not np.isfinite(values).all():
        raise ValueError(f'command for sink {config.name!r} is not usable: {values.tolist()}')
    return list(names), [float(value) for value in values]


def _joint_trajectory(
    cls: type, names: list[str], values: list[float], stamp_ns: int, period_s: float
) -> Any:
    # One point, one control period ahead. Stamp 0 means "starts now" to ros2_controllers; with
    # the time of the command there, a message that is late by a period would be refused.
    from trajectory_msgs.msg import JointTrajectoryPoint

    msg = cls()
    msg.joint_names = names
    point = JointTrajectoryPoint()
    point.positions = values
    period_ns = round(period_s * NS_PER_S)
    point.time_from_start.sec = period_ns // NS_PER_S
    point.time_from_start.nanosec = period_ns % NS_PER_S
    msg.points = [point]
    return msg


def _float64_multiarray(
    cls: type, names: list[str], values: list[float], stamp_ns: int, period_s: float
) -> Any:
    msg = cls()
    msg.data = values
    return msg


def _joint_state(
    cls: type, names: list[str], values: list[float], stamp_ns: int, period_s: float
) -> Any:
    msg = cls()
    msg.header.stamp = ns_to_stamp(stamp_ns)
    msg.name = names
    msg.position = values
    return msg


def _astribot_controller(
    cls: type, names: list[str], values: list[float], stamp_ns: int, period_s: float
) -> Any:
    msg = cls()
    msg.header.stamp = ns_to_stamp(stamp_ns)
    msg.mode = ASTRIBOT_POSITION_MODE
    msg.name = names
    msg.command = values
    return msg


_ADAPTERS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    'joint_trajectory': ('trajectory_msgs.msg', 'JointTrajectory', _joint_trajectory),
    'float64_multiarray': ('std_msgs.msg', 'Float64MultiArray', _float64_multiarray),
    'joint_state': ('sensor_msgs.msg', 'JointState', _joint_state),
    'astribot_controller': ('astribot_msgs.msg', 'RobotJointController', _astribot_controller),
}
