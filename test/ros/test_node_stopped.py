"""Row 52: the node's process is stopped (Ctrl-Z, a paused container), an arm is moved, and on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NODE = """
import sys
from helpers.fake_policy import FakePolicy
from safe_pruner_ros.ros.node import main
sys.exit(main(sys.argv, lambda config: FakePolicy()))
"""


@pytest.fixture
def process(bench, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The node in a process of its own, which can be stopped."""
    (tmp_path / 'robot.yaml').write_text(bench.yaml)
    (tmp_path / 'policy.yaml').write_text('policy: {name: embedded}\n')
    helpers = Path(__file__).parents[1]
    environment = {**os.environ, 'PYTHONPATH': f'{helpers}:{os.environ.get("PYTHONPATH", "")}'}
    parameters = {
        'robot_file': tmp_path / 'robot.yaml',
        'policy_file': tmp_path / 'policy.yaml',
        'activation_timeout_s': 10.0,
        'diagnostics_rate_hz': 20.0,
    }
    given = [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
    command = [sys.executable, '-c', NODE, '--ros-args', *given]
    with (tmp_path / 'log').open('w') as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield child
    child.send_signal(signal.SIGCONT)
    child.send_signal(signal.SIGINT)
    try:
        child.wait(10.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def test_it_goes_on_from_where_the_arm_is_and_not_from_where_it_was_sent(bench, process) -> None:
    robot = bench.robot
    assert robot.configure() and robot.activate()
    robot.say('lift the block')
    robot.wait_state('RUN', timeout_s=20.0)
    bench.wait_for(lambda: robot.sent() > 20, 10.0, 'commands')
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    last = robot.received['/arm_left/command'][-1].points[0].positions[0]
    for messages in robot.received.values():
        messages.clear()  # the robot follows the newest command that it has
    here = robot.positions['left_1'] = last - 0.4  # less than what loses track
    time.sleep(1.0)
    assert robot.sent() == 0
    process.send_signal(signal.SIGCONT)
    bench.wait_for(lambda: robot.sent() > 0, 15.0, 'a command after it goes on')
    first = robot.received['/arm_left/command'][0].points[0].positions[0]
    assert abs(first - here) < 0.1
