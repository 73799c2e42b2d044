"""The simulated robot's two clocks: physics at the control period, cameras at their own rate.

Two environments of the same scene: one thread steps the first and never renders, the other puts
the second into the newest saved state and renders. So a slow picture delays no tick, all views of
a set show one moment, and the GL context stays in one thread. Knows no ROS.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from safe_pruner_ros.ros.trajectory_follower import TrajectoryFollower
from safe_pruner_ros.types import ArmState, CameraImage, FloatArray, JointLayout, UInt8Array

# Simulated time starts here, because a stamp of zero means "no stamp" to ROS.
START_NS = 1_000_000_000
MAX_LAG_TICKS = 10  # further behind than this, lost time is given up instead of caught up


class Environment(Protocol):
    """The part of sim.DualArmEnv that is used here."""

    layout: JointLayout
    control_period_s: float

    @property
    def instruction(self) -> str: ...
    @property
    def success(self) -> bool: ...
    @property
    def stage(self) -> str: ...
    def reset(self, seed: int, target: int | None = None) -> None: ...
    def step(self, positions: FloatArray) -> None: ...
    def state(self) -> ArmState: ...
    def save_state(self) -> Any: ...
    def restore_state(self, state: Any) -> None: ...
    def render(self, view: str) -> UInt8Array: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Episode:
    """One attempt: the scene's seed, the object asked for (None: as drawn) and the sentence."""

    number: int
    seed: int
    target: int | None
    instruction: str


@dataclass(frozen=True)
class Moment:
    """The world after one tick. ``stamp_ns`` is simulated time and never goes back."""

    stamp_ns: int
    arm_state: ArmState
    saved: object
    episode: Episode
    success: bool
    stage: str


class PhysicsLoop(threading.Thread):
    """Steps the world towards the followed targets in (scaled) real time, in its own thread.

    ``on_tick`` gets every Moment, in this thread. ``rate_factor`` is simulated per wall time.
    """

    def __init__(
        self,
        make_environment: Callable[[], Environment],
        seed: int,
        target: int | None,
        rate_factor: float,
        on_tick: Callable[[Moment], None],
        on_error: Callable[[BaseException], None],
        judge_period_ticks: int = 5,
    ) -> None:
        super().__init__(name='physics', daemon=True)
        if not 0.0 < rate_factor <= 100.0:
            raise ValueError(f'rate_factor must be in (0, 100], got {rate_factor}')
        self._environment = make_environment()
        layout = self._environment.layout
        self.follower = TrajectoryFollower(layout, 0.5 * (layout.lower + layout.upper))
        self.period_ns = round(self._environment.control_period_s * 1e9)
        self._rate_factor = rate_factor
        self._on_tick, self._on_error = on_tick, on_error
        self._judge_period_ticks = judge_period_ticks
        self._request: tuple[int, int | None] | None = (seed, target)
        self._reset_done = threading.Condition()
        self._stopping = threading.Event()
        self._tick_ns, self._tick_wall_ns = START_NS, time.perf_counter_ns()
        self._episode: Episode | None = None
        self.latest: Moment | None = None
        self.lost_ticks = 0

    def clock_ns(self) -> int:
        """Simulated time now: the last tick's, plus what passed since, at most one period."""
        wall_ns = time.perf_counter_ns() - self._tick_wall_ns
        return self._tick_ns + min(int(wall_ns * self._rate_factor), self.period_ns - 1)

    def reset(self, seed: int, target: int | None, timeout_s: float) -> Episode:
        """Start a new episode and wait until it has begun. Raises TimeoutError."""
        with self._reset_done:
            before = self._episode.number if self._episode else 0
            self._request = (seed, target)
            begun = self._reset_done.wait_for(
                lambda: self._episode is not None and self._episode.number > before, timeout_s
            )
            if not begun or self._episode is None:
                raise TimeoutError(f'the simulation did not reset within {timeout_s:g} s')
            return self._episode

    def request_stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            self._loop()
        except Exception as error:
            self._on_error(error)
        finally:
            self._environment.close()

    def _loop(self) -> None:
        environment, tick, success, stage = self._environment, 0, False, ''
        due_ns = time.perf_counter_ns()
        while not self._stopping.is_set():
            fresh = self._request is not None
            if fresh:
                self._begin_episode()
            environment.step(self.follower.target(self._tick_ns + self.period_ns))
            tick += 1
            if fresh or tick % self._judge_period_ticks == 0:
                success, stage = environment.success, environment.stage
            self._tick_wall_ns = time.perf_counter_ns()
            self._tick_ns += self.period_ns
            assert self._episode is not None
            state = replace(environment.state(), stamp_ns=self._tick_ns)
            saved = environment.save_state()
            self.latest = Moment(self._tick_ns, state, saved, self._episode, success, stage)
            self._on_tick(self.latest)
            due_ns += int(self.period_ns / self._rate_factor)
            behind_ns = time.perf_counter_ns() - due_ns
            if behind_ns < 0:
                time.sleep(-behind_ns * 1e-9)
            elif fresh or behind_ns > MAX_LAG_TICKS * self.period_ns:
                self.lost_ticks += behind_ns // self.period_ns
                due_ns = time.perf_counter_ns()

    def _begin_episode(self) -> None:
        with self._reset_done:
            assert self._request is not None
            seed, target = self._request
            self._request = None
            self._environment.reset(seed, target)
            self.follower.hold(self._environment.state().positions)
            number = self._episode.number + 1 if self._episode else 1
            self._episode = Episode(number, seed, target, self._environment.instruction)
            self._reset_done.notify_all()


class CameraLoop(threading.Thread):
    """Renders the newest Moment at ``rate_hz`` (wall time), in its own thread.

    ``wanted()`` names the views to render now; ``on_images`` gets the set, all of one moment.
    """

    def __init__(
        self,
        make_environment: Callable[[], Environment],
        newest: Callable[[], Moment | None],
        rate_hz: float,
        wanted: Callable[[], tuple[str, ...]],
        on_images: Callable[[Mapping[str, CameraImage]], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name='cameras', daemon=True)
        if not 0.0 < rate_hz <= 200.0:
            raise ValueError(f'camera rate must be in (0, 200] Hz, got {rate_hz}')
        self._make_environment, self._newest = make_environment, newest
        self._period_s = 1.0 / rate_hz
        self._wanted, self._on_images, self._on_error = wanted, on_images, on_error
        self._stopping = threading.Event()
        self.render_ms = float('nan')

    def request_stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        environment = None
        try:
            environment = self._make_environment()
            self._loop(environment)
        except Exception as error:
            self._on_error(error)
        finally:
            if environment is not None:
                environment.close()

    def _loop(self, environment: Environment) -> None:
        episode, last_stamp_ns = 0, -1
        due_s = time.monotonic()
        while not self._stopping.is_set():
            moment, views = self._newest(), self._wanted()
            if moment is not None and views and moment.stamp_ns != last_stamp_ns:
                if moment.episode.number != episode:
                    environment.reset(moment.episode.seed, moment.episode.target)
                    episode = moment.episode.number
                last_stamp_ns = moment.stamp_ns
                begin_s = time.perf_counter()
                environment.restore_state(moment.saved)
                images = {
                    view: CameraImage(environment.render(view), view, moment.stamp_ns)
                    for view in views
                }
                self.render_ms = (time.perf_counter() - begin_s) * 1e3
                self._on_images(images)
            due_s = max(due_s + self._period_s, time.monotonic() - self._period_s)
            self._stopping.wait(max(0.0, due_s - time.monotonic()))
