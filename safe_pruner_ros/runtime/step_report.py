"""What one policy step did, and rolling percentiles. All that is shown comes from here."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from safe_pruner_ros.policies.policy import PruningTrace
from safe_pruner_ros.runtime.action_buffer import Seam
from safe_pruner_ros.runtime.codes import Reason
from safe_pruner_ros.runtime.retention_control import RetentionState
from safe_pruner_ros.types import ActionChunk, Observation


@dataclass(frozen=True)
class StepTiming:
    """The way of one observation, node clock in ns: its oldest capture, the arrival of its last
    image, the moment it was assembled, and start and end of the policy step."""

    captured_ns: int
    received_ns: int
    assembled_ns: int
    started_ns: int
    finished_ns: int


@dataclass(frozen=True)
class StepReport:
    """One policy step, finished, failed or discarded.

    ``step`` counts policy steps since the last reset, ``generation`` changes with instruction,
    reset and hold. Stamps are node-clock nanoseconds. ``chunk`` is None unless the step's actions
    were accepted; ``trace`` is None when the policy raised. ``error`` says why there is no chunk.
    ``traceback`` is for the log only, never for a topic. ``verdicts`` counts the control ticks
    since the previous report: 'pass', 'clamp' and 'hold', and every reason code by its value.
    ``seam`` is the latest take-over of a chunk by then: of an earlier step than this one, whose
    actions are still to be commanded. ``starved_ticks`` counts, since the last reset, control
    ticks for which the actions had run out or were too old.
    """

    step: int
    generation: int
    instruction: str
    observation_stamp_ns: int
    finished_ns: int
    observation: Observation
    trace: PruningTrace | None
    chunk: ActionChunk | None
    latency_ms: Mapping[str, float]
    verdicts: Mapping[str, int] = field(default_factory=dict)
    error: Reason | None = None
    traceback: str = ''
    timing: StepTiming | None = None
    seam: Seam | None = None
    starved_ticks: int = 0
    retention: RetentionState | None = None

    @property
    def age_s(self) -> float:
        """Age of the observation when its actions became available."""
        return (self.finished_ns - self.observation_stamp_ns) * 1e-9

    @property
    def succeeded(self) -> bool:
        return self.error is None


class RollingStatistics:
    """Percentiles over the last ``window`` values, in the unit they are added in. Thread safe."""

    def __init__(self, window: int = 1000) -> None:
        if window < 1:
            raise ValueError(f'window must be at least 1, got {window}')
        self._values: deque[float] = deque(maxlen=window)
        self._lock = threading.Lock()
        self._count = 0

    def add(self, value: float) -> None:
        """Record a value; a non-finite one is a bug of the caller and raises ValueError."""
        if not np.isfinite(value):
            raise ValueError(f'a recorded value must be finite, got {value}')
        with self._lock:
            self._values.append(float(value))
            self._count += 1

    @property
    def count(self) -> int:
        """How many values were ever added."""
        return self._count

    def percentile(self, percent: float) -> float:
        """Linear-interpolated percentile; NaN when empty."""
        with self._lock:
            values = list(self._values)
        return float(np.percentile(values, percent)) if values else float('nan')

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p99(self) -> float:
        return self.percentile(99)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._count = 0
