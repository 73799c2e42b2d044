"""Where a hand is, and which joint motion brings it somewhere else: damped least squares.

Priorities: hand position first, hand orientation in what that leaves free, a comfortable posture
in what both leave free. A joint at its limit is taken out and the rest solved again. Everything is
a function of the arguments; the MuJoCo data inside is scratch space.
"""

from __future__ import annotations

import mujoco
import numpy as np

from safe_pruner_ros.sim import robot
from safe_pruner_ros.types import FloatArray

POSITION_DAMPING = 1e-4  # m^2, keeps steps finite near the stretched arm
ORIENTATION_DAMPING = 2e-2  # rad^2, orientation yields near singular postures
POSTURE_GAIN = 0.15  # share of the posture error removed per solve


def rotation_error(current: FloatArray, target: FloatArray) -> FloatArray:
    """Rotation vector [3] in world axes that turns ``current`` [3, 3] into ``target`` [3, 3]."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, (target @ current.T).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


class ArmKinematics:
    """Forward and differential inverse kinematics of one arm."""

    def __init__(self, side: robot.Side) -> None:
        self._model = mujoco.MjModel.from_xml_string(robot.robot_only_xml())
        self._data = mujoco.MjData(self._model)
        joints = [self._model.joint(name) for name in robot.arm_joint_names(side)]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dof = np.array([joint.dofadr[0] for joint in joints])
        self._site = self._model.site(f'{side}_tcp').id
        limits = np.array(robot.arm_limits(side))
        self.lower, self.upper = limits[:, 0], limits[:, 1]
        self._jacobian = np.empty((2, 3, self._model.nv))

    def forward(self, joints: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Joint values [7] rad -> TCP position [3] m and hand rotation [3, 3] in the world."""
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        position = self._data.site_xpos[self._site].copy()
        return position, self._data.site_xmat[self._site].reshape(3, 3).copy()

    def step(
        self, joints: FloatArray, position: FloatArray, rotation: FloatArray, posture: FloatArray
    ) -> FloatArray:
        """One least squares step [7] from ``joints`` to a hand pose; not yet speed limited."""
        here, turn = self.forward(joints)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_jacSite(
            self._model, self._data, self._jacobian[0], self._jacobian[1], self._site
        )
        jac_position, jac_rotation = self._jacobian[:, :, self._dof]
        move = position - here
        rotate = rotation_error(turn, rotation)
        free = np.ones(7)
        fixed = np.zeros(7)
        for _ in range(3):
            delta = fixed + _prioritised(
                jac_position * free,
                move - jac_position @ fixed,
                jac_rotation * free,
                rotate - jac_rotation @ fixed,
                POSTURE_GAIN * (posture - joints) * free,
            )
            bounded = np.clip(joints + delta, self.lower, self.upper) - joints
            outside = (np.abs(bounded - delta) > 1e-9) & (free > 0)
            if not outside.any():
                break
            fixed = np.where(outside, bounded, fixed)
            free = np.where(outside, 0.0, free)
        return np.clip(joints + delta, self.lower, self.upper) - joints

    def solve(
        self,
        joints: FloatArray,
        position: FloatArray,
        rotation: FloatArray,
        posture: FloatArray,
        steps: int = 60,
    ) -> FloatArray:
        """Joint values [7] for a hand pose, iterated from ``joints``; closest if out of reach."""
        for _ in range(steps):
            delta = self.step(joints, position, rotation, posture)
            joints = joints + delta * min(1.0, 0.3 / max(np.abs(delta).max(), 1e-9))
        return joints


def _prioritised(
    jac_position: FloatArray,
    move: FloatArray,
    jac_rotation: FloatArray,
    rotate: FloatArray,
    posture: FloatArray,
) -> FloatArray:
    eye = np.eye(7)
    inverse = jac_position.T @ np.linalg.inv(
        jac_position @ jac_position.T + POSITION_DAMPING * np.eye(3)
    )
    delta = inverse @ move
    null = eye - inverse @ jac_position
    inner = jac_rotation @ null
    inverse = inner.T @ np.linalg.inv(inner @ inner.T + ORIENTATION_DAMPING * np.eye(3))
    delta = delta + null @ (inverse @ (rotate - jac_rotation @ delta))
    return delta + null @ ((eye - inverse @ inner) @ posture)
