"""Scripted expert: labels any state of the pick-and-place world for any target object.

It has no memory. Each call reads the observed world, and rolls a kinematic copy of it forward:
what would I do now, and what then, if everything went as planned. So each chunk is a clean
recovery from wherever the arms are, also when they were pushed, or went for another object.
Hysteresis comes from geometry alone (funnels above the object and the tray).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from safe_pruner_ros.sim import robot
from safe_pruner_ros.sim.env import DualArmEnv, home_positions
from safe_pruner_ros.sim.kinematics import ArmKinematics
from safe_pruner_ros.sim.scene import TABLE_TOP_M, TRAY_HALF_SIZE_M
from safe_pruner_ros.sim.tasks.task import in_tray
from safe_pruner_ros.sim.world import WorldState
from safe_pruner_ros.types import FloatArray

LEAD_S = 0.03  # arms lag their commands by this much (robot.GAINS); plan that far ahead
HAND_SPEED = 0.17  # m/s
JOINT_SPEED = 1.0  # rad/s
GRIPPER_SPEED = 4.0  # closed fraction per second, as planned
HOVER_M = 0.09  # hand above an object before it goes down
CARRY_M = 0.10  # object lifted this far above the table on its way
MIN_GRASP_M = 0.022  # hand above the table when grasping: the finger tips reach 15 mm lower
DROP_M = 0.008  # object above the tray floor when let go
CLEAR_M = 0.10  # hand above the table before it leaves sideways for home
CLOSE_RADIUS_M = 0.010  # hand this near the grasp point: close
OPEN_FRACTION = 0.12  # fingers count as open below
TILT_RAD = 0.2  # finger tips point that much forwards
POSTURE_LEFT = (0.3, -0.35, -0.5, 1.2, 0.0, 0.0, 0.2)
SIGNS = np.array([1, 1, -1, 1, 1, 1, 1])  # left -> right joint values


def hand_rotation() -> FloatArray:
    """Rotation [3, 3] of a hand that grasps from above."""
    cos, sin = np.cos(TILT_RAD), np.sin(TILT_RAD)
    return np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


@dataclass(frozen=True)
class _Arm:
    """Planned state of one arm: joints [7] rad, closed fraction, TCP [3] m, object it holds."""

    joints: FloatArray
    gripper: float
    hand: FloatArray
    held: int | None


@dataclass(frozen=True)
class _Goal:
    """What an arm should do now: its phase, a TCP position (None: joint-space home), gripper."""

    phase: str
    hand: FloatArray | None
    gripper: float


class ScriptedExpert:
    """Joint targets and phases for the pick-and-place task, from the observed state of ``env``."""

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

    # ---- observe

    def _observe(self, world: WorldState) -> list[_Arm]:
        arms = []
        for index in range(2):
            gripped = np.flatnonzero(world.gripped[index])
            held = int(gripped[0]) if gripped.size else None
            arms.append(_Arm(world.joints[index], world.grippers[index], world.hands[index], held))
        return arms

    def _acting(self, world: WorldState, arms: list[_Arm], target: int) -> int:
        """The arm that holds the target, else the arm of its side: 0 left, 1 right."""
        for index, arm in enumerate(arms):
            if arm.held == target:
                return index
        return 0 if world.positions[target, 1] > 0 else 1

    # ---- decide

    def _goal(self, world: WorldState, arms: list[_Arm], index: int, target: int) -> _Goal:
        arm = arms[index]
        if arm.held is not None and arm.held != target:
            return _give_back(world, arm, index)
        if index != self._acting(world, arms, target):
            return _retreat(arm, 'home')
        if arm.held == target:
            return _carry(world, arm, target)
        if in_tray(world, target):
            beside = np.linalg.norm(arm.hand - world.positions[target]) < 0.05
            if beside and arm.gripper > OPEN_FRACTION:
                return _Goal('open', arm.hand, 0.0)
            return _retreat(arm, 'retreat')
        return _reach(world, arm, target)

    # ---- move

    def _advance(
        self, world: WorldState, arm: _Arm, index: int, goal: _Goal, duration: float
    ) -> _Arm:
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
        return _Arm(joints, gripper, kinematics.forward(joints)[0], held)


def _grip_fraction(world: WorldState, index: int | np.integer) -> float:
    """Closed fraction at which the pads touch an object."""
    return 1.0 - world.objects[index].radius_m / robot.FINGER_TRAVEL_M


def _advance_gripper(
    world: WorldState, arm: _Arm, goal: _Goal, duration: float
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


def _carried(world: WorldState, before: list[_Arm], after: list[_Arm]) -> WorldState:
    """The world with held objects moved along and released ones dropped."""
    positions = world.positions.copy()
    for old, new in zip(before, after, strict=True):
        if new.held is not None:
            positions[new.held] += new.hand - old.hand if old.held == new.held else 0.0
        elif old.held is not None:
            inside = np.abs(positions[old.held, :2] - world.tray[:2]).max() < TRAY_HALF_SIZE_M
            floor = TABLE_TOP_M + (0.004 if inside else 0.0)
            positions[old.held, 2] = floor + world.objects[old.held].half_height_m
    return replace(world, positions=positions)


def _at_height(arm: _Arm, xy: FloatArray, height: float, goal_height: float) -> FloatArray:
    """A TCP goal above ``xy``, with sideways motion held back while the hand is too low for it."""
    low = height - arm.hand[2] - 0.015
    share = float(np.clip(1.0 - low / 0.05, 0.0, 1.0))
    return np.array([*(arm.hand[:2] + share * (xy - arm.hand[:2])), goal_height])


def _reach(world: WorldState, arm: _Arm, target: int) -> _Goal:
    place = world.positions[target]
    grasp_z = max(place[2], TABLE_TOP_M + MIN_GRASP_M)
    aside = float(np.linalg.norm(arm.hand[:2] - place[:2]))
    radius = CLOSE_RADIUS_M + 0.012 * min(1.0, arm.gripper / 0.3)
    if aside < radius and arm.hand[2] < grasp_z + radius and arm.gripper < 0.9:
        return _Goal('close', np.array([*arm.hand[:2], grasp_z]), 1.0)
    funnel = float(np.clip(4.0 * (aside - 0.008), 0.0, HOVER_M))
    if arm.gripper > OPEN_FRACTION:
        funnel = HOVER_M
    height = grasp_z + funnel
    phase = 'above' if funnel > 0.5 * HOVER_M else 'descend'
    return _Goal(phase, _at_height(arm, place[:2], height, height), 0.0)


def _carry(world: WorldState, arm: _Arm, target: int) -> _Goal:
    place, half = world.positions[target], world.objects[target].half_height_m
    aside = float(np.linalg.norm(place[:2] - world.tray[:2]))
    release_z = TABLE_TOP_M + 0.004 + half + DROP_M
    if aside < 0.02 and place[2] < release_z + 0.010:
        return _Goal('open', arm.hand, 0.0)
    carry_z = TABLE_TOP_M + half + CARRY_M
    object_z = release_z + float(np.clip(3.0 * (aside - 0.012), 0.0, carry_z - release_z))
    offset = arm.hand - place
    xy = world.tray[:2] + offset[:2]
    goal = _at_height(arm, xy, object_z + offset[2], object_z + offset[2])
    if aside < 0.03:
        phase = 'lower'
    else:
        phase = 'lift' if place[2] < object_z - 0.03 else 'over_tray'
    return _Goal(phase, goal, 1.0)


def _give_back(world: WorldState, arm: _Arm, index: int) -> _Goal:
    """Put down an object that is not asked for, on the table and not in the tray."""
    assert arm.held is not None
    place, half = world.positions[arm.held], world.objects[arm.held].half_height_m
    side = 1.0 if index == 0 else -1.0
    if side * (place[1] - world.tray[1]) < TRAY_HALF_SIZE_M + 0.05:
        beside = np.array([arm.hand[0], side * 0.24])
        height = TABLE_TOP_M + CARRY_M
        return _Goal('give_back', _at_height(arm, beside, height, height), 1.0)
    if place[2] < TABLE_TOP_M + half + 0.010:
        return _Goal('give_back', arm.hand, 0.0)
    down = arm.hand[2] - (place[2] - TABLE_TOP_M - half) + 0.003
    return _Goal('give_back', np.array([*arm.hand[:2], down]), 1.0)


def _retreat(arm: _Arm, phase: str) -> _Goal:
    if arm.hand[2] > TABLE_TOP_M + CLEAR_M:
        return _Goal(phase, None, 0.0)
    return _Goal(phase, np.array([*arm.hand[:2], TABLE_TOP_M + CLEAR_M + 0.04]), 0.0)
