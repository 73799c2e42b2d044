"""ALOHA's gripper as openpi's checkpoints see it: by the angle of its motor.

Facts: openpi 15a9616, `policies/aloha_policy.py` (`_gripper_to_angular`), there from ALOHA's and
Interbotix' code. A horn on the motor pushes the fingers through an arm, so the finger's position
is not linear in the angle. Linear numbers instead would be up to 0.23 off in a span of 2.03, with
the scale and offset that fit openpi's actions (config/policies/pi05_aloha.yaml).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

OPEN_M, CLOSED_M = 0.05800, 0.01844  # finger positions
HORN_M, ARM_M = 0.022, 0.036
LOW_RAD, HIGH_RAD = 0.5476, 1.6296  # 0 and 1 of the state


def aloha_gripper_state(closed: FloatArray) -> FloatArray:
    """Closed fraction of the finger's way (0 open, 1 closed) -> openpi's state: 0.946 to -1.080.

    Positions out of the linkage's reach give its nearest end.
    """
    finger = np.maximum(OPEN_M + closed * (CLOSED_M - OPEN_M), ARM_M - HORN_M)
    # Law of cosines in the triangle of horn, arm and finger; the angle counts from the normal.
    sine = (HORN_M**2 + finger**2 - ARM_M**2) / (2 * HORN_M * finger)
    angle = np.arcsin(sine.clip(-1.0, 1.0))
    state: FloatArray = (angle - LOW_RAD) / (HIGH_RAD - LOW_RAD)
    return state
