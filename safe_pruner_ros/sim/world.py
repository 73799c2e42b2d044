"""What is observable of the world at one moment: what tasks judge and the expert acts on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.sim.objects import SceneObject
from safe_pruner_ros.sim.receptacles import Receptacle
from safe_pruner_ros.types import FloatArray


@dataclass(frozen=True)
class WorldState:
    """Hands are in the order left, right; positions in the world frame.

    ``positions`` [n, 3] m and ``speeds`` [n] m/s of the objects; ``gripped`` [2, n] is
    true for an object between both pads of a hand, ``touched`` [2, n] for any contact with it.
    ``receptacle_position`` [3] m, its origin on the table; ``lid_rad`` angle of its lid, 0 when
    shut or without one. ``joints`` [2, 7] rad; ``grippers`` [2] closed fraction; ``hands`` [2, 3]
    m, between the pads.
    """

    objects: tuple[SceneObject, ...]
    positions: FloatArray
    speeds: FloatArray
    gripped: npt.NDArray[np.bool_]
    touched: npt.NDArray[np.bool_]
    receptacle: Receptacle
    receptacle_position: FloatArray
    lid_rad: float
    joints: FloatArray
    grippers: FloatArray
    hands: FloatArray
