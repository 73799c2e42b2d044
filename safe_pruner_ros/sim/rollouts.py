"""Lets the scripted expert drive an episode, cleanly or with noise bursts on its commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from safe_pruner_ros.sim.env import DualArmEnv
from safe_pruner_ros.sim.expert import ScriptedExpert
from safe_pruner_ros.types import FloatArray

PERIOD_S = 0.1
BURST_STEPS = (3, 8)  # policy steps of 0.1 s that one noise burst lasts


@dataclass(frozen=True)
class ExpertEpisode:
    """Outcome of an episode: ``n_steps`` counts 0.1 s waypoints executed until success."""

    seed: int
    success: bool
    n_steps: int
    stage: str


class NoiseBursts:
    """Constant joint offsets [16] rad that come and go; none on grippers (DART)."""

    def __init__(self, env: DualArmEnv, noise_rad: float, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 77])
        self._noise_rad = noise_rad
        self._arm = ~env.layout.is_gripper
        self._left = 0
        self._offset = np.zeros(len(env.layout))

    def offset(self) -> FloatArray:
        """The offset of the next waypoint."""
        if self._left == 0:
            self._left = int(self._rng.integers(*BURST_STEPS))
            active = self._noise_rad > 0 and self._rng.random() < 0.5
            noise = self._rng.normal(scale=self._noise_rad, size=len(self._arm)) if active else 0.0
            self._offset = np.where(self._arm, noise, 0.0)
        self._left -= 1
        return self._offset


def ticks_a_waypoint(env: DualArmEnv) -> int:
    """Control ticks in 0.1 s. ValueError where they do not fill it: motion would be faster or
    slower than planned."""
    ticks = round(PERIOD_S / env.control_period_s)
    if ticks < 1 or abs(ticks * env.control_period_s - PERIOD_S) > 1e-9:
        raise ValueError(
            f'control_period_s must divide the {PERIOD_S} s between two waypoints, got '
            f'{env.control_period_s}; use 0.02 or 0.1'
        )
    return ticks


def execute(env: DualArmEnv, start: FloatArray, end: FloatArray) -> None:
    """Command a straight line between two waypoints [16] over one period, tick by tick.

    Raises ValueError, see ``ticks_a_waypoint``; then nothing has moved.
    """
    ticks = ticks_a_waypoint(env)
    for tick in range(1, ticks + 1):
        env.step(start + (end - start) * (tick / ticks))


def run_expert(
    env: DualArmEnv,
    seed: int,
    noise_rad: float = 0.0,
    target: int | None = None,
    execution_horizon: int = 4,
    max_steps: int | None = None,
    extra_steps: int = 4,
    expert: ScriptedExpert | None = None,
    on_policy_step: Callable[[DualArmEnv, FloatArray], None] | None = None,
) -> ExpertEpisode:
    """One episode of ``seed``. ``on_policy_step(env, chunk [8, 16])`` sees each state with its
    label, before the chunk's first ``execution_horizon`` waypoints are executed.
    ``max_steps`` is the task's by default. Raises ValueError, see ``ticks_a_waypoint``; then the
    scene is what it was."""
    ticks_a_waypoint(env)
    max_steps = env.task.max_steps if max_steps is None else max_steps
    env.reset(seed, target)
    expert = expert or ScriptedExpert(env)
    noise = NoiseBursts(env, noise_rad, seed)
    command = env.state().positions
    solved_at: int | None = None
    step = 0
    while step < max_steps and (solved_at is None or step < solved_at + extra_steps):
        chunk = expert.chunk(env.target_index)
        if on_policy_step is not None:
            on_policy_step(env, chunk)
        for row in chunk[:execution_horizon]:
            waypoint = row + noise.offset()
            execute(env, command, waypoint)
            command = waypoint
            step += 1
            if solved_at is None and env.success:
                solved_at = step
    return ExpertEpisode(seed, solved_at is not None, solved_at or step, env.stage)
