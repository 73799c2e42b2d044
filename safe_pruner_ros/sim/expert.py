"""Scripted expert: labels any state from which a task can be solved, for any target object.

It has no memory. Each call reads the observed world, and rolls a kinematic copy of it forward:
what would I do now, and what then, if everything went as planned. So each chunk is a clean
recovery from wherever the arms are, also when they were pushed, or went for another object.
Where nothing helps any more (``Task.is_solvable``: another object lies in the receptacle, the lid
shut too early) it goes through the same motions; whoever takes labels from it has to ask first.
Hysteresis comes from geometry alone, see ``goals.py`` and ``lid.py``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from safe_pruner_ros.sim import robot
from safe_pruner_ros.sim.env import DualArmEnv, home_positions
from safe_pruner_ros.sim.goals import (
    OPEN_FRACTION,
    Arm,
    Goal,
    carry,
    give_back,
    reach,
    retreat,
)
from safe_pruner_ros.sim.kinematics import ArmKinematics
from safe_pruner_ros.sim.lid import PRESSED_RAD, pushed_lid, shut
from safe_pruner_ros.sim.scene import TABLE_TOP_M
from safe_pruner_ros.sim.tasks.task import contains
from safe_pruner_ros.sim.world import WorldState
from safe_pruner_ros.types import FloatArray

LEAD_S = 0.03  # arms lag their commands by this much (robot.GAINS); plan that far ahead
HAND_SPEED = 0.17  # m/s
JOINT_SPEED = 1.0  # rad/s
GRIPPER_SPEED = 4.0  # closed fraction per second, as planned
TILT_RAD = 0.2  # finger tips point that much forwards
POSTURE_LEFT = (0.3, -0.35, -0.5, 1.2, 0.0, 0.0, 0.2)
SUBTASKS = {
    **dict.fromkeys(('give_back', 'above', 'descend', 'close'), 'pick'),
    **dict.fromkeys(('lift', 'over_tray', 'over_hoop', 'over_box', 'lower', 'open'), 'place'),
    **dict.fromkeys(('clear', 'behind', 'shut'), 'close_lid'),
    **dict.fromkeys(('retreat', 'home'), 'leave'),
}
SIGNS = np.array([1, 1, -1, 1, 1, 1, 1])  # left -> right joint values


def hand_rotation() -> FloatArray:
    """Rotation [3, 3] of a hand that grasps from above."""
    cos, sin = np.cos(TILT_RAD), np.sin(TILT_RAD)
    return np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


class ScriptedExpert:
    """Joint targets, phases and subtasks for the task of ``env``, from its observed state."""

    def __init__(self, env: DualArmEnv) -> None:
        self._env = env
        self._kinematics = tuple(ArmKinematics(side) for side in robot.SIDES)
        posture = np.array(POSTURE_LEFT)
        self._postures = (posture, posture * SIGNS)
        home = home_positions()
        self._homes = (home[:7], home[8:15])
        self._rotation = hand_rotation()

    def chunk(self, target_index: int, chunk_size: int = 8, period_s: float = 0.1) -> FloatArray:
        """Absolute joint targets [chunk_size, 16] in layout order, row k due at (k+1) periods."""
        world = self._env.world()
        arms = self._observe(world)
        rows = np.empty((chunk_size, 16))
        for step in range(chunk_size):
            duration = period_s + (LEAD_S if step == 0 else 0.0)
            moved = []
            for index, arm in enumerate(arms):
                goal = self._goal(world, arms, index, target_index)
                arm = self._advance(world, arm, index, goal, duration)
                rows[step, 8 * index : 8 * index + 7] = arm.joints
                rows[step, 8 * index + 7] = goal.gripper
                moved.append(arm)
            world = _carried(world, arms, moved)
            arms = moved
        return rows

    def phase(self, target_index: int) -> str:
        """What the acting arm is doing for that target."""
        world = self._env.world()
        arms = self._observe(world)
        index = self._acting(world, arms, target_index)
        return self._goal(world, arms, index, target_index).phase

    def subtask(self, target_index: int) -> str:
        """The part of the task that ``phase`` belongs to, one of the values of ``SUBTASKS``."""
        return SUBTASKS[self.phase(target_index)]

    # ---- observe

    def _observe(self, world: WorldState) -> list[Arm]:
        arms = []
        for index in range(2):
            gripped = np.flatnonzero(world.gripped[index])
            held = int(gripped[0]) if gripped.size else None
            arms.append(Arm(world.joints[index], world.grippers[index], world.hands[index], held))
        return arms

    def _acting(self, world: WorldState, arms: list[Arm], target: int) -> int:
        """The arm that holds the target, else the arm of its side: 0 left, 1 right.

        Once it is in a box, the hand nearer to the box stays to shut the lid.
        """
        for index, arm in enumerate(arms):
            if arm.held == target:
                return index
        if world.receptacle.has_lid and contains(world, target):
            away = [np.linalg.norm(arm.hand - world.receptacle_position) for arm in arms]
            return int(np.argmin(away))
        return 0 if world.positions[target, 1] > 0 else 1

    # ---- decide

    def _goal(self, world: WorldState, arms: list[Arm], index: int, target: int) -> Goal:
        arm = arms[index]
        if arm.held is not None and arm.held != target:
            return give_back(world, arm, index)
        if index != self._acting(world, arms, target):
            return retreat(world, arm, 'home')
        if arm.held == target:
            return carry(world, arm, target)
        if contains(world, target) or _falling(world, target):
            beside = np.linalg.norm(arm.hand - world.positions[target]) < 0.05
            if beside and arm.gripper > OPEN_FRACTION:
                return Goal('open', arm.hand, 0.0)
            if world.receptacle.has_lid and world.lid_rad > PRESSED_RAD:
                return shut(world, arm, index)
            return retreat(world, arm, 'retreat')
        return reach(world, arm, target)

    # ---- move

    def _advance(
        self, world: WorldState, arm: Arm, index: int, goal: Goal, duration: float
    ) -> Arm:
        kinematics = self._kinematics[index]
        limit = JOINT_SPEED * duration
        if goal.hand is None:
            error = self._homes[index] - arm.joints
            delta = error * min(1.0, 5.0 * duration)
        else:
            way = goal.hand - arm.hand
            distance = float(np.linalg.norm(way))
            reach = min(HAND_SPEED * duration, 4.0 * duration * distance + 0.002)
            point = arm.hand + way * min(1.0, reach / max(distance, 1e-9))
            posture = self._postures[index]
            first = kinematics.step(arm.joints, point, self._rotation, posture)
            joints = arm.joints + first
            delta = first + kinematics.step(joints, point, self._rotation, posture)
        delta = delta * min(1.0, limit / max(np.abs(delta).max(), 1e-9))
        joints = np.clip(arm.joints + delta, kinematics.lower, kinematics.upper)
        gripper, held = _advance_gripper(world, arm, goal, duration)
        return Arm(joints, gripper, kinematics.forward(joints)[0], held)


def _grip_fraction(world: WorldState, index: int | np.integer) -> float:
    """Closed fraction at which the pads touch an object."""
    return 1.0 - world.objects[index].radius_m / robot.FINGER_TRAVEL_M


def _advance_gripper(
    world: WorldState, arm: Arm, goal: Goal, duration: float
) -> tuple[float, int | None]:
    """Planned (closed fraction, held object) after ``duration``."""
    if arm.held is not None and goal.gripper > 0.5:
        return arm.gripper, arm.held
    move = GRIPPER_SPEED * duration
    fraction = float(np.clip(goal.gripper, arm.gripper - move, arm.gripper + move))
    if fraction > arm.gripper:
        offsets = np.abs(world.positions - arm.hand)
        between = (offsets[:, :2].max(axis=1) < 0.025) & (offsets[:, 2] < 0.03)
        for item in np.flatnonzero(between):
            if fraction >= _grip_fraction(world, item):
                return _grip_fraction(world, item), int(item)
    return fraction, None


def _carried(world: WorldState, before: list[Arm], after: list[Arm]) -> WorldState:
    """The world with held objects moved along and released ones dropped."""
    positions = world.positions.copy()
    for old, new in zip(before, after, strict=True):
        if new.held is not None:
            positions[new.held] += new.hand - old.hand if old.held == new.held else 0.0
        elif old.held is not None:
            offset = np.abs(positions[old.held, :2] - world.receptacle_position[:2]).max()
            inside = offset < world.receptacle.inner_half_size_m + 0.008
            floor = TABLE_TOP_M + (world.receptacle.floor_m if inside else 0.0)
            positions[old.held, 2] = floor + world.objects[old.held].half_height_m
    lid_rad = world.lid_rad
    if world.receptacle.has_lid:
        lid_rad = min(
            pushed_lid(world, old.hand, new.hand) for old, new in zip(before, after, strict=True)
        )
    return replace(world, positions=positions, lid_rad=lid_rad)


def _falling(world: WorldState, target: int) -> bool:
    """Whether the target was let go of above a deep receptacle and is on its way down."""
    offset = world.positions[target] - world.receptacle_position
    opening = world.receptacle.release_radius_m + 0.01
    moving = world.speeds[target] > 0.05
    return bool(
        world.receptacle.name == 'hoop' and moving and np.hypot(offset[0], offset[1]) < opening
    )
