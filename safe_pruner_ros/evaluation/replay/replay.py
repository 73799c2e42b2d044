"""The same recorded observations through several pruning methods, each compared with unpruned.

Open loop: what a method answers does not change what is seen next, so differences are due to
pruning alone. Observations are taken one at a time and never kept; a long recording fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.evaluation.plan import Cell
from safe_pruner_ros.policies.policy import (
    Policy,
    PolicyOutput,
    PolicyOutputError,
)
from safe_pruner_ros.types import FloatArray, JointLayout, Observation

UNPRUNED = 'unpruned'
NS = 1e-9


@dataclass(frozen=True)
class ReplayStep:
    """One policy step of one method. ``targets`` [chunk_size, n] in layout order, NaN when the
    step failed (``error``); row k is due at ``stamp_ns + (k + 1) * period_ns``."""

    stamp_ns: int
    targets: FloatArray
    n_visual: int
    n_retained: int
    reason: str
    similarity: float
    latency_ms: Mapping[str, float]
    error: str = ''

    @property
    def is_key_timestep(self) -> bool:
        return bool(self.reason)

    @property
    def total_ms(self) -> float:
        return float(self.latency_ms.get('total', math.nan))


@dataclass
class Lane:
    """A method at a ratio, its policy, and what it answered."""

    name: str
    method: str
    retention_ratio: float
    policy: Policy
    steps: list[ReplayStep] = field(default_factory=list)

    def targets(self, rows: int) -> FloatArray:
        """The first ``rows`` targets of every step: [steps, rows, n]."""
        return np.stack([step.targets[:rows] for step in self.steps])


@dataclass
class Replay:
    """All lanes over the same observations. ``horizon``: actions of a chunk that are executed;
    ``stamps_ns`` [steps], ``measured`` [steps, n] joints. ``kinematics``: joints [n] -> positions
    [hands, 3] in m, of ``end_effectors``; None where they are not known."""

    layout: JointLayout
    lanes: tuple[Lane, ...]
    horizon: int
    period_ns: int
    stamps_ns: list[int] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)
    measured: list[FloatArray] = field(default_factory=list)
    kinematics: Callable[[FloatArray], FloatArray] | None = None
    end_effectors: tuple[str, ...] = ()

    @property
    def baseline(self) -> Lane:
        return self.lanes[0]

    @property
    def times_s(self) -> FloatArray:
        """Seconds since the first observation, [steps]."""
        since_ns = np.array(self.stamps_ns, np.int64) - self.stamps_ns[0]
        return since_ns.astype(np.float64) * NS

    @property
    def due_ns(self) -> npt.NDArray[np.int64]:
        """When the executed targets are due, [steps, horizon]."""
        offsets = self.period_ns * np.arange(1, self.horizon + 1, dtype=np.int64)
        return np.array(self.stamps_ns, np.int64)[:, None] + offsets


def build_lanes(cells: Sequence[Cell], unpruned: Policy) -> list[Lane]:
    """One lane a cell, unpruned first and always there. All share the weights of ``unpruned``: a
    big policy is in memory once, however many methods are compared."""
    lanes = [Lane(UNPRUNED, UNPRUNED, 1.0, unpruned)]
    for cell in cells:
        if cell.method != UNPRUNED:
            name = f'{cell.variant} {cell.retention_ratio:g}'
            policy = unpruned.with_pruner(cell.method, cell.settings)
            lanes.append(Lane(name, cell.method, cell.retention_ratio, policy))
    return lanes


def replay(
    observations: Iterable[Observation],
    layout: JointLayout,
    lanes: Sequence[Lane],
    horizon: int = 0,
    period_s: float = 0.0,
    on_step: Callable[[Observation, Mapping[str, PolicyOutput]], None] = lambda seen, out: None,
) -> Replay:
    """Run every lane on every observation; ``on_step`` gets the outputs by lane name.

    ``horizon`` and ``period_s`` 0: as the policy says. The order of the lanes is drawn anew at
    each step, so that none always runs on warm caches. Raises InstructionError when the policy
    knows no such instruction.
    """
    spec = lanes[0].policy.spec
    horizon = min(horizon or spec.execution_horizon, spec.chunk_size)
    record = Replay(layout, tuple(lanes), horizon, round((period_s or spec.period_s) * 1e9))
    for lane in lanes:
        lane.policy.reset()
        lane.steps.clear()
    rng = np.random.default_rng(0)
    for observation in observations:
        if not record.stamps_ns:
            _warm_up(lanes, observation)
        outputs: dict[str, PolicyOutput] = {}
        for number in rng.permutation(len(lanes)):
            step, output = _step(lanes[number], observation, layout)
            lanes[number].steps.append(step)
            if output is not None:
                outputs[lanes[number].name] = output
        record.stamps_ns.append(observation.stamp_ns)
        record.instructions.append(observation.instruction)
        record.measured.append(observation.state.ordered(layout.names).copy())
        on_step(observation, outputs)
    return record


def _warm_up(lanes: Sequence[Lane], observation: Observation) -> None:
    """The first computation of a process is many times slower and says nothing; the pruners
    forget it."""
    for lane in lanes:
        lane.policy.check_instruction(observation.instruction)
        for _ in range(2):
            with suppress(PolicyOutputError):  # the measured step on this observation records it
                lane.policy.predict(observation)
        lane.policy.reset()


def _step(
    lane: Lane, observation: Observation, layout: JointLayout
) -> tuple[ReplayStep, PolicyOutput | None]:
    spec = lane.policy.spec
    try:
        output = lane.policy.predict(observation)
    except PolicyOutputError as error:  # the node would hold the arms and go on, too
        nothing = np.full((spec.chunk_size, len(layout)), np.nan)
        failed = ReplayStep(
            observation.stamp_ns,
            nothing,
            0,
            0,
            '',
            math.nan,
            {},
            f'{type(error).__name__}: {error}',
        )
        return failed, None
    order = [output.chunk.joint_names.index(name) for name in layout.names]
    trace = output.trace
    step = ReplayStep(
        observation.stamp_ns,
        output.chunk.positions[:, order].copy(),
        trace.n_visual,
        trace.n_retained,
        trace.keyframe_reason,
        trace.attention_similarity,
        dict(output.latency_ms),
    )
    return step, output
