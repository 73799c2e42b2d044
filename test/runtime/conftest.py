"""A small robot, a scripted policy and a clock that moves when told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.control_bench import TICK_MS
from hypothesis import settings

from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.runtime.config import (
    CameraConfig,
    Config,
    JointConfig,
    JointMapping,
    RobotConfig,
    RuntimeConfig,
    SinkConfig,
    StateSourceConfig,
)
from safe_pruner_ros.runtime.control_loop import ControlLoop
from safe_pruner_ros.types import ActionChunk, CameraImage

settings.register_profile('runtime', deadline=None, max_examples=60)
settings.load_profile('runtime')

MS = 1_000_000
T0 = 1_000_000_000_000  # ns; far from zero, as real clocks are
LEFT, RIGHT = ('left_1', 'left_2', 'left_grip'), ('right_1', 'right_2', 'right_grip')
JOINTS = LEFT + RIGHT


def robot(**changes: object) -> RobotConfig:
    """Two arms of two joints and a gripper, two views, one state source and sink per arm."""
    joints = tuple(
        JointConfig(name, 'gripper', 0.0, 1.0, 5.0, 0.1)
        if name.endswith('grip')
        else JointConfig(name, 'arm', -1.0, 0.5, 4.0, 0.05)
        for name in JOINTS
    )
    sources, sinks = [], []
    for side, names in (('left', LEFT), ('right', RIGHT)):
        maps = tuple(JointMapping(n, scale=100.0 if n.endswith('grip') else 1.0) for n in names)
        sources.append(StateSourceConfig(side, f'/{side}/joint_states', maps))
        sinks.append(SinkConfig(side, f'/{side}/joint_trajectory', maps))
    base = RobotConfig(
        name='small',
        joints=joints,
        cameras=(
            CameraConfig('head', '/head'),
            CameraConfig('wrist', '/wrist', moving_joints=('left_1', 'left_2')),
        ),
        state_sources=tuple(sources),
        sinks=tuple(sinks),
        dry_run=False,
    )
    return replace(base, **changes)


def config(**runtime: object) -> Config:
    return Config(robot(), runtime=replace(RuntimeConfig(), **runtime))


def picture(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def image(view: str, stamp_ns: int, seed: int | None = None) -> CameraImage:
    return CameraImage(picture(stamp_ns % 2**31 if seed is None else seed), view, stamp_ns)


class Clock:
    """A node clock and a steady clock that move together unless told otherwise."""

    def __init__(self) -> None:
        self.ns, self.steady_ns = T0, 77

    def __call__(self) -> int:
        return self.ns

    def steady(self) -> int:
        return self.steady_ns

    def advance(self, ns: int) -> None:
        self.ns += ns
        self.steady_ns += ns


class ScriptedPolicy:
    """Answers with ``script(observation) -> rows [chunk, n]``, or raises what it raises."""

    def __init__(self, script: Callable[..., np.ndarray] | None = None, chunk: int = 4) -> None:
        views = (ViewSpec('head', 24, 32, 2, 2), ViewSpec('wrist', 24, 32, 2, 2))
        self.spec = PolicySpec('scripted', views, JOINTS, chunk, 0.1, 2)
        self.script = script or (
            lambda obs: np.tile(obs.state.ordered(self.spec.joint_names), (chunk, 1))
        )
        self.observations: list[object] = []
        self.resets = self.keyframes = 0
        self.is_key = self.is_full = False
        self.unpruned = self.script
        self.audited: list[object] = []
        self.ratios: list[float] = []

    def check_instruction(self, instruction: str) -> None: ...

    def predict(self, observation):  # type: ignore[no-untyped-def]
        self.observations.append(observation)
        rows = np.asarray(self.script(observation), float)
        chunk = ActionChunk(rows, self.spec.joint_names, observation.stamp_ns, 100 * MS)
        retained = np.arange(8 if self.is_full else 4)
        trace = PruningTrace('x', 0.5, 8, retained, self.is_key, '', 0.9, 0.5, 1)
        return PolicyOutput(chunk, trace, {'total': 12.0})

    def predict_unpruned(self, observation):  # type: ignore[no-untyped-def]
        self.audited.append(observation)
        rows = np.asarray(self.unpruned(observation), float)
        chunk = ActionChunk(rows, self.spec.joint_names, observation.stamp_ns, 100 * MS)
        trace = PruningTrace('unpruned', 1.0, 8, np.arange(8), False, '', 0.9, 0.5, 1)
        return PolicyOutput(chunk, trace, {'total': 20.0})

    def update_pruner(self, **changes: float) -> None:
        self.ratios.append(changes['retention_ratio'])

    def force_keyframe(self) -> None:
        self.keyframes += 1

    def forget_plans(self) -> None: ...

    def reset(self) -> None:
        self.resets += 1


class Feeder:
    """Stores fresh images and joints of a small robot into a buffer or a loop.

    The joints had been sent for a while when they are first stored, and where the clock goes back.
    """

    def __init__(self, target: object) -> None:
        self.target = target
        self.positions = dict.fromkeys(JOINTS, 0.1)
        self._last_joints_ns: int | None = None

    def images(self, now_ns: int, views: tuple[str, ...] = ('head', 'wrist')) -> None:
        for view in views:
            assert self.target.store_image(image(view, now_ns), now_ns) is None

    def joints(self, now_ns: int) -> None:
        last_ns, self._last_joints_ns = self._last_joints_ns, now_ns
        if last_ns is None or now_ns < last_ns - 100 * MS:
            for ms in range(120, 0, -20):
                self.sample(now_ns - ms * MS, now_ns)
        self.sample(now_ns, now_ns)

    def sample(self, stamp_ns: int, receive_ns: int) -> None:
        """One message of each arm."""
        for side, names in (('left', LEFT), ('right', RIGHT)):
            values = [self.positions[n] * (100 if n.endswith('grip') else 1) for n in names]
            assert self.target.store_joints(side, names, values, stamp_ns, receive_ns) is None

    def all(self, now_ns: int) -> None:
        self.joints(now_ns)
        self.images(now_ns)


@pytest.fixture(scope='session')
def kit() -> SimpleNamespace:
    """Builders of this file, for tests (session scope: hypothesis may use it)."""
    return SimpleNamespace(
        MS=MS, T0=T0, LEFT=LEFT, RIGHT=RIGHT, JOINTS=JOINTS, robot=robot, config=config,
        picture=picture, image=image, Clock=Clock, Policy=ScriptedPolicy, Feeder=Feeder,
        Event=threading.Event,
    )  # fmt: skip


@pytest.fixture
def make_bench(kit):
    def make_bench(policy=None, config=None):
        bench = SimpleNamespace(clock=kit.Clock(), policy=policy or kit.Policy(), drop=set())
        config = config or kit.config()
        bench.loop = ControlLoop(config, bench.policy, bench.clock, steady=bench.clock.steady)
        bench.feed, bench.commands, bench.verdicts = kit.Feeder(bench.loop), [], []
        bench.loop.set_instruction('lift the cup')

        def run(ms):
            for _ in range(ms // TICK_MS):
                bench.clock.advance(TICK_MS * kit.MS)
                now = bench.clock.ns
                if 'joints' not in bench.drop:
                    bench.feed.joints(now)
                bench.feed.images(now, tuple({'head', 'wrist'} - bench.drop))
                bench.loop.worker.run_once()
                verdict = bench.loop.tick(now)
                bench.verdicts.append(verdict)
                if verdict.command is not None:
                    bench.commands.append(verdict.command.positions)
                    bench.feed.positions = dict(
                        zip(kit.JOINTS, verdict.command.positions, strict=True)
                    )
            return verdict

        bench.run = run
        return bench

    return make_bench
