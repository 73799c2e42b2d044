"""Settings of a robot: joints, cameras, state and command topics. Values: config/robots/*.yaml.

Everything is keyed by joint name; the order of ``joints`` is the order of the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal

from safe_pruner_ros.runtime.config_schema import (
    ConfigError,
    check_bounds,
    check_unique,
    setting,
)
from safe_pruner_ros.runtime.topic_names import check_topic
from safe_pruner_ros.types import Joint, JointKind, JointLayout

# Robot files state max_step for this rate. Faster commands get a smaller step, or a setting of the
# runtime would raise the speed of the robot; slower ones get no larger step.
MAX_STEP_RATE_HZ = 50.0
# No arm joint turns further than twice around either way; limits beyond are in another unit.
MAX_ARM_LIMIT_RAD = 4.0 * math.pi
# Nor faster than this: the Astribot S1, which is fast, has up to 16.8 rad/s (URDF). At 50 Hz no
# command goes as far as half a radian: that is 25 rad/s.
MAX_ARM_VELOCITY = 30.0
MAX_ARM_STEP_RAD = 0.5
# The whole way of a gripper in one command, and the speed of that at 50 Hz.
MAX_GRIPPER_STEP = 1.0
MAX_GRIPPER_VELOCITY = MAX_GRIPPER_STEP * MAX_STEP_RATE_HZ


@dataclass(frozen=True)
class JointConfig:
    """One joint in model order. Units: rad for arms, closed fraction (0 open, 1 closed) for
    grippers."""

    name: str = setting(MISSING, 'name of the joint, in our messages and in the policy')
    kind: JointKind = setting(MISSING, 'arm or gripper')  # noqa: RUF009
    lower: float = setting(MISSING, 'lower position limit', 'rad or closed fraction')
    upper: float = setting(MISSING, 'upper position limit', 'rad or closed fraction')
    max_velocity: float = setting(
        MISSING,
        'speed limit; at most 30 rad/s for arms, 50/s for grippers',
        'rad/s or 1/s',
        above=0.0,
    )
    max_step: float = setting(
        MISSING,
        'largest change between two commands at 50 Hz; less in proportion at a higher '
        'runtime.control_rate_hz, never more; at most 0.5 rad for arms, 1 for grippers',
        'rad or closed fraction',
        above=0.0,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.name:
            raise ConfigError('a joint needs a name, got an empty one')
        try:
            self.to_joint()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.kind == 'gripper' and not (self.lower >= 0.0 and self.upper <= 1.0):
            raise ConfigError(
                f'gripper {self.name!r} must have limits inside 0..1 (closed fraction), got '
                f'{self.lower}..{self.upper}; put the unit of the robot into scale and offset '
                f'of its state source and sink'
            )
        if self.kind == 'arm' and max(abs(self.lower), abs(self.upper)) > MAX_ARM_LIMIT_RAD:
            raise ConfigError(
                f'the limits {self.lower:g}..{self.upper:g} of arm joint {self.name!r} look like '
                f'degrees; limits are rad, e.g. {math.radians(self.lower):.4g}..'
                f'{math.radians(self.upper):.4g}. A robot whose messages are in degrees needs '
                f'scale: {math.degrees(1.0):.5f} in its state source and sink, too'
            )
        self._check_speed()

    def _check_speed(self) -> None:
        """Limits in rad beside speeds in degrees would let an arm jump."""
        is_arm = self.kind == 'arm'
        max_velocity = MAX_ARM_VELOCITY if is_arm else MAX_GRIPPER_VELOCITY
        max_step = MAX_ARM_STEP_RAD if is_arm else MAX_GRIPPER_STEP
        for name, value, highest, unit in (
            ('max_velocity', self.max_velocity, max_velocity, 'rad/s' if is_arm else '1/s'),
            ('max_step', self.max_step, max_step, 'rad' if is_arm else 'closed fraction'),
        ):
            if value <= highest:
                continue
            if is_arm:
                raise ConfigError(
                    f'{name} {value:g} of arm joint {self.name!r} looks like degrees; it is '
                    f'{unit}, at most {highest:g}, e.g. {math.radians(value):.4g}'
                )
            raise ConfigError(
                f'{name} {value:g} of gripper {self.name!r} is more than the whole way in one '
                f'command; it is {unit} (0 open, 1 closed), at most {highest:g}. Put the unit of '
                f'the robot into scale and offset of its state source and sink'
            )

    def to_joint(self) -> Joint:
        return Joint(self.name, self.kind, self.lower, self.upper, self.max_velocity)


@dataclass(frozen=True)
class JointMapping:
    """How a robot message names and measures one joint.

    robot value = ``scale`` * model value + ``offset``; ``invert`` (grippers) first turns the
    closed fraction into an open fraction.
    """

    joint: str = setting(MISSING, 'name of the joint in this configuration')
    name: str = setting('', 'its name in the message; empty: the same')
    scale: float = setting(1.0, 'robot unit per rad, or per closed fraction')
    offset: float = setting(0.0, 'robot value at model value 0', 'robot unit')
    invert: bool = setting(False, 'grippers only: the robot counts openness, not closedness')

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.scale == 0.0:
            raise ConfigError(f'scale of joint {self.joint!r} must not be 0')

    @property
    def robot_name(self) -> str:
        return self.name or self.joint

    def to_robot(self, value: float) -> float:
        """Model value (rad, closed fraction) -> robot unit."""
        return self.scale * (1.0 - value if self.invert else value) + self.offset

    def to_model(self, value: float) -> float:
        """Robot unit -> model value (rad, closed fraction)."""
        fraction = (value - self.offset) / self.scale
        return 1.0 - fraction if self.invert else fraction


@dataclass(frozen=True)
class CameraConfig:
    """One view."""

    name: str = setting(MISSING, 'view, as the policy names it: head, left_wrist, right_wrist')
    topic: str = setting(MISSING, 'image topic')
    transport: Literal['raw', 'compressed'] = setting('raw', 'Image or CompressedImage')
    encodings: tuple[str, ...] = setting(
        ('rgb8', 'bgr8'), 'accepted encodings (raw) or formats (compressed: jpeg, png)'
    )
    width: int = setting(0, 'expected width; 0: any', 'px', 0, 8192)
    height: int = setting(0, 'expected height; 0: any', 'px', 0, 8192)
    reliability: Literal['reliable', 'best_effort'] = setting(
        'reliable', 'QoS of the subscription; reliable if the driver offers it'
    )
    required: bool = setting(
        True,
        'hold the arms when this view is missing or stale; must be true for the '
        'views of the policy',
    )
    moving_joints: tuple[str, ...] = setting(
        (), 'joints whose motion must change this picture (frozen check); empty: every arm joint'
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.name or not self.topic:
            raise ConfigError(f'a camera needs name and topic, got {self.name!r}, {self.topic!r}')
        check_topic(f'camera {self.name!r}: topic', self.topic)
        check_topic('the name of a view is in its overlay topic, and', f'~/overlay/{self.name}')
        if not self.encodings:
            raise ConfigError(f'camera {self.name!r}: list at least one accepted encoding')
        if (self.width == 0) != (self.height == 0):
            raise ConfigError(
                f'camera {self.name!r}: give both width and height or neither, '
                f'got {self.width} x {self.height}'
            )


@dataclass(frozen=True)
class StateSourceConfig:
    """One topic with measured joints. Extra names in its messages are ignored. Two sources may
    share a topic if they read different names in it."""

    name: str = setting(MISSING, 'short name for diagnostics and parameters: arm_left')
    topic: str = setting(MISSING, 'topic of the measured joints')
    joints: tuple[JointMapping, ...] = setting(MISSING, 'joints that this source measures')
    adapter: Literal['joint_state', 'astribot_state'] = setting(
        'joint_state', 'sensor_msgs/JointState or astribot_msgs/RobotJointState'
    )
    reliability: Literal['reliable', 'best_effort'] = setting(
        'best_effort', 'QoS of the subscription; best_effort matches every publisher'
    )
    positional: bool = setting(
        False,
        'values carry no names: take them in the order of `joints`, exact length; messages with '
        'other names are refused',
    )

    def __post_init__(self) -> None:
        if not self.joints:
            raise ConfigError(f'state source {self.name!r} measures no joint; list its joints')
        check_topic(f'state source {self.name!r}: topic', self.topic)
        check_unique([m.joint for m in self.joints], f'joints of state source {self.name!r}')
        names = [m.robot_name for m in self.joints]
        check_unique(names, f'robot names of state source {self.name!r}')


@dataclass(frozen=True)
class SinkConfig:
    """One topic that takes commands."""

    name: str = setting(MISSING, 'short name for diagnostics and parameters: arm_left')
    topic: str = setting(MISSING, 'command topic')
    joints: tuple[JointMapping, ...] = setting(MISSING, 'joints it moves, in message order')
    adapter: Literal[
        'joint_trajectory', 'float64_multiarray', 'joint_state', 'astribot_controller'
    ] = setting('joint_trajectory', 'message type of the command')

    def __post_init__(self) -> None:
        if not self.joints:
            raise ConfigError(f'sink {self.name!r} moves no joint; list its joints')
        check_topic(f'sink {self.name!r}: topic', self.topic)
        check_topic('the name of a sink is in its preview topic, and', f'~/preview/{self.name}')
        check_unique([m.robot_name for m in self.joints], f'robot names of sink {self.name!r}')


@dataclass(frozen=True)
class RobotConfig:
    """A robot: joints in model order, cameras, state topics, command topics."""

    name: str = setting(MISSING, 'name of the robot')
    joints: tuple[JointConfig, ...] = setting(MISSING, 'joints in model order')
    cameras: tuple[CameraConfig, ...] = setting(MISSING, 'views')
    state_sources: tuple[StateSourceConfig, ...] = setting(MISSING, 'measured joints')
    sinks: tuple[SinkConfig, ...] = setting(MISSING, 'where commands go')
    instruction_topic: str = setting('/instruction', 'std_msgs/String with the instruction')
    urdf: str = setting(
        '', 'kinematic model: file in config/robots, or a path; empty: none, no mm are reported'
    )
    end_effectors: tuple[str, ...] = setting(
        (), 'links of the URDF whose positions are compared, one per hand'
    )
    dry_run: bool = setting(
        True, 'publish commands to ~/preview/... only; set false to move the robot'
    )
    simulated: bool = setting(
        False,
        'nothing real moves: the shipped weights, trained in simulation only, may command it',
    )

    def __post_init__(self) -> None:
        if not self.joints:
            raise ConfigError(f'robot {self.name!r} has no joints')
        check_topic(f'robot {self.name!r}: instruction_topic', self.instruction_topic)
        if not any(camera.required for camera in self.cameras):
            raise ConfigError(f'robot {self.name!r} needs at least one camera with required: true')
        for what in ('joints', 'cameras', 'state_sources', 'sinks'):
            check_unique([item.name for item in getattr(self, what)], f'names of {what}')
        known = {joint.name for joint in self.joints}
        for what in ('state_sources', 'sinks'):
            mapped = [m.joint for item in getattr(self, what) for m in item.joints]
            check_unique(mapped, f'joints over all {what}')
            if unknown := sorted(set(mapped) - known):
                raise ConfigError(f'{what} name unknown joints {unknown}; known: {sorted(known)}')
            if missing := sorted(known - set(mapped)):
                raise ConfigError(f'no entry of {what} has the joints {missing}; add them to one')
        grippers = {joint.name for joint in self.joints if joint.kind == 'gripper'}
        mappings = [m for source in self.state_sources for m in source.joints]
        mappings += [m for sink in self.sinks for m in sink.joints]
        if wrong := sorted({m.joint for m in mappings if m.invert} - grippers):
            raise ConfigError(f'invert is for grippers; flip arm joints {wrong} with scale: -1')
        if bool(self.urdf) != bool(self.end_effectors):
            raise ConfigError(
                f'urdf and end_effectors belong together, got {self.urdf!r} and '
                f'{list(self.end_effectors)}; give both or neither'
            )
        for camera in self.cameras:
            if unknown := sorted(set(camera.moving_joints) - known):
                raise ConfigError(
                    f'camera {camera.name!r}: moving_joints has unknown joints {unknown}'
                )
        check_topics_apart(self)

    @property
    def layout(self) -> JointLayout:
        """Joints in model order, as every other room knows them."""
        return JointLayout(tuple(joint.to_joint() for joint in self.joints))

    def camera(self, view: str) -> CameraConfig:
        """Camera of ``view``; KeyError names the known views."""
        for camera in self.cameras:
            if camera.name == view:
                return camera
        raise KeyError(f'no camera {view!r}; configured: {[c.name for c in self.cameras]}')


def check_topics_apart(robot: RobotConfig, resolve: Callable[[str], str] = str) -> None:
    """Refuse a topic that two entries would read, or write, for the same thing of the robot.

    Two arms with the same joint names differ by their topics only. Where a copied entry keeps the
    topic of the other, one arm's pose would count as both arms', and no limit would notice.
    ``resolve``: topic as the robot file says it -> as the node hears it. Raises ConfigError.
    """
    for one, other, topic in _on_one_topic(robot.cameras, resolve):
        raise ConfigError(
            f'cameras {one.name!r} and {other.name!r} have the same topic {topic!r}; give '
            f'each view the topic of its own camera'
        )
    for one, other, topic in _on_one_topic(robot.state_sources, resolve):
        nameless = [source.name for source in (one, other) if source.positional]
        where = f'state sources {one.name!r} and {other.name!r} have the same topic {topic!r}'
        _check_names_apart(where, one, other, nameless, 'positional')
    for one, other, topic in _on_one_topic(robot.sinks, resolve):
        nameless = [sink.name for sink in (one, other) if sink.adapter == 'float64_multiarray']
        where = f'sinks {one.name!r} and {other.name!r} have the same topic {topic!r}'
        _check_names_apart(where, one, other, nameless, 'float64_multiarray')


def _on_one_topic(
    items: Sequence[Any], resolve: Callable[[str], str]
) -> list[tuple[Any, Any, str]]:
    topics = [resolve(item.topic) for item in items]
    return [
        (items[first], items[second], topics[first])
        for second in range(len(items))
        for first in range(second)
        if topics[first] == topics[second]
    ]


def _check_names_apart(
    where: str,
    one: StateSourceConfig | SinkConfig,
    other: StateSourceConfig | SinkConfig,
    nameless: list[str],
    why: str,
) -> None:
    """Two entries on one topic must agree on its type and differ by the names in its messages."""
    if nameless:
        raise ConfigError(
            f'{where}, and messages of {nameless} ({why}) have no names that would tell them '
            f'apart; give each its own topic'
        )
    if one.adapter != other.adapter:
        raise ConfigError(
            f'{where}, but the adapters {one.adapter} and {other.adapter}, and a topic has one '
            f'type; give each its own topic, or both the adapter of that type'
        )
    names = {mapping.robot_name for mapping in one.joints}
    if both := sorted(names & {mapping.robot_name for mapping in other.joints}):
        raise ConfigError(
            f'{where} and there the same joints {both}; give each its own topic, or in `name` '
            f'the names under which that topic has its joints'
        )
