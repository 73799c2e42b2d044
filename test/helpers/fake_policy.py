"""A policy without a network, that can be slow, wrong or broken on demand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from safe_pruner_ros.policies.policy import (
    InstructionError,
    PolicyOutput,
    PolicySpec,
    PruningTrace,
    ViewSpec,
)
from safe_pruner_ros.types import ActionChunk, Observation

JOINTS = ('left_1', 'left_gripper', 'right_1', 'right_gripper')
SIZE, ROWS = 32, 4
PERIOD_S, CHUNK = 0.1, 8


@dataclass
class FakePolicy:
    """Moves every arm joint slowly up. ``mode``: ok, nan, raise."""

    mode: str = 'ok'
    joint_names: tuple[str, ...] = JOINTS
    views: tuple[str, ...] = ('head', 'wrist')
    seconds: float = 0.0
    observations: list[Observation] = field(default_factory=list)
    resets: int = 0
    ratio: float = 0.5
    threshold: float = 0.5

    @property
    def spec(self) -> PolicySpec:
        views = tuple(ViewSpec(name, SIZE, SIZE, ROWS, ROWS) for name in self.views)
        return PolicySpec('fake', views, self.joint_names, CHUNK, PERIOD_S, 3)

    def check_instruction(self, instruction: str) -> None:
        if 'fly' in instruction:
            raise InstructionError('this policy cannot fly; it knows "lift"')

    def predict(self, observation: Observation) -> PolicyOutput:
        self.check_instruction(observation.instruction)
        self.observations.append(observation)
        time.sleep(self.seconds)
        if self.mode == 'raise':
            raise RuntimeError('the fake policy fails on purpose')
        rows = np.tile(observation.state.ordered(self.joint_names), (CHUNK, 1))
        arms = [not name.endswith('gripper') for name in self.joint_names]
        rows[:, arms] += 0.02 * np.arange(1, CHUNK + 1)[:, None]
        rows = np.clip(rows, -1.9, 1.9)
        if self.mode == 'nan':
            rows[2, 0] = np.nan
        n, keep = len(self.views) * ROWS * ROWS, 8
        key = len(self.observations) % 4 == 1
        trace = PruningTrace(
            'fake', self.ratio, n, np.arange(n if key else keep), key,
            'first step' if key else '', 0.9, 0.5, 1, '',
            np.linspace(0, 1, n, dtype=np.float32), None, None,
        )  # fmt: skip
        period_ns = round(PERIOD_S * 1e9)
        chunk = ActionChunk(rows, self.joint_names, observation.stamp_ns, period_ns)
        stages = dict.fromkeys(('preprocess', 'vision', 'shallow', 'deep', 'scoring', 'head'), 1.0)
        return PolicyOutput(chunk, trace, {**stages, 'total': 6.0})

    def force_keyframe(self) -> None: ...

    def forget_plans(self) -> None: ...

    def reset(self) -> None:
        self.resets += 1

    def predict_unpruned(self, observation: Observation) -> PolicyOutput:
        """As `predict`, with 0.01 rad more on every arm joint."""
        output = self.predict(observation)
        self.observations.pop()
        arms = [not name.endswith('gripper') for name in self.joint_names]
        rows = output.chunk.positions.copy()
        rows[:, arms] += 0.01
        return replace(output, chunk=replace(output.chunk, positions=rows))

    def update_pruner(self, **changes: float) -> None:
        self.ratio = changes.get('retention_ratio', self.ratio)
        self.threshold = changes.get('similarity_threshold', self.threshold)
