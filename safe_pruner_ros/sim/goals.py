"""What a hand should do now: goals of the scripted expert for one arm, from the world alone.

Pure functions without memory. Hysteresis comes from geometry: funnels above the object and the
receptacle, and which side of the lid a hand is on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safe_pruner_ros.sim.scene import TABLE_TOP_M
from safe_pruner_ros.sim.world import WorldState
from safe_pruner_ros.types import FloatArray

HOVER_M = 0.09  # hand above an object before it goes down
ASIDE_M = 0.14  # an unwanted object is put down that far from the receptacle's middle
MIN_GRASP_M = 0.022  # hand above the table when grasping: the finger tips reach 15 mm lower
CLOSE_RADIUS_M = 0.010  # hand this near the grasp point: close
OPEN_FRACTION = 0.12  # fingers count as open below


@dataclass(frozen=True)
class Arm:
    """Planned state of one arm: joints [7] rad, closed fraction, TCP [3] m, object it holds."""

    joints: FloatArray
    gripper: float
    hand: FloatArray
    held: int | None


@dataclass(frozen=True)
class Goal:
    """What an arm should do now: its phase, a TCP position (None: joint-space home), gripper."""

    phase: str
    hand: FloatArray | None
    gripper: float


def at_height(arm: Arm, xy: FloatArray, height: float, goal_height: float) -> FloatArray:
    """A TCP goal above ``xy``, with sideways motion held back while the hand is too low for it."""
    low = height - arm.hand[2] - 0.015
    share = float(np.clip(1.0 - low / 0.05, 0.0, 1.0))
    return np.array([*(arm.hand[:2] + share * (xy - arm.hand[:2])), goal_height])


def reach(world: WorldState, arm: Arm, target: int) -> Goal:
    place = world.positions[target]
    grasp_z = max(place[2], TABLE_TOP_M + MIN_GRASP_M)
    aside = float(np.linalg.norm(arm.hand[:2] - place[:2]))
    radius = CLOSE_RADIUS_M + 0.012 * min(1.0, arm.gripper / 0.3)
    if aside < radius and arm.hand[2] < grasp_z + radius and arm.gripper < 0.9:
        return Goal('close', np.array([*arm.hand[:2], grasp_z]), 1.0)
    funnel = float(np.clip(4.0 * (aside - 0.008), 0.0, HOVER_M))
    if arm.gripper > OPEN_FRACTION:
        funnel = HOVER_M
    height = grasp_z + funnel
    phase = 'above' if funnel > 0.5 * HOVER_M else 'descend'
    return Goal(phase, at_height(arm, place[:2], height, height), 0.0)


def carry(world: WorldState, arm: Arm, target: int) -> Goal:
    place, half = world.positions[target], world.objects[target].half_height_m
    aside = float(np.linalg.norm(place[:2] - world.receptacle_position[:2]))
    there = world.receptacle
    release_z = TABLE_TOP_M + there.floor_m + half + there.release_m
    if aside < there.release_radius_m and place[2] < release_z + 0.010:
        return Goal('open', arm.hand, 0.0)
    carry_z = TABLE_TOP_M + half + there.carry_m
    object_z = release_z + float(np.clip(3.0 * (aside - 0.012), 0.0, carry_z - release_z))
    offset = arm.hand - place
    xy = world.receptacle_position[:2] + offset[:2]
    goal = at_height(arm, xy, object_z + offset[2], object_z + offset[2])
    if aside < 0.03:
        phase = 'lower'
    else:
        phase = 'lift' if place[2] < object_z - 0.03 else f'over_{there.name}'
    return Goal(phase, goal, 1.0)


def give_back(world: WorldState, arm: Arm, index: int) -> Goal:
    """Put down an object that is not asked for, on the table and not in the receptacle."""
    assert arm.held is not None
    place, half = world.positions[arm.held], world.objects[arm.held].half_height_m
    side = 1.0 if index == 0 else -1.0
    if side * (place[1] - world.receptacle_position[1]) < ASIDE_M:
        beside = np.array([arm.hand[0], side * 0.24])
        height = TABLE_TOP_M + world.receptacle.carry_m
        return Goal('give_back', at_height(arm, beside, height, height), 1.0)
    if place[2] < TABLE_TOP_M + half + 0.010:
        return Goal('give_back', arm.hand, 0.0)
    down = arm.hand[2] - (place[2] - TABLE_TOP_M - half) + 0.003
    return Goal('give_back', np.array([*arm.hand[:2], down]), 1.0)


def retreat(world: WorldState, arm: Arm, phase: str) -> Goal:
    """Straight up until clear of what stands on the table, then home."""
    clear_z = TABLE_TOP_M + world.receptacle.clear_m
    if arm.hand[2] > clear_z:
        return Goal(phase, None, 0.0)
    return Goal(phase, np.array([*arm.hand[:2], clear_z + 0.04]), 0.0)
