"""A bag played over DDS into the live node: the same observations and actions as read offline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safe_pruner_ros.policies.embedded import EmbeddedPolicy, load_weights
from safe_pruner_ros.ros.bags.reader import Bag, BagError

pytestmark = pytest.mark.ros

MS = 1_000_000
SETTINGS = {'retention_ratio': 0.3, 'similarity_threshold': 0.5, 'max_keyframe_age': 8}


class Watched:
    """A policy that keeps what it saw and answered."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.spec = policy.spec
        self.steps: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def predict(self, observation: Any) -> Any:
        output = self._policy.predict(observation)
        self.steps.append((observation, output))
        return output


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f'waited {timeout_s} s for {what}'
        time.sleep(0.0005)


class Live:
    """The real node on simulated time, active before the first message, in its own thread."""

    def __init__(self, policy: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        import rclpy
        from rclpy.parameter import Parameter
        from rclpy.signals import SignalHandlerOptions

        from safe_pruner_ros.ros.lifecycle import StopSignal, make_executor, spin_until
        from safe_pruner_ros.ros.node import SafePrunerNode
        from safe_pruner_ros.ros.session import Session
        from safe_pruner_ros.runtime import inference_worker

        # Between two messages of lockstep nothing may happen: the worker looks when told to, and
        # a bag that waits for it is no clock that stands still.
        monkeypatch.setattr(inference_worker, 'POLL_S', 3600.0)
        monkeypatch.setattr(Session, 'wait_until_ready', lambda *arguments: None)
        self.context = rclpy.Context()
        rclpy.init(context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self._stop = StopSignal()
        values = {
            'robot_file': 'sim', 'use_sim_time': True, 'robot.dry_run': True,
            'runtime.worker.max_clock_stop_s': 3600.0, 'runtime.control_rate_hz': 200.0,
        }  # fmt: skip
        self.node = SafePrunerNode(
            lambda config: policy, self._stop, context=self.context,
            parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
        )  # fmt: skip
        assert self.node.trigger_configure().name == 'SUCCESS'
        policy.steps.clear()  # of the warm-up
        self.loop = self.node._session.loop
        self.looks, self.ticks = self._count('run_once'), self._count('check')
        assert self.node.trigger_activate().name == 'SUCCESS'
        self._executor = make_executor(self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(
            target=spin_until, args=(self._executor, self._stop), daemon=True
        )
        self._thread.start()

    def _count(self, method: str) -> list[int]:
        owner = self.loop.worker if method == 'run_once' else self.loop.guard
        original, count = getattr(owner, method), [0]

        def counted(*arguments: Any) -> Any:
            result = original(*arguments)
            count[0] += 1
            return result

        setattr(owner, method, counted)
        return count

    def now_ns(self) -> int:
        return int(self.node.get_clock().now().nanoseconds)

    def received(self) -> int:
        sources = self.loop.buffer.statistics(self.now_ns())
        return sum(s.accepted + sum(s.refused.values()) for s in sources)

    def settle(self) -> None:
        """Two looks of the worker and a control tick later, everything is as it will stay."""
        for _ in range(2):
            before = self.looks[0]
            self.loop.worker.notify()
            until(lambda before=before: self.looks[0] > before, 'the worker')
        self.tick()

    def tick(self) -> None:
        before = self.ticks[0]
        until(lambda: self.ticks[0] > before + 1, 'the control timer')

    def close(self) -> None:
        import rclpy

        self._stop.set()
        self._thread.join(5.0)
        self.node.end()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def live(monkeypatch, seeded_checkpoint) -> Iterator[Callable[[], tuple[Live, Watched]]]:
    started: list[Live] = []

    def start() -> tuple[Live, Watched]:
        policy = Watched(EmbeddedPolicy(load_weights(seeded_checkpoint), 'safe_pruner', SETTINGS))
        started.append(Live(policy, monkeypatch))
        return started[-1], policy

    yield start
    for node in started:
        node.close()


def play_in_lockstep(bag: Bag, live: Live, robot: Any, loops: int = 1) -> None:
    """The real player over DDS; each message waits until the node has dealt with the last."""
    from rclpy.executors import SingleThreadedExecutor

    from safe_pruner_ros.ros.bags.play import choose_clock
    from safe_pruner_ros.ros.bags.player import Player, plan_routes, wait_for_listeners

    class Lockstep(Player):
        def send_clock(self, now_ns: int) -> None:
            super().send_clock(now_ns)
            until(lambda: live.now_ns() == now_ns, '/clock')
            live.tick()

        def send(self, topic: str, data: bytes) -> None:
            if topic == robot.instruction_topic:
                super().send(topic, data)
                until(lambda: bool(live.loop.buffer.instruction), 'the instruction')
                return
            before = live.received()
            super().send(topic, data)
            until(lambda: live.received() > before, f'a message on {topic}')
            live.settle()

        def _tick(self, next_ns: int) -> None:
            """No /clock but that of the messages."""

    routes = plan_routes(bag, robot, {})
    player = Lockstep(
        bag, routes, choose_clock(bag, 'auto'), rate=1e6, latched=[robot.instruction_topic],
        context=live.context,
    )  # fmt: skip
    executor = SingleThreadedExecutor(context=live.context)
    executor.add_node(player)
    try:
        assert wait_for_listeners(player, executor, 20.0, lambda: False) == []
        for _ in range(loops):
            assert player.play(executor, lambda: False) > 0
    finally:
        executor.shutdown()
        player.destroy_node()


def thinned(episode: list[Any], kit: Any) -> list[Any]:
    """Every fourth joint message and no commands: lockstep takes 60 ms a message."""
    keep, number = [], 0
    for entry in episode:
        if entry.kind == kit.TRAJECTORY:
            continue
        if entry.kind == kit.JOINTS:
            number += 1
            if number % 4:
                continue
        keep.append(entry)
    return keep


def drop_head(entries: list[Any], kit: Any) -> list[Any]:
    gap = range(500 * MS, 1000 * MS)
    return [
        e
        for e in entries
        if not (e.topic.startswith('/camera/head') and e.stamp_ns - kit.START_NS in gap)
    ]


def late_burst(entries: list[Any], kit: Any) -> list[Any]:
    """Pictures of 0.4 to 0.9 s arrive together, late. The last one before them is too old when the
    next policy step is due: a worker that looks at any time would find what replay does not."""
    release = kit.START_NS + 950 * MS
    moved = [
        replace(e, log_ns=release + n)
        if e.kind == kit.IMAGE and 400 * MS <= e.stamp_ns - kit.START_NS < 900 * MS
        else e
        for n, e in enumerate(entries)
    ]
    return sorted(moved, key=lambda e: e.log_ns)


@pytest.mark.parametrize('change', [None, drop_head, late_burst])
def test_live_and_offline_are_the_same(
    change, tmp_path, episode, kit, live, sim_config, source_of, seeded_checkpoint
) -> None:
    entries = thinned(episode, kit)
    if change is not None:
        entries = change(entries, kit)
    # As the seeded policy knows no other sentence.
    entries = [
        replace(e, values={'data': kit.INSTRUCTION}) if e.kind == kit.STRING else e
        for e in entries
    ]
    path = kit.write_bag(tmp_path / 'bag', entries)
    node, policy = live()
    with Bag(path) as bag:
        play_in_lockstep(bag, node, sim_config.robot)
    offline, *_ = source_of(path)
    assert len(policy.steps) == len(offline) >= 4
    reference = EmbeddedPolicy(load_weights(seeded_checkpoint), 'safe_pruner', SETTINGS)
    for seen, (observation, output) in zip(offline, policy.steps, strict=True):
        assert observation.stamp_ns == seen.stamp_ns
        assert observation.instruction == seen.instruction
        assert np.array_equal(observation.state.positions, seen.state.positions)
        for view, image in seen.images.items():
            assert observation.images[view].stamp_ns == image.stamp_ns
            assert np.array_equal(observation.images[view].rgb, image.rgb)
        expected = reference.predict(seen)
        assert np.array_equal(output.chunk.positions, expected.chunk.positions)
        assert output.trace.keyframe_reason == expected.trace.keyframe_reason
        assert np.array_equal(output.trace.retained_index, expected.trace.retained_index)


def test_a_loop_is_a_clock_that_jumps_back(tmp_path, episode, kit, live, sim_config) -> None:
    """The second round gives as many observations as the first, of the same moments."""
    entries = [
        replace(e, values={'data': kit.INSTRUCTION}) if e.kind == kit.STRING else e
        for e in thinned(episode, kit)
        if e.stamp_ns < kit.START_NS + 1000 * MS
    ]
    path = kit.write_bag(tmp_path / 'bag', entries)
    node, policy = live()
    with Bag(path) as bag:
        play_in_lockstep(bag, node, sim_config.robot, loops=2)
    stamps = [observation.stamp_ns for observation, _ in policy.steps]
    half = len(stamps) // 2
    assert half >= 3 and stamps[:half] == stamps[half:]


def test_commands_are_never_played(recording, sim_config, tmp_path, episode, kit) -> None:
    from safe_pruner_ros.ros.bags.player import plan_routes

    robot = sim_config.robot
    with Bag(recording) as bag:
        routes = plan_routes(bag, robot, {})
        topics = {topic for route in routes for topic in route.outputs}
        assert topics == {
            *(camera.topic for camera in robot.cameras), '/joint_states', '/instruction',
        }  # fmt: skip
        with pytest.raises(ValueError, match='could move a robot'):
            plan_routes(bag, robot, {}, ['/arm_left/joint_trajectory'])
        with pytest.raises(ValueError, match='rename joints in the robot file'):
            plan_routes(bag, robot, {'joint.astribot_arm_left_joint_1': 'x'})
        with pytest.raises(ValueError, match='nothing to play for'):
            plan_routes(bag, robot, {'arm_left': '/arm_right/joint_trajectory'})
        mapped = plan_routes(bag, robot, {'head': '/camera/left_wrist/image_raw'})
        twice = next(r for r in mapped if r.topic == '/camera/left_wrist/image_raw')
        assert set(twice.outputs) == {'/camera/head/image_raw', '/camera/left_wrist/image_raw'}
    strange = kit.write_bag(tmp_path / 'strange', [replace(episode[0], topic='/x')])
    with Bag(strange) as bag, pytest.raises(BagError, match='use --map NAME=TOPIC'):
        plan_routes(bag, robot, {})
