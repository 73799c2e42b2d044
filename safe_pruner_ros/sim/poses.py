"""Random arm poses above the table, by inverse kinematics: for pictures, not for episodes."""

from __future__ import annotations

from functools import cache

import numpy as np

from safe_pruner_ros.sim import robot
from safe_pruner_ros.sim.env import DualArmEnv, home_positions
from safe_pruner_ros.sim.expert import POSTURE_LEFT, SIGNS, hand_rotation
from safe_pruner_ros.sim.kinematics import ArmKinematics
from safe_pruner_ros.sim.scene import TABLE_TOP_M
from safe_pruner_ros.types import FloatArray

X_RANGE_M = (0.27, 0.54)
Y_RANGE_M = (-0.04, 0.37)  # towards the arm's own side
HEIGHT_RANGE_M = (0.02, 0.28)  # tool centre point above the table
NEAR_OBJECT_SHARE = 0.5
NEAR_OBJECT_M = 0.03  # spread around the object's centre, sideways


@cache
def _kinematics() -> tuple[ArmKinematics, ArmKinematics]:
    return ArmKinematics('left'), ArmKinematics('right')


def random_arms(env: DualArmEnv, rng: np.random.Generator) -> FloatArray:
    """Joint positions [16]: each hand points down above the table, half of them near an object."""
    arms = home_positions()
    home = arms.copy()
    posture = np.array(POSTURE_LEFT)
    for hand in range(len(robot.SIDES)):
        side = 1.0 if hand == 0 else -1.0
        place = np.array([rng.uniform(*X_RANGE_M), side * rng.uniform(*Y_RANGE_M)])
        own = [i for i in range(len(env.objects)) if side * env.object_position(i)[1] > 0]
        if own and rng.random() < NEAR_OBJECT_SHARE:
            centre = env.object_position(int(rng.choice(own)))[:2]
            place = centre + rng.normal(scale=NEAR_OBJECT_M, size=2)
        height = TABLE_TOP_M + rng.uniform(*HEIGHT_RANGE_M)
        joints = slice(8 * hand, 8 * hand + 7)
        start = home[joints] + rng.uniform(-0.1, 0.1, size=7)
        steps = int(rng.integers(4, 30))  # few steps: on the way, not quite upright
        arms[joints] = _kinematics()[hand].solve(
            start,
            np.array([*place, height]),
            hand_rotation(),
            posture * (SIGNS if hand else 1),
            steps,
        )
        arms[8 * hand + 7] = rng.choice((0.0, rng.uniform(0.0, 0.9)))
    return arms
