"""Commands recorded in a bag -> JointCommand, in model units. One entry a message and target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from safe_pruner_ros.ros.bags.mapping import SINK_TYPES
from safe_pruner_ros.ros.bags.reader import Bag
from safe_pruner_ros.runtime.config import RobotConfig, SinkConfig
from safe_pruner_ros.runtime.stamps import NS_PER_S
from safe_pruner_ros.types import JointCommand

MAX_START_OFFSET_NS = 5 * NS_PER_S


def commands_of(
    message: Any, sink: SinkConfig, clock_ns: int, until_ns: int | None = None
) -> Iterator[JointCommand]:
    """Targets of one message, each stamped with the time at which it is due.

    A trajectory is replaced by the next message: its points due after ``until_ns`` are left out,
    but for the first. Messages that do not fit the sink give nothing.
    """
    if sink.adapter == 'joint_trajectory':
        begin_ns = _start_ns(message, clock_ns)
        for number, point in enumerate(message.points):
            offset = point.time_from_start
            due_ns = begin_ns + int(offset.sec) * NS_PER_S + int(offset.nanosec)
            if number and until_ns is not None and due_ns > until_ns:
                return
            yield from _command(list(message.joint_names), point.positions, sink, due_ns)
    elif sink.adapter == 'float64_multiarray':
        names = [mapped.robot_name for mapped in sink.joints]
        yield from _command(names, message.data, sink, clock_ns)
    else:
        values = message.position if sink.adapter == 'joint_state' else message.command
        yield from _command(list(message.name), values, sink, clock_ns)


def _start_ns(message: Any, clock_ns: int) -> int:
    """A stamp of zero means "starts now"; one from another clock is not believed."""
    stamp = message.header.stamp
    stamp_ns = int(stamp.sec) * NS_PER_S + int(stamp.nanosec)
    return stamp_ns if abs(stamp_ns - clock_ns) < MAX_START_OFFSET_NS else clock_ns


def _command(
    names: list[str], values: Any, sink: SinkConfig, due_ns: int
) -> Iterator[JointCommand]:
    if len(names) != len(values):
        return
    found = dict(zip(names, (float(value) for value in values), strict=True))
    present = [mapped for mapped in sink.joints if mapped.robot_name in found]
    positions = np.array([m.to_model(found[m.robot_name]) for m in present])
    if present and np.isfinite(positions).all():
        yield JointCommand(positions, tuple(m.joint for m in present), due_ns)


def recorded_sinks(bag: Bag, robot: RobotConfig) -> dict[str, list[SinkConfig]]:
    """Topic -> sinks, for the sinks whose commands the bag holds in the type the robot takes."""
    found: dict[str, list[SinkConfig]] = {}
    for sink in robot.sinks:
        if bag.types.get(sink.topic) == SINK_TYPES[sink.adapter] and bag.counts[sink.topic]:
            found.setdefault(sink.topic, []).append(sink)
    return found
