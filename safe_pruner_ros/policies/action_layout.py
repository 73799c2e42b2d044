"""A checkpoint's action numbers -> joint targets of the robot, by joint name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Semantics = Literal['absolute', 'delta']


@dataclass(frozen=True)
class ActionDimension:
    """One number of the action drives ``joint``: ``scale * action + offset``, taken as the target
    ('absolute') or added to the target before it ('delta', the first to the measured position).

    A gripper that the checkpoint opens with 1 has scale -1 and offset 1: here 1 is closed.
    """

    joint: str
    semantics: Semantics = 'absolute'
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.semantics not in ('absolute', 'delta'):
            raise ValueError(
                f"joint {self.joint!r}: semantics must be 'absolute' or 'delta', "
                f'got {self.semantics!r}'
            )
        if not (np.isfinite(self.scale) and np.isfinite(self.offset) and self.scale):
            raise ValueError(
                f'joint {self.joint!r}: scale must be finite and not 0 and offset finite, '
                f'got {self.scale} and {self.offset}'
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
        scale, offset = (
            np.array([getattr(d, name) for d in self.dimensions]) for name in ('scale', 'offset')
        )
        is_delta = np.array([d.semantics == 'delta' for d in self.dimensions])
        moved = actions * scale + offset
        return np.where(is_delta, measured + moved.cumsum(axis=0), moved)


def absolute(joints: Sequence[str]) -> ActionLayout:
    return ActionLayout(tuple(ActionDimension(joint) for joint in joints))
