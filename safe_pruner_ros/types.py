"""The six values that cross room boundaries. numpy and the standard library only.

Units: arm joints in radians, grippers as closed fraction (0 = open, 1 = closed), stamps in integer
nanoseconds, durations in seconds. Every array is float64 unless stated; images are RGB uint8.
All values are frozen: whoever wants another value builds another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]
JointKind = Literal['arm', 'gripper']


@dataclass(frozen=True)
class Joint:
    """One commanded joint.

    ``lower``/``upper`` are position limits, ``max_velocity`` the speed limit per second; the unit
    is rad for ``kind='arm'`` and closed fraction for ``kind='gripper'``.
    """

    name: str
    kind: JointKind
    lower: float
    upper: float
    max_velocity: float

    def __post_init__(self) -> None:
        values = (self.lower, self.upper, self.max_velocity)
        if not all(np.isfinite(value) for value in values):
            raise ValueError(f'joint {self.name!r}: limits must be finite, got {values}')
        if not self.lower < self.upper:
            raise ValueError(
                f'joint {self.name!r}: lower must be below upper, got {self.lower} >= {self.upper}'
            )
        if not self.max_velocity > 0:
            raise ValueError(
                f'joint {self.name!r}: max_velocity must be positive, got {self.max_velocity}'
            )


@dataclass(frozen=True)
class JointLayout:
    """Ordered joints of a robot; every boundary maps by name through it, never by position."""

    joints: tuple[Joint, ...]

    def __post_init__(self) -> None:
        if not self.joints:
            raise ValueError('a JointLayout needs at least one joint, got none')
        names = self.names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f'joint names must be unique, repeated: {repeated}')

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    @property
    def lower(self) -> FloatArray:
        return np.array([joint.lower for joint in self.joints])

    @property
    def upper(self) -> FloatArray:
        return np.array([joint.upper for joint in self.joints])

    @property
    def max_velocity(self) -> FloatArray:
        return np.array([joint.max_velocity for joint in self.joints])

    @property
    def is_gripper(self) -> npt.NDArray[np.bool_]:
        return np.array([joint.kind == 'gripper' for joint in self.joints])

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(f'no joint {name!r} in layout {list(self.names)}') from None

    def ordered(self, values: Mapping[str, float]) -> FloatArray:
        """Values by name -> [len(self)] in layout order; extra names are ignored.

        Raises ValueError naming every missing joint, or the first non-finite value.
        """
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ValueError(f'joint state misses {missing}; it has {sorted(values)}')
        array = np.array([float(values[name]) for name in self.names])
        if not np.isfinite(array).all():
            bad = [n for n, v in zip(self.names, array, strict=True) if not np.isfinite(v)]
            raise ValueError(f'joint state is not finite for {bad}')
        return array


@dataclass(frozen=True)
class CameraImage:
    """One view at one moment. ``rgb`` is uint8 [H, W, 3]; ``stamp_ns`` is the capture time."""

    rgb: UInt8Array
    view: str
    stamp_ns: int

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3:
            raise ValueError(
                f'view {self.view!r}: rgb must be uint8 [H, W, 3], '
                f'got {self.rgb.dtype} {list(self.rgb.shape)}'
            )


@dataclass(frozen=True)
class ArmState:
    """Measured joints [n] (rad / closed fraction), in the order of ``joint_names``.

    It carries the names because a policy may list the joints of a robot in another order than
    the robot does.
    """

    positions: FloatArray
    joint_names: tuple[str, ...]
    stamp_ns: int

    def __post_init__(self) -> None:
        if self.positions.shape != (len(self.joint_names),):
            raise ValueError(
                f'arm state must be [{len(self.joint_names)}] for {list(self.joint_names)}, '
                f'got {list(self.positions.shape)}'
            )
        if not np.isfinite(self.positions).all():
            raise ValueError(f'arm state has non-finite positions: {self.positions.tolist()}')

    def ordered(self, names: Sequence[str]) -> FloatArray:
        """Positions [len(names)] in that order; ValueError names what was not measured."""
        if tuple(names) == self.joint_names:
            return self.positions
        place = {name: k for k, name in enumerate(self.joint_names)}
        if missing := [name for name in names if name not in place]:
            raise ValueError(
                f'no measured position of {missing}; measured: {list(self.joint_names)}'
            )
        return self.positions[[place[name] for name in names]]


@dataclass(frozen=True)
class Observation:
    """What a policy sees in one policy step. ``stamp_ns`` is the oldest capture time in it."""

    images: Mapping[str, CameraImage]
    state: ArmState
    instruction: str
    stamp_ns: int


@dataclass(frozen=True)
class ActionChunk:
    """Absolute joint targets. Row k of ``positions`` [chunk_size, n] is due at
    ``start_ns + (k + 1) * period_ns``; ``start_ns`` is the stamp of the observation it answers.
    """

    positions: FloatArray
    joint_names: tuple[str, ...]
    start_ns: int
    period_ns: int

    def __post_init__(self) -> None:
        if self.positions.ndim != 2 or self.positions.shape[1] != len(self.joint_names):
            raise ValueError(
                f'action chunk must be [chunk_size, {len(self.joint_names)}], '
                f'got {list(self.positions.shape)}'
            )
        if self.period_ns <= 0:
            raise ValueError(f'period_ns must be positive, got {self.period_ns}')


@dataclass(frozen=True)
class JointCommand:
    """Targets [n] of one control tick, in the order of ``joint_names``."""

    positions: FloatArray
    joint_names: tuple[str, ...]
    stamp_ns: int


def unique_in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repeats, first occurrence kept."""
    return tuple(dict.fromkeys(names))
