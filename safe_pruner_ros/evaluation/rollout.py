"""One closed-loop episode of a policy in the simulated robot, without ROS and without a clock.

The world stands still while the policy computes, so an episode depends on nothing but the seed,
the policy and the settings here; how long the policy took is recorded, not felt. To feel it, set
``latency_ticks``: the world then moves on for that many control ticks, under the chunk before,
until the new one takes over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.evaluation.macs import MacsOfStep
from safe_pruner_ros.policies.policy import Policy, PolicyOutput, PruningTrace
from safe_pruner_ros.types import (
    ActionChunk,
    ArmState,
    CameraImage,
    FloatArray,
    JointLayout,
    Observation,
    UInt8Array,
)


class Environment(Protocol):
    """The part of sim.DualArmEnv that an episode needs."""

    layout: JointLayout
    control_period_s: float

    @property
    def instruction(self) -> str: ...
    @property
    def target_index(self) -> int: ...
    @property
    def success(self) -> bool: ...
    @property
    def stage(self) -> str: ...
    @property
    def time_limit_s(self) -> float: ...
    @property
    def time_ns(self) -> int: ...
    def reset(self, seed: int, target: int | None = None) -> None: ...
    def step(self, positions: FloatArray) -> None: ...
    def state(self) -> ArmState: ...
    def render(self, view: str) -> UInt8Array: ...


OnStep = Callable[[Observation, PolicyOutput], None]


@dataclass(frozen=True)
class RolloutSettings:
    """``max_policy_steps``: None = as many as the task's time limit allows.
    ``execution_horizon``: actions of a chunk executed before the next policy step, 0 = as the
    policy says. ``latency_ticks``: control ticks between an observation and its first action."""

    max_policy_steps: int | None = None
    execution_horizon: int = 0
    latency_ticks: int = 0

    def __post_init__(self) -> None:
        if self.max_policy_steps is not None and self.max_policy_steps < 1:
            raise ValueError(f'max_policy_steps must be at least 1, got {self.max_policy_steps}')
        for name in ('execution_horizon', 'latency_ticks'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went. Means are over all its policy steps, key timesteps included; they are
    NaN when not one step succeeded.

    ``asked_object`` is None when the scene's own target was kept. ``stages``: in order of first
    appearance; ``stage``: the last. ``duration_s`` is simulated time, ``wall_s`` real.
    ``subtasks``: what the expert would be doing at each policy step, the ground truth of subtask
    detection; empty where nobody was asked.
    ``keyframe_steps`` are policy steps, ``keyframe_reasons`` their reasons. ``macs_mean`` counts
    decoder MACs (see macs.py), ``scoring_macs_mean`` those of saliency, matching and selection
    (see flops/policy_scoring.py), NaN where unknown; their sum is all that depends on the method.
    ``latency_ms_mean`` counts key timesteps in as the other means do, which a median of all steps
    does not; ``latency_ms_key_p50`` and ``latency_ms_pruned_p50`` are medians over the key
    timesteps and over all other steps, NaN where there are none. ``error`` is '' unless the policy
    raised.
    """

    seed: int
    asked_object: int | None
    target: int
    instruction: str
    success: bool
    stage: str
    stages: tuple[str, ...]
    policy_steps: int
    duration_s: float
    keyframes: int
    keyframe_steps: tuple[int, ...]
    keyframe_reasons: tuple[str, ...]
    retained_tokens_mean: float
    pruning_ratio_mean: float
    macs_mean: float
    scoring_macs_mean: float
    latency_ms_mean: float
    latency_ms_p50: float
    latency_ms_key_p50: float
    latency_ms_pruned_p50: float
    wall_s: float
    subtasks: tuple[str, ...] = ()
    error: str = ''


def run_episode(
    policy: Policy,
    env: Environment,
    seed: int,
    asked_object: int | None = None,
    settings: RolloutSettings | None = None,
    macs: MacsOfStep | None = None,
    on_step: OnStep | None = None,
    subtask: Callable[[], str] | None = None,
    scoring_macs: MacsOfStep | None = None,
) -> EpisodeResult:
    """Drive ``env`` from ``reset(seed)`` until success or ``settings.max_policy_steps``.
    ``subtask()`` is asked once before each policy step.

    Row k of a chunk is due (k + 1) periods after its observation; between rows the command is
    interpolated linearly, starting from the command before. A policy that raises, or returns what
    must not be executed, ends the episode as a failure with ``error`` set.
    Raises ValueError when policy, robot and settings do not fit.
    """
    began = perf_counter()
    settings = settings or RolloutSettings()
    env.reset(seed, asked_object)
    policy.reset()
    robot = _Robot(policy, env, settings)
    log = _Log(macs, scoring_macs)
    error = ''
    log.see(env.stage)
    max_steps = settings.max_policy_steps or math.ceil(env.time_limit_s / robot.step_s - 1e-6)
    while log.steps < max_steps and not env.success:
        observation = robot.observe()
        now = subtask() if subtask else ''
        try:
            output = policy.predict(observation)
            rows = robot.waypoints(output.chunk)
        except Exception as problem:  # whatever a policy may raise: it is what is being judged
            error = f'{type(problem).__name__}: {problem}'
            break
        log.add(output, now)
        if on_step is not None:
            on_step(observation, output)
        robot.execute(rows, output.chunk, on_waypoint=log.see)
    return EpisodeResult(
        seed=seed,
        asked_object=asked_object,
        target=env.target_index,
        instruction=env.instruction,
        success=env.success and not error,
        stage=env.stage,
        policy_steps=log.steps,
        duration_s=env.time_ns * 1e-9,
        wall_s=perf_counter() - began,
        error=error,
        **log.summary(),
    )


def first_observation(
    policy: Policy, env: Environment, seed: int, settings: RolloutSettings
) -> Observation:
    """What `run_episode` shows the policy first. Raises ValueError as it does."""
    env.reset(seed)
    return _Robot(policy, env, settings).observe()


class _Robot:
    """Observations in the policy's terms, waypoints in the robot's."""

    def __init__(self, policy: Policy, env: Environment, settings: RolloutSettings) -> None:
        spec = self._spec = policy.spec
        self._env = env
        names = env.layout.names
        if set(names) != set(spec.joint_names):
            raise ValueError(
                f'policy {spec.name!r} moves {list(spec.joint_names)}, the robot has {list(names)}'
            )
        self._to_robot = [spec.joint_names.index(name) for name in names]
        horizon = settings.execution_horizon or spec.execution_horizon
        if not 1 <= horizon <= spec.chunk_size:
            raise ValueError(
                f'execution_horizon must be in [1, {spec.chunk_size}] (the chunk of '
                f'{spec.name!r}), got {horizon}'
            )
        self.step_s = horizon * spec.period_s
        self._tick_ns = round(env.control_period_s * 1e9)
        self._period_ticks = max(1, round(spec.period_s / env.control_period_s))
        self._ticks = max(1, round(horizon * spec.period_s / env.control_period_s))
        self._latency_ticks = settings.latency_ticks
        if self._latency_ticks >= self._ticks:
            raise ValueError(
                f'latency_ticks must be below {self._ticks}, the control ticks of one policy '
                f'step, got {self._latency_ticks}; a slower policy would never catch up'
            )
        self._path = _Path(env.state().positions, env.time_ns)

    def observe(self) -> Observation:
        stamp_ns = self._env.time_ns
        images = {
            view.name: CameraImage(self._env.render(view.name), view.name, stamp_ns)
            for view in self._spec.views
        }
        return Observation(images, self._env.state(), self._env.instruction, stamp_ns)

    def waypoints(self, chunk: ActionChunk) -> FloatArray:
        """[chunk_size, n] in the robot's joint order; ValueError if it must not be executed."""
        if set(chunk.joint_names) != set(self._spec.joint_names):
            raise ValueError(f'the chunk names other joints than the policy: {chunk.joint_names}')
        if not np.isfinite(chunk.positions).all():
            raise ValueError('the chunk has NaN or infinite joint targets')
        order = [chunk.joint_names.index(self._spec.joint_names[k]) for k in self._to_robot]
        return chunk.positions[:, order]

    def execute(
        self, rows: FloatArray, chunk: ActionChunk, on_waypoint: Callable[[str], None]
    ) -> None:
        """Until the next policy step is due, or success; judged once a waypoint."""
        for tick in range(self._ticks):
            if tick == self._latency_ticks:
                due = chunk.start_ns + chunk.period_ns * np.arange(
                    1, len(rows) + 1, dtype=np.int64
                )
                self._path.replace(rows, due, self._env.time_ns)
            self._env.step(self._path.at(self._env.time_ns + self._tick_ns))
            if (tick + 1) % self._period_ticks == 0:
                on_waypoint(self._env.stage)
                if self._env.success:
                    return


class _Path:
    """Straight lines through timed waypoints; after the last one it stays there."""

    def __init__(self, position: FloatArray, now_ns: int) -> None:
        self._times = np.array([now_ns], dtype=np.int64)
        self._points = position[None]

    def replace(self, rows: FloatArray, due_ns: npt.NDArray[np.int64], now_ns: int) -> None:
        """Go on from where the path is now to the rows that are not yet due."""
        ahead = due_ns > now_ns
        self._points = np.concatenate([self.at(now_ns)[None], rows[ahead]])
        self._times = np.concatenate([[now_ns], due_ns[ahead]])

    def at(self, now_ns: int) -> FloatArray:
        after = int(np.searchsorted(self._times, now_ns, side='right'))
        if after == len(self._times):
            return self._points[-1]
        begin, end = self._times[after - 1], self._times[after]
        share = (now_ns - begin) / (end - begin)
        start = self._points[after - 1]
        return start + (self._points[after] - start) * share


@dataclass
class _Log:
    """What adds up over an episode."""

    macs: MacsOfStep | None
    scoring_macs: MacsOfStep | None
    traces: list[PruningTrace] = field(default_factory=list)
    subtasks: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    stages: dict[str, None] = field(default_factory=dict)  # an ordered set

    @property
    def steps(self) -> int:
        return len(self.traces)

    def see(self, stage: str) -> None:
        self.stages.setdefault(stage)

    def add(self, output: PolicyOutput, subtask: str) -> None:
        self.traces.append(output.trace)
        self.subtasks.append(subtask)
        self.latencies_ms.append(float(output.latency_ms['total']))

    def summary(self) -> dict[str, Any]:
        keyframes = [k for k, trace in enumerate(self.traces) if trace.is_key_timestep]
        by_kind: dict[bool, list[float]] = {True: [], False: []}
        for trace, latency_ms in zip(self.traces, self.latencies_ms, strict=True):
            by_kind[trace.is_key_timestep].append(latency_ms)
        return {
            'stages': tuple(self.stages),
            'subtasks': tuple(filter(None, self.subtasks)),
            'keyframes': len(keyframes),
            'keyframe_steps': tuple(keyframes),
            'keyframe_reasons': tuple(self.traces[k].keyframe_reason for k in keyframes),
            'retained_tokens_mean': _mean([trace.n_retained for trace in self.traces]),
            'pruning_ratio_mean': _mean([trace.pruning_ratio for trace in self.traces]),
            'macs_mean': self._mean_of(self.macs),
            'scoring_macs_mean': self._mean_of(self.scoring_macs),
            'latency_ms_mean': _mean(self.latencies_ms),
            'latency_ms_p50': _median(self.latencies_ms),
            'latency_ms_key_p50': _median(by_kind[True]),
            'latency_ms_pruned_p50': _median(by_kind[False]),
        }

    def _mean_of(self, count: MacsOfStep | None) -> float:
        return _mean([count(trace) for trace in self.traces] if count else [])


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values)) if values else float('nan')


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else float('nan')
