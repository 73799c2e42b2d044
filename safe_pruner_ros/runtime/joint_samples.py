"""Where the joints were last seen, each with a moment of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.runtime.stamps import NS_PER_S
from safe_pruner_ros.types import ArmState, FloatArray


@dataclass(frozen=True)
class JointSamples:
    """Positions [n] in layout order (rad / closed fraction), NaN where a joint was not seen, and
    the stamp of each, ns.

    An `ArmState` is as old as its oldest joint. To tell whether an arm follows, its own joints
    count: a dead driver of the other arm says nothing about this one.
    """

    positions: FloatArray
    stamps_ns: npt.NDArray[np.int64]

    @classmethod
    def of_state(cls, state: ArmState) -> JointSamples:
        """All joints with the one stamp there is."""
        n = len(state.positions)
        return cls(state.positions, np.full(n, state.stamp_ns, dtype=np.int64))

    @classmethod
    def merged(
        cls, names: tuple[str, ...], parts: Iterable[tuple[Mapping[str, float], int]]
    ) -> JointSamples:
        """From (position by joint, stamp in ns) of each source."""
        positions = np.full(len(names), np.nan)
        stamps_ns = np.zeros(len(names), dtype=np.int64)
        place = {name: k for k, name in enumerate(names)}
        for values, stamp_ns in parts:
            for name, value in values.items():
                if name in place:
                    positions[place[name]], stamps_ns[place[name]] = value, stamp_ns
        return cls(positions, stamps_ns)

    def fresh(self, now_ns: int, max_age_s: float) -> FloatArray:
        """Positions [n], NaN where a joint was not seen within ``max_age_s``."""
        is_old = now_ns - self.stamps_ns > max_age_s * NS_PER_S
        return np.where(is_old, np.nan, self.positions)
