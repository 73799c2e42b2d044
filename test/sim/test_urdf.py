"""The simulated robot's URDF is its MJCF model, and the reader works for URDFs of others."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from safe_pruner_ros.sim import robot
from safe_pruner_ros.sim.kinematics import ArmKinematics
from safe_pruner_ros.sim.receptacles import TRAY
from safe_pruner_ros.sim.scene import VIEWS, build_model
from safe_pruner_ros.sim.urdf import OPTICAL, optical_frame, robot_urdf
from safe_pruner_ros.sim.urdf_kinematics import urdf_kinematics

FILE = Path(__file__).parents[2] / 'config' / 'robots' / 'sim.urdf'
NAMES = robot.joint_layout().names


def test_the_committed_file_is_up_to_date() -> None:
    assert FILE.read_text() == robot_urdf(), (
        'run: python -m safe_pruner_ros.sim.urdf > config/robots/sim.urdf'
    )


def test_hands_are_where_the_simulator_has_them() -> None:
    forward = urdf_kinematics(FILE, NAMES, ('left_tcp', 'right_tcp'))
    arms = {side: ArmKinematics(side) for side in robot.SIDES}
    layout, random = robot.joint_layout(), np.random.default_rng(0)
    seen = []
    for _ in range(50):
        joints = random.uniform(layout.lower, layout.upper)
        expected = [
            arms[side].forward(joints[[NAMES.index(n) for n in robot.arm_joint_names(side)]])[0]
            for side in robot.SIDES
        ]
        seen.append(forward(joints))
        assert np.allclose(seen[-1], expected, atol=1e-5)
    assert np.ptp(seen, axis=0).min() > 0.3


def test_cameras_are_where_the_simulator_has_them() -> None:
    """... and look along z, as ROS means an optical frame."""
    import mujoco

    tree = ET.parse(FILE).getroot()
    model = build_model(TRAY, False)
    for view in VIEWS:
        joint = tree.find(f"./joint[@name='{optical_frame(view)}_fixed']/origin")
        camera = model.cam(view)
        assert np.allclose([float(v) for v in joint.get('xyz').split()], camera.pos, atol=1e-5)
        euler = np.array([float(v) for v in joint.get('rpy').split()])
        quaternion, matrix, own = np.empty(4), np.empty(9), np.empty(9)
        mujoco.mju_euler2Quat(quaternion, euler, 'XYZ')
        mujoco.mju_quat2Mat(matrix, quaternion)
        mujoco.mju_quat2Mat(own, camera.quat)
        assert np.allclose(matrix.reshape(3, 3), own.reshape(3, 3) @ OPTICAL, atol=1e-5)


def test_every_published_joint_is_in_the_tree_with_its_limits() -> None:
    joints = {j.get('name'): j for j in ET.parse(FILE).getroot().findall('joint')}
    for joint in robot.joint_layout().joints:
        limit = joints[joint.name].find('limit')
        assert (float(limit.get('lower')), float(limit.get('upper'))) == (joint.lower, joint.upper)
    fingers = [j for j in joints.values() if j.find('mimic') is not None]
    assert len(fingers) == 4


OTHER = """<robot name="other">
  <link name="base"/>
  <link name="arm"><visual><geometry><mesh filename="package://lost/arm.dae"/></geometry></visual>
  </link>
  <link name="hand"/>
  <joint name="lift" type="prismatic"><parent link="base"/><child link="arm"/>
    <axis xyz="0 0 1"/><limit lower="0" upper="1" effort="1" velocity="1"/></joint>
  <joint name="wrist" type="fixed"><parent link="arm"/><child link="hand"/>
    <origin xyz="0.2 0 0"/></joint>
</robot>"""


def test_meshes_and_masses_of_other_robots_need_not_be_there(tmp_path) -> None:
    path = tmp_path / 'other.urdf'
    path.write_text(OTHER)
    forward = urdf_kinematics(path, ('grip', 'lift'), ('hand',))
    assert np.allclose(forward(np.array([7.0, 0.5])), [[0.2, 0.0, 0.5]])


@pytest.mark.parametrize(
    ('text', 'joints', 'links', 'words'),
    [
        ('<robot', ('lift',), ('hand',), 'not XML'),
        ('<mujoco/>', ('lift',), ('hand',), 'expected <robot>'),
        (OTHER, ('lift',), ('paw',), 'has no links'),
        (OTHER, ('elbow',), ('hand',), 'none of the joints'),
        (OTHER.replace('child link="hand"', 'child link="x"'), ('lift',), ('hand',), 'URDF'),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, joints, links, words) -> None:
    path = tmp_path / 'other.urdf'
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        urdf_kinematics(path, joints, links)


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match='urdf'):
        urdf_kinematics(Path('/no/such.urdf'), NAMES, ('left_tcp',))
