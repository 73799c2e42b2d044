"""The real node with a policy that costs nothing: it asks the arms to stay where they are."""

from __future__ import annotations

import math
import sys

import numpy as np

from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.ros.node import main
from safe_pruner_ros.runtime.config import Config
from safe_pruner_ros.types import ActionChunk, Observation

SIDE_PX, GRID, CHUNK_SIZE = 256, 8, 8
PERIOD_S = 0.1


class StandStill:
    """One policy step a period, so that there is much to measure."""

    def __init__(self, config: Config) -> None:
        views = tuple(
            ViewSpec(camera.name, SIDE_PX, SIDE_PX, GRID, GRID) for camera in config.robot.cameras
        )
        self.spec = PolicySpec(
            'stand_still', views, config.robot.layout.names, CHUNK_SIZE, PERIOD_S, 1
        )
        self._n_visual = GRID * GRID * len(views)

    def check_instruction(self, instruction: str) -> None: ...

    def force_keyframe(self) -> None: ...

    def forget_plans(self) -> None: ...

    def reset(self) -> None: ...

    def predict(self, observation: Observation) -> PolicyOutput:
        rows = np.tile(observation.state.ordered(self.spec.joint_names), (CHUNK_SIZE, 1))
        chunk = ActionChunk(
            rows, self.spec.joint_names, observation.stamp_ns, round(PERIOD_S * 1e9)
        )
        everything = np.arange(self._n_visual)
        trace = PruningTrace(
            'unpruned', 1.0, self._n_visual, everything, False, '', math.nan, math.nan, 0
        )
        return PolicyOutput(chunk, trace, {'total': 0.0})


if __name__ == '__main__':
    sys.exit(main(policy_factory=StandStill))
