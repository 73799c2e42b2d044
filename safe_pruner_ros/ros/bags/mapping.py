"""Which topic of a bag is which view, state source, sink and instruction of the robot.

The robot file decides; ``--map`` changes it for one run: ``head=/cam_high/image_raw``,
``joint_states=/robot/joint_states``, ``instruction=/task``, ``joint.left_1=l_shoulder_pan``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from safe_pruner_ros.ros.bags.reader import Bag, BagError
from safe_pruner_ros.runtime.config import CameraConfig, JointMapping, RobotConfig

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
STRING = 'std_msgs/msg/String'
STATE_TYPES = {
    'joint_state': 'sensor_msgs/msg/JointState',
    'astribot_state': 'astribot_msgs/msg/RobotJointState',
}
SINK_TYPES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'float64_multiarray': 'std_msgs/msg/Float64MultiArray',
    'joint_state': 'sensor_msgs/msg/JointState',
    'astribot_controller': 'astribot_msgs/msg/RobotJointController',
}
JOINT_PREFIX = 'joint.'
INSTRUCTION = 'instruction'


def parse_map(assignments: Sequence[str]) -> dict[str, str]:
    """['head=/cam'] -> {'head': '/cam'}; ValueError unless each is NAME=VALUE, once."""
    found: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = (part.strip() for part in assignment.partition('='))
        if not (equals and name and value):
            raise ValueError(f'--map takes NAME=TOPIC, got {assignment!r}')
        if name in found:
            raise ValueError(f'--map {name} is given twice')
        if not name.startswith(JOINT_PREFIX) and not value.startswith('/'):
            raise ValueError(f'--map {name} takes a topic that starts with /, got {value!r}')
        found[name] = value
    return found


def apply_map(robot: RobotConfig, mapping: Mapping[str, str], bag: Bag) -> RobotConfig:
    """``robot`` with the topics and joint names of ``mapping``; a mapped camera takes the
    transport that the bag has on its topic. Raises ValueError for names the robot does not have.
    """
    topics = {n: t for n, t in mapping.items() if not n.startswith(JOINT_PREFIX)}
    joints = {n[len(JOINT_PREFIX) :]: v for n, v in mapping.items() if n.startswith(JOINT_PREFIX)}
    items: tuple[Any, ...] = (*robot.cameras, *robot.state_sources, *robot.sinks)
    names = {item.name for item in items} | {INSTRUCTION}
    if unknown := sorted(set(topics) - names):
        raise ValueError(f'--map: robot {robot.name!r} has no {unknown}; it has {sorted(names)}')
    if unknown := sorted(set(joints) - set(robot.layout.names)):
        known = list(robot.layout.names)
        raise ValueError(f'--map: robot {robot.name!r} has no joint {unknown}; it has {known}')

    def moved(item: Any) -> Any:
        changes: dict[str, Any] = {}
        if item.name in topics:
            changes['topic'] = topics[item.name]
            if isinstance(item, CameraConfig):
                changes['transport'] = _transport(bag, topics[item.name], item.transport)
        if not isinstance(item, CameraConfig):
            changes['joints'] = tuple(_renamed(mapped, joints) for mapped in item.joints)
        return replace(item, **changes) if changes else item

    return replace(
        robot,
        cameras=tuple(map(moved, robot.cameras)),
        state_sources=tuple(map(moved, robot.state_sources)),
        sinks=tuple(map(moved, robot.sinks)),
        instruction_topic=topics.get(INSTRUCTION, robot.instruction_topic),
    )


def _renamed(mapped: JointMapping, joints: Mapping[str, str]) -> JointMapping:
    return replace(mapped, name=joints[mapped.joint]) if mapped.joint in joints else mapped


def _transport(bag: Bag, topic: str, otherwise: Literal['raw', 'compressed']) -> str:
    return {IMAGE: 'raw', COMPRESSED: 'compressed'}.get(bag.types.get(topic, ''), otherwise)


def check_topics(bag: Bag, robot: RobotConfig, has_instruction: bool) -> None:
    """Raise BagError naming every needed topic that the bag lacks or has in another type."""
    problems = []
    for camera in robot.cameras:
        wanted = COMPRESSED if camera.transport == 'compressed' else IMAGE
        if (problem := _problem(bag, camera.topic, wanted)) and camera.required:
            problems.append(f'camera {camera.name!r} needs {problem}')
    for source in robot.state_sources:
        if problem := _problem(bag, source.topic, STATE_TYPES[source.adapter]):
            problems.append(f'state source {source.name!r} needs {problem}')
    if not has_instruction and (problem := _problem(bag, robot.instruction_topic, STRING)):
        problems.append(
            f'the instruction needs {problem}; give it with --instruction "..." if it was '
            'published before the recording began'
        )
    if problems:
        raise BagError(
            f'{bag.path}: lacks what robot {robot.name!r} needs: {"; ".join(problems)}. The bag '
            f'has images on [{bag.describe("Image")}], joints on [{bag.describe("Joint")}]; '
            'correct the robot file, or use --map NAME=TOPIC'
        )


def _problem(bag: Bag, topic: str, wanted: str) -> str:
    """'' if ``topic`` can be used."""
    kind = bag.types.get(topic)
    if kind is None or not bag.counts[topic]:
        return f'{wanted} on {topic}, which has no messages'
    return '' if kind == wanted else f'{wanted} on {topic}, which is {kind}'
