"""Forward kinematics of any robot from its URDF, through MuJoCo's own URDF reader.

Used to say how many millimetres two joint commands are apart at the hands. Meshes and masses do
not matter for that and are dropped before reading, so no mesh file has to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import mujoco
import numpy as np

from safe_pruner_ros.types import FloatArray

# Fixed links stay apart (they may be the end effectors); links without mass are allowed.
_COMPILER = {
    'fusestatic': 'false',
    'boundmass': '0.001',
    'boundinertia': '0.001',
    'discardvisual': 'true',
}


def urdf_kinematics(
    path: Path, joint_names: Sequence[str], end_effectors: Sequence[str]
) -> Callable[[FloatArray], FloatArray]:
    """Joint positions [n] in the order of ``joint_names`` -> positions [effectors, 3] in metres.

    Joints that the URDF lacks are left out (a gripper under another name moves no hand), but every
    end effector must be a link and at least one joint must be known. Joints of the URDF that are
    not named stay at zero.

    Raises ValueError naming what the file has, FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no URDF at {path}; correct robot.urdf or leave it empty')
    model = _read(path)
    data = mujoco.MjData(model)
    joints = {model.jnt(k).name: model.jnt_qposadr[k] for k in range(model.njnt)}
    links = {model.body(k).name: k for k in range(model.nbody)}
    if unknown := [name for name in end_effectors if name not in links]:
        raise ValueError(f'{path} has no links {unknown}; it has {sorted(links)}')
    known = [(k, joints[name]) for k, name in enumerate(joint_names) if name in joints]
    if not known:
        raise ValueError(
            f'{path} has none of the joints {list(joint_names)}; it has {sorted(joints)}'
        )
    columns, addresses = (np.array(values) for values in zip(*known, strict=True))
    bodies = [links[name] for name in end_effectors]

    def forward(positions: FloatArray) -> FloatArray:
        data.qpos[:] = 0.0
        data.qpos[addresses] = np.asarray(positions, np.float64)[columns]
        mujoco.mj_kinematics(model, data)
        found: FloatArray = data.xpos[bodies].copy()
        return found

    return forward


def _read(path: Path) -> mujoco.MjModel:
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f'{path} is not XML: {error}') from error
    if root.tag != 'robot':
        raise ValueError(f'{path} is no URDF: its root is <{root.tag}>, expected <robot>')
    for link in root.iter('link'):
        for name in ('visual', 'collision', 'inertial'):
            for element in link.findall(name):
                link.remove(element)
    for extension in root.findall('mujoco'):
        root.remove(extension)
    ET.SubElement(ET.SubElement(root, 'mujoco'), 'compiler', _COMPILER)
    try:
        return mujoco.MjModel.from_xml_string(ET.tostring(root, encoding='unicode'))
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as URDF: {error}') from error
