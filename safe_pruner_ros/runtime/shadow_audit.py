"""Shadow audit: what would the unpruned policy have done? Asked in idle time, on the robot itself.

Every so many policy steps the last observation is run once more with every token, and the actions
that will be executed are compared. It only starts when the time until the next policy step is
longer than an unpruned step ever took, so that no deadline pays for it; an audit that would not
fit is put off to the next step and counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from safe_pruner_ros.policies.policy import Policy
from safe_pruner_ros.runtime.config import AuditConfig
from safe_pruner_ros.runtime.step_report import StepReport
from safe_pruner_ros.types import ActionChunk, FloatArray, JointLayout

MARGIN = 1.25  # on the longest unpruned step seen
FORGET = 0.98  # per step: an outlier of long ago must not stop the audits for ever

# Joint positions [n] in layout order -> end-effector positions [effectors, 3] in metres.
ForwardKinematics = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Deviation:
    """Largest difference between two chunks over the rows that are executed.

    ``arms_rad`` over arm joints, ``grippers`` in closed fraction, ``end_effectors_mm`` NaN without
    a kinematic model; ``gripper_flips`` counts rows in which a gripper is asked for the opposite.
    """

    arms_rad: float
    grippers: float
    gripper_flips: int
    end_effectors_mm: float


@dataclass(frozen=True)
class Audit:
    """One audit: of policy step ``step``, whose observation has the stamp."""

    step: int
    observation_stamp_ns: int
    n_retained: int
    n_visual: int
    deviation: Deviation
    latency_ms: float
    overran: bool


@dataclass(frozen=True)
class AuditCounts:
    done: int = 0
    postponed: int = 0
    overran: int = 0
    above_limit: int = 0


class ShadowAudit:
    """Used by the worker thread alone."""

    def __init__(
        self,
        config: AuditConfig,
        layout: JointLayout,
        horizon: int,
        kinematics: ForwardKinematics | None = None,
    ) -> None:
        self._config, self._layout, self._horizon = config, layout, horizon
        self._kinematics = kinematics
        self._longest_ms = math.nan  # of unpruned steps; unknown until one was seen
        self._steps_since = 0
        self.counts = AuditCounts()
        self.last: Audit | None = None
        self.failure = ''

    def note_step(self, latency_ms: float, is_full: bool) -> None:
        """A policy step that ended well; the full ones say how long an audit will take."""
        self._steps_since += 1
        if is_full and math.isfinite(latency_ms):
            faded = 0.0 if math.isnan(self._longest_ms) else FORGET * self._longest_ms
            self._longest_ms = max(latency_ms, faded)

    def is_due(self, slack_ms: float, is_full: bool) -> bool:
        """Whether to audit the step just made, given the time left until the next one.

        A full step would be compared with itself. Until one was seen, ``first_ms`` is expected.
        """
        config = self._config
        if not config.every_steps or self.failure or is_full:
            return False
        if self._steps_since < config.every_steps:
            return False
        expected = self._longest_ms if math.isfinite(self._longest_ms) else config.first_ms
        if MARGIN * expected > slack_ms:
            self.counts = replace(self.counts, postponed=self.counts.postponed + 1)
            return False
        return True

    def run(
        self, policy: Policy, report: StepReport, chunk: ActionChunk, slack_ms: float
    ) -> Audit:
        """Compare ``chunk`` of ``report``; raises what the policy raises."""
        assert report.trace is not None
        self._steps_since = 0
        began = time.perf_counter_ns()
        unpruned = policy.predict_unpruned(report.observation).chunk
        latency_ms = (time.perf_counter_ns() - began) * 1e-6
        known = 0.0 if math.isnan(self._longest_ms) else self._longest_ms
        self._longest_ms = max(latency_ms, known)
        deviation = compare(chunk, unpruned, self._layout, self._horizon, self._kinematics)
        audit = Audit(
            report.step,
            report.observation_stamp_ns,
            report.trace.n_retained,
            report.trace.n_visual,
            deviation,
            latency_ms,
            latency_ms > slack_ms,
        )
        limit = self._config.max_deviation_rad
        is_above = bool(limit) and not deviation.arms_rad <= limit
        counts = self.counts
        self.counts = replace(
            counts,
            done=counts.done + 1,
            overran=counts.overran + audit.overran,
            above_limit=counts.above_limit + is_above,
        )
        self.last = audit
        return audit

    def note_failure(self, text: str) -> None:
        """The policy raised: no more audits until `reset`."""
        self.failure = text

    def reset(self) -> None:
        """Start of an episode; what is known about latency stays."""
        self._steps_since = 0
        self.counts, self.last, self.failure = AuditCounts(), None, ''


def compare(
    chunk: ActionChunk,
    other: ActionChunk,
    layout: JointLayout,
    horizon: int,
    kinematics: ForwardKinematics | None = None,
) -> Deviation:
    """Largest differences over the first ``horizon`` rows. A row that is not finite in either
    chunk makes every number NaN."""
    rows, others = _ordered(chunk, layout)[:horizon], _ordered(other, layout)[:horizon]
    if not (np.isfinite(rows).all() and np.isfinite(others).all()):
        return Deviation(math.nan, math.nan, 0, math.nan)
    arms = np.array([joint.kind == 'arm' for joint in layout.joints])
    difference = np.abs(rows - others)
    flips = (rows[:, ~arms] > 0.5) != (others[:, ~arms] > 0.5)
    millimetres = math.nan
    if kinematics is not None:
        pairs = zip(rows, others, strict=True)
        moved = [np.linalg.norm(kinematics(a) - kinematics(b), axis=1) for a, b in pairs]
        millimetres = float(np.max(moved)) * 1e3
    return Deviation(
        float(difference[:, arms].max(initial=0.0)),
        float(difference[:, ~arms].max(initial=0.0)),
        int(flips.any(axis=1).sum()),
        millimetres,
    )


def _ordered(chunk: ActionChunk, layout: JointLayout) -> FloatArray:
    columns = [chunk.joint_names.index(name) for name in layout.names]
    ordered: FloatArray = np.asarray(chunk.positions, np.float64)[:, columns]
    return ordered
