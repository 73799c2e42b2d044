"""Command messages of a sink -> joint targets, in the simulated robot's units. Pure functions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from safe_pruner_ros.ros.conversions import (
    NS_PER_S,
    InputError,
    joint_state_to_positions,
    stamp_to_ns,
)
from safe_pruner_ros.ros.trajectory_follower import Waypoints
from safe_pruner_ros.runtime.config import ConfigError, SinkConfig

MAX_POINTS = 10_000


def command_type(sink: SinkConfig) -> type:
    """Message class of a sink that the simulator can serve. Raises ConfigError for others."""
    if sink.adapter == 'joint_trajectory':
        from trajectory_msgs.msg import JointTrajectory

        return JointTrajectory  # type: ignore[no-any-return]
    if sink.adapter == 'joint_state':
        from sensor_msgs.msg import JointState

        return JointState  # type: ignore[no-any-return]
    if sink.adapter == 'float64_multiarray':
        from std_msgs.msg import Float64MultiArray

        return Float64MultiArray  # type: ignore[no-any-return]
    raise ConfigError(
        f'the simulator does not take {sink.adapter} (sink {sink.name!r}); use a robot file with '
        'joint_trajectory, joint_state or float64_multiarray'
    )


def read_command(sink: SinkConfig, msg: Any, now_ns: int) -> Waypoints:
    """Waypoints of the joints that the message names. Raises InputError."""
    if sink.adapter == 'joint_trajectory':
        names, times_ns, rows = _trajectory(sink, msg, now_ns)
    elif sink.adapter == 'joint_state':
        by_name = joint_state_to_positions(msg, sink.topic)
        names, times_ns, rows = list(by_name), [now_ns], [list(by_name.values())]
    else:
        names = [mapping.robot_name for mapping in sink.joints]
        times_ns, rows = [now_ns], [list(msg.data)]
    mappings = {mapping.robot_name: mapping for mapping in sink.joints}
    unknown = [name for name in names if name not in mappings]
    if unknown or not names or len(set(names)) != len(names):
        raise InputError(
            'COMMAND_JOINTS',
            f'{sink.topic}: joint names {names[:20]} must be different joints of {list(mappings)}',
        )
    lengths = {len(row) for row in rows}
    if lengths != {len(names)}:
        raise InputError(
            'COMMAND_LENGTH',
            f'{sink.topic}: {len(names)} joints but points of {sorted(lengths)} positions',
        )
    positions = np.array(rows, dtype=np.float64)
    if not np.isfinite(positions).all():
        raise InputError('COMMAND_NONFINITE', f'{sink.topic}: positions are not all finite')
    for column, name in enumerate(names):
        positions[:, column] = [mappings[name].to_model(v) for v in positions[:, column]]
    joints = tuple(mappings[name].joint for name in names)
    return Waypoints(joints, np.array(times_ns, dtype=np.int64), positions)


def _trajectory(
    sink: SinkConfig, msg: Any, now_ns: int
) -> tuple[list[str], list[int], list[list[float]]]:
    if not 0 < len(msg.points) <= MAX_POINTS:
        raise InputError(
            'COMMAND_POINTS',
            f'{sink.topic}: {len(msg.points)} points, expected 1 to {MAX_POINTS}',
        )
    # As for ros2_controllers, a zero stamp means "starts now".
    start_ns = stamp_to_ns(msg.header.stamp, sink.topic) or now_ns
    times = [point.time_from_start for point in msg.points]
    offsets = [int(t.sec) * NS_PER_S + int(t.nanosec) for t in times]
    if offsets[0] < 0 or any(b <= a for a, b in pairwise(offsets)):
        raise InputError(
            'COMMAND_TIMES', f'{sink.topic}: time_from_start must grow from point to point'
        )
    rows = [list(point.positions) for point in msg.points]
    return list(msg.joint_names), [start_ns + offset for offset in offsets], rows
