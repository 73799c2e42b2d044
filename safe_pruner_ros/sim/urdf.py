"""The simulated robot as URDF, so that RViz and Foxglove show its arms; made from the MJCF model.

    python -m safe_pruner_ros.sim.urdf > config/robots/sim.urdf

Grippers are published as closed fraction 0..1 under the name of their first finger, while a finger
slides in metres. So that joint moves an empty link, and both fingers mimic it with their travel.
Ellipsoids, which URDF lacks, become cylinders. Masses and collisions are left out: this file is
for the eye and for forward kinematics.
"""

from __future__ import annotations

import sys
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
import numpy.typing as npt

from safe_pruner_ros.sim import robot
from safe_pruner_ros.sim.scene import HEAD_CAMERA

BASE_LINK = 'world'
# A URDF camera looks along z with x to the right; MuJoCo's looks along -z with y up.
OPTICAL = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
Array = npt.NDArray[np.float64]


def optical_frame(view: str) -> str:
    """Name of the link in which images of ``view`` are stamped."""
    return f'{view}_camera_optical_frame'


def robot_urdf() -> str:
    """The document, links and joints in the order of the model."""
    model = mujoco.MjModel.from_xml_string(robot.robot_only_xml())
    root = ET.Element('robot', name='safe_pruner_sim')
    for material in range(model.nmat):
        element = ET.SubElement(root, 'material', name=model.mat(material).name)
        ET.SubElement(element, 'color', rgba=_text(model.mat(material).rgba))
    ET.SubElement(root, 'link', name=BASE_LINK)
    for body in range(1, model.nbody):
        _link(root, model, body)
        _joint(root, model, body)
    for side in robot.SIDES:
        _gripper(root, side)
        site = model.site(f'{side}_tcp')
        _fixed(root, f'{side}_tcp', model.body(site.bodyid[0]).name, site.pos, np.eye(3))
    for camera in range(model.ncam):
        item = model.cam(camera)
        _camera(root, item.name, model.body(item.bodyid[0]).name, item.pos, item.quat)
    position, quaternion = _head_camera()
    _camera(root, 'head', BASE_LINK, position, quaternion)
    ET.indent(root)
    return '<?xml version="1.0"?>\n' + ET.tostring(root, encoding='unicode') + '\n'


def _head_camera() -> tuple[Array, Array]:
    text = f'<mujoco><worldbody>{HEAD_CAMERA}</worldbody></mujoco>'
    camera = mujoco.MjModel.from_xml_string(text).cam(0)
    return camera.pos, camera.quat


def _link(root: ET.Element, model: mujoco.MjModel, body: int) -> None:
    link = ET.SubElement(root, 'link', name=model.body(body).name)
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] != body:
            continue
        shape, size = mujoco.mjtGeom(model.geom_type[geom]), model.geom_size[geom]
        position, turn = model.geom_pos[geom], _matrix(model.geom_quat[geom])
        material = model.mat(model.geom_matid[geom]).name
        for element, shift in _shapes(shape, size):
            visual = ET.SubElement(link, 'visual')
            _origin(visual, position + turn @ np.array([0, 0, shift]), turn)
            ET.SubElement(visual, 'geometry').append(element)
            ET.SubElement(visual, 'material', name=material)


def _shapes(shape: mujoco.mjtGeom, size: Array) -> list[tuple[ET.Element, float]]:
    """URDF primitives, each with its shift along z."""
    kind = mujoco.mjtGeom
    if shape == kind.mjGEOM_SPHERE:
        return [(ET.Element('sphere', radius=_number(size[0])), 0.0)]
    if shape == kind.mjGEOM_BOX:
        return [(ET.Element('box', size=_text(2 * size)), 0.0)]
    if shape == kind.mjGEOM_ELLIPSOID:
        return [(_cylinder((size[0] + size[1]) / 2, 1.7 * size[2]), 0.0)]
    if shape not in (kind.mjGEOM_CYLINDER, kind.mjGEOM_CAPSULE):
        raise ValueError(f'a geom of type {shape.name} has no URDF shape here; add one')
    found = [(_cylinder(size[0], 2 * size[1]), 0.0)]
    if shape == kind.mjGEOM_CAPSULE:
        cap = _number(size[0])
        found += [(ET.Element('sphere', radius=cap), end) for end in (-size[1], size[1])]
    return found


def _cylinder(radius: float, length: float) -> ET.Element:
    return ET.Element('cylinder', radius=_number(radius), length=_number(length))


def _joint(root: ET.Element, model: mujoco.MjModel, body: int) -> None:
    item = model.body(body)
    parent = model.body(item.parentid[0]).name
    turn = _matrix(item.quat)
    if item.jntnum[0] == 0:
        _fixed_joint(root, f'{item.name}_fixed', parent, item.name, item.pos, turn)
        return
    joint = model.jnt(item.jntadr[0])
    is_slide = mujoco.mjtJoint(joint.type[0]) == mujoco.mjtJoint.mjJNT_SLIDE
    # The first finger gives its name to the closed fraction, see the module.
    name = f'{item.name}_slide' if is_slide else joint.name
    element = ET.SubElement(root, 'joint', name=name, type='prismatic' if is_slide else 'revolute')
    _connect(element, parent, item.name, item.pos, turn)
    ET.SubElement(element, 'axis', xyz=_text(joint.axis))
    velocity = robot.GRIPPER_MAX_VELOCITY * robot.FINGER_TRAVEL_M
    _limit(element, *joint.range, velocity if is_slide else robot.ARM_MAX_VELOCITY)
    if is_slide:
        side = 'left' if item.name.startswith('left') else 'right'
        fraction = robot.gripper_joint_name(side)
        travel = _number(robot.FINGER_TRAVEL_M)
        ET.SubElement(element, 'mimic', joint=fraction, multiplier=travel, offset='0')


def _gripper(root: ET.Element, side: robot.Side) -> None:
    name = robot.gripper_joint_name(side)
    ET.SubElement(root, 'link', name=f'{side}_gripper_fraction')
    element = ET.SubElement(root, 'joint', name=name, type='prismatic')
    _connect(element, f'{side}_hand', f'{side}_gripper_fraction', np.zeros(3), np.eye(3))
    ET.SubElement(element, 'axis', xyz='0 0 1')
    _limit(element, 0.0, 1.0, robot.GRIPPER_MAX_VELOCITY)


def _camera(root: ET.Element, view: str, parent: str, position: Array, quaternion: Array) -> None:
    _fixed(root, optical_frame(view), parent, position, _matrix(quaternion) @ OPTICAL)


def _fixed(root: ET.Element, link: str, parent: str, position: Array, turn: Array) -> None:
    ET.SubElement(root, 'link', name=link)
    _fixed_joint(root, f'{link}_fixed', parent, link, position, turn)


def _fixed_joint(
    root: ET.Element, name: str, parent: str, child: str, position: Array, turn: Array
) -> None:
    element = ET.SubElement(root, 'joint', name=name, type='fixed')
    _connect(element, parent, child, position, turn)


def _connect(element: ET.Element, parent: str, child: str, position: Array, turn: Array) -> None:
    _origin(element, position, turn)
    ET.SubElement(element, 'parent', link=parent)
    ET.SubElement(element, 'child', link=child)


def _limit(element: ET.Element, lower: float, upper: float, velocity: float) -> None:
    values = {'lower': lower, 'upper': upper, 'effort': 200.0, 'velocity': velocity}
    ET.SubElement(element, 'limit', {name: _number(value) for name, value in values.items()})


def _origin(element: ET.Element, position: Array, turn: Array) -> None:
    ET.SubElement(element, 'origin', xyz=_text(position), rpy=_text(_roll_pitch_yaw(turn)))


def _roll_pitch_yaw(turn: Array) -> Array:
    """R = Rz(yaw) Ry(pitch) Rx(roll), as URDF means it; at a pitch of +-90 degrees yaw is 0."""
    pitch = np.arctan2(-turn[2, 0], np.hypot(turn[0, 0], turn[1, 0]))
    if np.hypot(turn[0, 0], turn[1, 0]) < 1e-9:
        return np.array([np.arctan2(-turn[1, 2], turn[1, 1]), pitch, 0.0])
    roll, yaw = np.arctan2(turn[2, 1], turn[2, 2]), np.arctan2(turn[1, 0], turn[0, 0])
    return np.array([roll, pitch, yaw])


def _matrix(quaternion: Array) -> Array:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def _number(value: float) -> str:
    return f'{round(float(value), 6) + 0.0:g}'  # + 0.0: no minus zero


def _text(values: Array) -> str:
    return ' '.join(_number(value) for value in values)


if __name__ == '__main__':
    sys.stdout.write(robot_urdf())
