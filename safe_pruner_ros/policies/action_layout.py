"""A checkpoint's action numbers -> joint targets of the robot, by joint name; and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.policies.aloha_gripper import aloha_gripper_state

FloatArray = npt.NDArray[np.float64]
Semantics = Literal['absolute', 'delta', 'delta_from_state']
StateUnit = Literal['linear', 'aloha_gripper']


@dataclass(frozen=True)
class ActionDimension:
    """One number of the action drives ``joint``.

    Parameters
    ----------
    joint : of the robot, in rad, or in closed fraction (0 open, 1 closed) for a gripper.
    semantics : 'absolute', the number is a target; 'delta', it is added to the target before it
        (the first to the measured position); 'delta_from_state', every row counts from the
        position measured when the chunk was computed (openpi's ``DeltaActions``).
    scale, offset : robot = ``scale`` * checkpoint + ``offset``. A gripper that the checkpoint
        opens with 1 has scale -1 and offset 1. The offset cancels out of differences.
    gripper : targets are clipped to [0, 1].
    binary : a gripper that only knows open and closed: targets below 0.5 become 0, others 1.
    state : how the measured position is given to the checkpoint: 'linear', as the inverse of
        ``scale`` and ``offset``; 'aloha_gripper', as `aloha_gripper.py` says.
    """

    joint: str
    semantics: Semantics = 'absolute'
    scale: float = 1.0
    offset: float = 0.0
    gripper: bool = False
    binary: bool = False
    state: StateUnit = 'linear'

    def __post_init__(self) -> None:
        if self.semantics not in get_args(Semantics):
            raise ValueError(
                f'joint {self.joint!r}: semantics must be one of {list(get_args(Semantics))}, '
                f'got {self.semantics!r}'
            )
        if not (np.isfinite(self.scale) and np.isfinite(self.offset) and self.scale):
            raise ValueError(
                f'joint {self.joint!r}: scale must be finite and not 0 and offset finite, '
                f'got {self.scale} and {self.offset}'
            )
        if self.binary and not (self.gripper and self.semantics == 'absolute'):
            raise ValueError(
                f'joint {self.joint!r}: binary is for grippers with absolute semantics'
            )
        if self.state not in get_args(StateUnit):
            raise ValueError(
                f'joint {self.joint!r}: state must be one of {list(get_args(StateUnit))}, '
                f'got {self.state!r}'
            )
        if self.state != 'linear' and not (self.gripper and self.semantics == 'absolute'):
            raise ValueError(
                f'joint {self.joint!r}: state {self.state!r} is for grippers with absolute '
                f"semantics, got gripper {self.gripper} and {self.semantics!r}; leave 'linear'"
            )


@dataclass(frozen=True)
class ActionLayout:
    dimensions: tuple[ActionDimension, ...]

    def __post_init__(self) -> None:
        names = self.joint_names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if not names or repeated:
            raise ValueError(f'an action drives each joint once, got {list(names)}')

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(dimension.joint for dimension in self.dimensions)

    def check_size(self, n_actions: int, checkpoint: str) -> None:
        """Raise ValueError naming both sides when the checkpoint's action has another size."""
        if n_actions != len(self.dimensions):
            raise ValueError(
                f'{checkpoint} acts in {n_actions} dimensions, the robot configuration drives '
                f'{len(self.dimensions)} joints {list(self.joint_names)}; give one joint for each '
                'dimension, or take a checkpoint fine-tuned on this robot'
            )

    def targets(self, actions: FloatArray, measured: FloatArray) -> FloatArray:
        """Actions [chunk_size, n], measured positions [n] -> absolute targets [chunk_size, n]."""
        moved = actions * self._each('scale')
        semantics = self._each('semantics')
        targets = moved + self._each('offset')
        targets = np.where(semantics == 'delta', measured + moved.cumsum(axis=0), targets)
        targets = np.where(semantics == 'delta_from_state', measured + moved, targets)
        grippers, binary = self._each('gripper'), self._each('binary')
        targets = np.where(grippers, targets.clip(0.0, 1.0), targets)
        result: FloatArray = np.where(binary, (targets >= 0.5).astype(np.float64), targets)
        return result

    def to_checkpoint(self, measured: FloatArray) -> FloatArray:
        """Measured positions [n] in the checkpoint's units: the state it was trained on."""
        linear = (measured - self._each('offset')) / self._each('scale')
        aloha = self._each('state') == 'aloha_gripper'
        state: FloatArray = np.where(aloha, aloha_gripper_state(measured), linear)
        return state

    def _each(self, name: str) -> npt.NDArray[Any]:
        return np.array([getattr(dimension, name) for dimension in self.dimensions])


def absolute(joints: Sequence[str]) -> ActionLayout:
    return ActionLayout(tuple(ActionDimension(joint) for joint in joints))
