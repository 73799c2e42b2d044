"""What was watched while a robot worked: episodes, policy steps, pictures. No ROS in here.

Times are seconds since the start of the episode, on the clock of the robot.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from safe_pruner_ros.types import UInt8Array

JPEG_QUALITY = 95


@dataclass(frozen=True)
class StepRecord:
    """One policy step. ``time_s`` is when its observation was taken; ``reason`` is '' unless the
    step was a key timestep; ``similarity`` and ``threshold`` are NaN where there are none."""

    time_s: float
    step: int
    n_visual: int
    n_retained: int
    reason: str
    similarity: float
    threshold: float
    latency_ms: Mapping[str, float]
    age_s: float

    @property
    def is_key_timestep(self) -> bool:
        return bool(self.reason)


@dataclass(frozen=True)
class TokenRecord:
    """Tokens of one view in one policy step, row-major [rows * cols]. ``saliency`` is what ranked
    them (or the early saliency of a key timestep), None if nothing was measured."""

    rows: int
    cols: int
    saliency: npt.NDArray[np.float32] | None
    retained: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Picture:
    """One view at one moment, as JPEG: a demo holds hundreds of them."""

    time_s: float
    jpeg: bytes

    @classmethod
    def of(cls, time_s: float, rgb: UInt8Array) -> Picture:
        done, data = cv2.imencode(
            '.jpg',
            np.ascontiguousarray(rgb[:, :, ::-1]),
            [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY],
        )
        assert done
        return cls(time_s, data.tobytes())

    def rgb(self) -> UInt8Array:
        """uint8 [H, W, 3]."""
        bgr = cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR)
        rgb: UInt8Array = np.ascontiguousarray(bgr[:, :, ::-1])
        return rgb


@dataclass
class EpisodeRecord:
    """One attempt, filled while it runs. ``stages``: (time_s, stage) at every change.
    ``tokens``: by (policy step, view). ``note`` says why a failed episode ended. Pictures may go
    on a little after ``duration_s``; `finish` ends the rest there."""

    number: int
    seed: int
    instruction: str
    success: bool = False
    duration_s: float = 0.0
    note: str = ''
    steps: list[StepRecord] = field(default_factory=list)
    stages: list[tuple[float, str]] = field(default_factory=list)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    tokens: dict[tuple[int, str], TokenRecord] = field(default_factory=dict)

    def finish(self) -> None:
        """Forget policy steps and stages after the end of the episode."""
        self.steps = [step for step in self.steps if step.time_s < self.duration_s]
        self.stages = [stage for stage in self.stages if stage[0] < self.duration_s]

    @property
    def recorded_s(self) -> float:
        """When the last picture was taken."""
        taken = [pictures[-1].time_s for pictures in self.pictures.values() if pictures]
        return max(taken, default=0.0)

    @property
    def keyframes(self) -> list[StepRecord]:
        return [step for step in self.steps if step.is_key_timestep]

    def step_at(self, time_s: float) -> StepRecord | None:
        """The newest policy step whose observation was taken by then."""
        found = bisect_right(self.steps, time_s + 1e-6, key=lambda step: step.time_s)
        return self.steps[found - 1] if found else None

    def stage_at(self, time_s: float) -> str:
        found = bisect_right(self.stages, time_s + 1e-6, key=lambda stage: stage[0])
        return self.stages[found - 1][1] if found else ''

    def picture_at(self, view: str, time_s: float) -> Picture | None:
        """The newest picture taken by then; the first one before that."""
        pictures = self.pictures.get(view, [])
        found = bisect_right(pictures, time_s + 1e-6, key=lambda picture: picture.time_s)
        return pictures[max(0, found - 1)] if pictures else None


@dataclass
class DemoRecord:
    """A whole demonstration. ``retention_ratio`` is the method's setting; ``command_periods_ms``
    between commands as they left the node, in wall time (the control timer does not follow the
    simulated clock); ``receive_ratios`` by view, what the node got of the
    pictures that were sent; ``guard_ticks`` counts verdicts of the command guard and their
    reasons; ``rate_factor`` is simulated per wall time."""

    method: str
    retention_ratio: float
    views: tuple[str, ...]
    episodes: list[EpisodeRecord] = field(default_factory=list)
    command_periods_ms: list[float] = field(default_factory=list)
    receive_ratios: dict[str, float] = field(default_factory=dict)
    guard_ticks: dict[str, int] = field(default_factory=dict)
    rate_factor: float = 1.0

    @property
    def steps(self) -> list[StepRecord]:
        return [step for episode in self.episodes for step in episode.steps]

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)


def percentiles(values: list[float]) -> dict[str, float | None]:
    """{'p50', 'p99'}; None without values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {'p50': None, 'p99': None}
    p50, p99 = np.percentile(finite, (50, 99))
    return {'p50': round(float(p50), 3), 'p99': round(float(p99), 3)}
