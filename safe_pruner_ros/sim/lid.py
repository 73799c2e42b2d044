"""Pushing the box's lid shut: where a hand has to go, and how the lid follows it.

A moment is two numbers in the lid's own frame: how far along the lid a hand is from the hinge, and
how far above its outer face. Outside is behind the lid while it stands open, on top once it lies.
"""

from __future__ import annotations

import numpy as np

from safe_pruner_ros.sim.goals import Arm, Goal, at_height
from safe_pruner_ros.sim.receptacles import (
    BOX_HALF_SIZE_M,
    BOX_WALL_M,
    LID_HALF_THICKNESS_M,
    LID_LENGTH_M,
)
from safe_pruner_ros.sim.world import WorldState
from safe_pruner_ros.types import FloatArray

PUSH_RADIUS_M = 0.135  # where on the lid to push, from the hinge
CONTACT_M = 0.021  # hand above the lid's middle plane when its finger tips touch
BEHIND_M = 0.05  # hand goes down that far behind the open lid
LEAD_RAD = 0.5  # the goal runs ahead of the lid by this much
PRESSED_RAD = 0.03  # pushed until it is shut this far
EDGE_M = 0.01  # finger tips below the lid's edge count as behind it


def _hinge(world: WorldState) -> FloatArray:
    offset = (BOX_HALF_SIZE_M - 0.004, 0.0, BOX_WALL_M + LID_HALF_THICKNESS_M)
    hinge: FloatArray = world.receptacle_position + np.array(offset)
    return hinge


def _point(world: WorldState, lid_rad: float, along: float, above: float) -> FloatArray:
    """World point [3] from its place in the frame of a lid at that angle; y is the hinge's."""
    cos, sin = np.cos(lid_rad), np.sin(lid_rad)
    offset = np.array([-along * cos + above * sin, 0.0, along * sin + above * cos])
    point: FloatArray = _hinge(world) + offset
    return point


def _in_lid_frame(world: WorldState, hand: FloatArray) -> tuple[float, float]:
    """(along, above) in m of a hand [3]."""
    x, _, z = hand - _hinge(world)
    cos, sin = np.cos(world.lid_rad), np.sin(world.lid_rad)
    return float(-cos * x + sin * z), float(sin * x + cos * z)


def shut(world: WorldState, arm: Arm, index: int) -> Goal:
    """Up out of the box ('clear'), over the lid's edge ('behind'), push ('shut')."""
    along, above = _in_lid_frame(world, arm.hand)
    sideways = np.array([0.0, 0.02 if index == 0 else -0.02, 0.0])
    beyond_edge = along > LID_LENGTH_M - EDGE_M
    near = abs(arm.hand[1] - world.receptacle_position[1]) < 0.07
    behind = near and along > 0.0 and above > (CONTACT_M + 0.003 if beyond_edge else 0.0)
    gripper = 1.0 if arm.hand[2] > _hinge(world)[2] + 0.06 or behind else 0.0
    start = _point(world, world.lid_rad, PUSH_RADIUS_M, BEHIND_M) + sideways
    if not behind:
        edge = _hinge(world)[2] + LID_LENGTH_M * np.sin(world.lid_rad)
        height = max(edge, start[2]) + 0.04
        phase = 'clear' if arm.hand[2] < height - 0.03 else 'behind'
        return Goal(phase, at_height(arm, start[:2], height, height), gripper)
    if beyond_edge and world.lid_rad > 0.8:
        return Goal('behind', start, gripper)
    ahead = max(world.lid_rad - LEAD_RAD, -PRESSED_RAD)
    return Goal('shut', _point(world, ahead, PUSH_RADIUS_M, CONTACT_M) + sideways, gripper)


def pushed_lid(world: WorldState, before: FloatArray, after: FloatArray) -> float:
    """Planned lid angle, rad, once a hand has moved from ``before`` [3] to ``after`` [3]."""
    along, above = _in_lid_frame(world, before)
    near = abs(after[1] - world.receptacle_position[1]) < BOX_HALF_SIZE_M
    if not near or above <= 0.0 or not 0.03 < along < LID_LENGTH_M:
        return world.lid_rad
    x, _, z = after - _hinge(world)
    touching = np.arctan2(z, -x) - np.arcsin(min(CONTACT_M / max(np.hypot(x, z), 1e-6), 1.0))
    return float(np.clip(touching, 0.0, world.lid_rad))
