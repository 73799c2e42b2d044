"""Which transitions the launch file asks for, and which of them are left to the operator.

On doubles of the launch system, which the wheels do not have; and on the real one where it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from helpers import launch_doubles
from helpers.launch_doubles import ACTIVATE, CONFIGURE

LAUNCH_FILE = launch_doubles.LAUNCH_FILES / 'pick_place.launch.py'


class Launch:
    """Handlers of the launch file, and what they ask for when something happens."""

    def __init__(self, actions: list[Any]) -> None:
        self.asked: list[Any] = []
        self._handlers: list[Any] = []
        self._visit(actions)

    def _visit(self, actions: list[Any]) -> None:
        for action in actions:
            kind = type(action).__name__
            if kind == 'RegisterEventHandler':
                self._handlers.append(action.values[0])
            elif kind == 'UnregisterEventHandler':
                self._handlers.remove(action.values[0])
            elif kind == 'EmitEvent':
                event = action.named['event']
                self.asked.append(event.named.get('transition_id') or type(event).__name__)

    def _happens(self, kind: str, actions: str, **event: str) -> list[Any]:
        self.asked.clear()
        for handler in tuple(self._handlers):
            wanted = {name: handler.named.get(name) for name in event}
            if type(handler).__name__ == kind and wanted == event:
                if handler.named.get('handle_once'):
                    self._handlers.remove(handler)
                self._visit(handler.named[actions])
        return list(self.asked)

    def starts(self) -> list[Any]:
        return self._happens('OnProcessStart', 'on_start')

    def ends(self) -> list[Any]:
        return self._happens('OnProcessExit', 'on_exit')

    def goes(self, start: str, goal: str) -> list[Any]:
        return self._happens('OnStateTransition', 'entities', start_state=start, goal_state=goal)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    launch_doubles.install(monkeypatch)
    return Launch(launch_doubles.load('pick_place.launch.py').bring_up('the node'))


def test_the_node_is_brought_to_active(launch: Launch) -> None:
    assert launch.starts() == [CONFIGURE]
    assert launch.goes('configuring', 'inactive') == [ACTIVATE]
    assert launch.goes('activating', 'active') == []
    assert launch.ends() == ['Shutdown']


def test_who_configures_again_to_look_first_gets_no_moving_arms(launch: Launch) -> None:
    launch.starts(), launch.goes('configuring', 'inactive'), launch.goes('activating', 'active')
    assert launch.goes('deactivating', 'inactive') == []
    assert launch.goes('cleaningup', 'unconfigured') == []
    assert launch.goes('configuring', 'inactive') == []
    assert launch.goes('activating', 'active') == []


def test_a_refusal_ends_the_start_but_not_the_work_afterwards(launch: Launch) -> None:
    assert launch.goes('configuring', 'unconfigured') == ['Shutdown']
    assert launch.goes('activating', 'inactive') == ['Shutdown']
    launch.goes('activating', 'active')
    assert launch.goes('configuring', 'unconfigured') == []
    assert launch.goes('activating', 'inactive') == []
    assert launch.ends() == ['Shutdown']


NODE = """
import sys
import rclpy
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn


class Logged(LifecycleNode):
    def note(self, text):
        with open(sys.argv[1], 'a') as log:
            print(text, file=log, flush=True)
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state):
        return self.note('configure')

    def on_activate(self, state):
        return self.note('activate')

    def on_deactivate(self, state):
        return self.note('deactivate')

    def on_cleanup(self, state):
        return self.note('cleanup')


rclpy.init()
rclpy.spin(Logged('safe_pruner'))
"""

BY_HAND = """
import importlib.util, sys, threading, time
from launch import LaunchDescription, LaunchService
from launch_ros.actions import LifecycleNode

spec = importlib.util.spec_from_file_location('launch_file', sys.argv[1])
launch_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch_file)
log = sys.argv[3]
node = LifecycleNode(name='safe_pruner', namespace='', executable=sys.executable,
                     arguments=[sys.argv[2], log])
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([*launch_file.bring_up(node), node]))


def said():
    try:
        return open(log).read().split()
    except FileNotFoundError:
        return []


def operate():
    import rclpy
    from lifecycle_msgs.srv import ChangeState
    from rclpy.executors import SingleThreadedExecutor

    context = rclpy.Context()
    rclpy.init(context=context)
    me = rclpy.create_node('operator', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(me)
    client = me.create_client(ChangeState, '/safe_pruner/change_state')
    client.wait_for_service(20)
    end_s = time.monotonic() + 20
    while 'activate' not in said() and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(1.0)  # until the launch system has heard of it
    for transition in (4, 2, 1):  # deactivate, cleanup, configure
        request = ChangeState.Request()
        request.transition.id = transition
        executor.spin_until_future_complete(client.call_async(request), timeout_sec=5)
    time.sleep(2.0)  # time enough to activate
    service.shutdown()
    rclpy.shutdown(context=context)


threading.Thread(target=operate, daemon=True).start()
service.run()
"""


@pytest.mark.ros
def test_on_the_real_launch_system(tmp_path: Path) -> None:
    pytest.importorskip('launch_ros', reason='launch_ros is not on PyPI')
    scripts = {'node.py': NODE, 'by_hand.py': BY_HAND}
    for name, text in scripts.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    log = tmp_path / 'transitions'
    environment = os.environ | {
        'ROS_DOMAIN_ID': str(10 + os.getpid() % 90),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_LOG_DIR': str(tmp_path),
    }
    command = [sys.executable, 'by_hand.py', str(LAUNCH_FILE), 'node.py', str(log)]
    subprocess.run(command, cwd=tmp_path, env=environment, timeout=90, check=False)
    expected = ['configure', 'activate', 'deactivate', 'cleanup', 'configure']
    assert log.read_text().split() == expected
