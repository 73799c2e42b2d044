"""`safe-pruner play`: its clock, which player it takes, and the command itself over DDS."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from safe_pruner_ros.ros.bags.reader import Bag

pytestmark = pytest.mark.ros

MS = 1_000_000


def test_the_play_clock() -> None:
    from safe_pruner_ros.ros.bags.player import PlayClock

    wall = [0]
    clock = PlayClock(10.0, lambda: wall[0])
    clock.set(1_000 * MS)
    wall[0] = 50 * MS
    assert clock.now_ns() == 1_500 * MS and clock.wait_s(2_000 * MS) == pytest.approx(0.05)
    clock.pause()
    wall[0] = 5_000 * MS
    assert clock.now_ns() == 1_500 * MS and clock.wait_s(2_000 * MS) == float('inf')
    clock.resume()
    wall[0] += 100 * MS
    assert clock.now_ns() == 2_500 * MS and clock.wait_s(2_000 * MS) < 0


def test_ros2_bag_play_where_it_is_installed(recording, sim_config, monkeypatch, tmp_path) -> None:
    """The same topics and clock; what it cannot do is left to our own player."""
    from safe_pruner_ros.cli import build_parser
    from safe_pruner_ros.ros.bags import play
    from safe_pruner_ros.ros.bags.player import plan_routes

    monkeypatch.setattr(play, 'has_ros2_bag', lambda: True)

    def command(clock: str, *more: str, mapping: dict[str, str] | None = None) -> list[str]:
        arguments = build_parser().parse_args(['play', str(recording), *more])
        with Bag(recording) as bag:
            return play.choose_player(
                arguments, plan_routes(bag, sim_config.robot, mapping or {}), clock
            )

    found = command('record', '--loop', '--rate', '2', '--start-offset', '0.5')
    assert found[:6] == ['ros2', 'bag', 'play', str(recording), '--rate', '2']
    assert '--loop' in found and '--start-offset' in found and '--clock' in found
    topics = found[found.index('--topics') + 1 :]
    assert set(topics) == {
        '/instruction', '/joint_states', *(c.topic for c in sim_config.robot.cameras),
    }  # fmt: skip
    assert '/clock' in command('topic') and '--clock' not in command('topic')
    assert command('header') == [] and command('record', '--player', 'own') == []
    twice = {'head': '/camera/left_wrist/image_raw'}
    assert command('record', mapping=twice) == []
    with pytest.raises(ValueError, match='plays a topic once; use --player own'):
        command('record', '--player', 'ros2', mapping=twice)
    monkeypatch.setattr(play, 'has_ros2_bag', lambda: False)
    assert command('record') == []
    with pytest.raises(ValueError, match='ros2 bag is not installed'):
        command('record', '--player', 'ros2')


def test_the_command_plays_pauses_and_starts_in_the_middle(recording, episode, kit) -> None:
    """Own process, own domain of the tests: what was said before the middle is said first."""
    import os
    import subprocess
    import sys

    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import String
    from std_srvs.srv import Trigger
    from trajectory_msgs.msg import JointTrajectory

    context = rclpy.Context()
    rclpy.init(context=context)
    listener = rclpy.create_node('listener', context=context)
    heard: dict[str, list[Any]] = {}
    cameras = [f'/camera/{view}/image_raw' for view in kit.VIEWS]
    kinds = {**dict.fromkeys(cameras, Image), '/joint_states': JointState, '/instruction': String,
             '/clock': Clock, '/arm_left/joint_trajectory': JointTrajectory}  # fmt: skip
    for topic, kind in kinds.items():
        heard[topic] = []
        listener.create_subscription(kind, topic, heard[topic].append, 500)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    player = subprocess.Popen(
        [sys.executable, '-c', 'from safe_pruner_ros.cli import run; run()', 'play',
         str(recording), '--start-offset', '1.0', '--start-paused', '--player', 'own',
         '--wait', '60'],
        env=dict(os.environ), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def spin(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, {t: len(m) for t, m in heard.items()}
            executor.spin_once(timeout_sec=0.05)

    try:
        client = listener.create_client(Trigger, '/safe_pruner_play/resume')
        spin(lambda: len(heard['/clock']) > 20)
        assert not heard['/joint_states'] and len({m.clock.sec for m in heard['/clock']}) == 1
        spin(client.service_is_ready)
        client.call_async(Trigger.Request())
        spin(lambda: player.poll() is not None)
        assert player.returncode == 0, player.stderr
        middle_ns = episode[0].log_ns + 1_000 * MS
        expected = [e for e in episode if e.log_ns >= middle_ns]
        count = {topic: sum(e.topic == topic for e in expected) for topic in kinds}
        spin(lambda: len(heard['/joint_states']) >= count['/joint_states'], 5.0)
        for topic in ('/joint_states', *cameras):
            assert len(heard[topic]) == count[topic], topic
        assert [m.data for m in heard['/instruction']] == [episode[0].values['data']]
        assert heard['/arm_left/joint_trajectory'] == []
        clock = [m.clock.sec * 10**9 + m.clock.nanosec for m in heard['/clock']]
        assert clock == sorted(clock) and clock[-1] == expected[-3].log_ns
    finally:
        player.kill()
        player.wait()
        executor.shutdown()
        listener.destroy_node()
        rclpy.shutdown(context=context)
