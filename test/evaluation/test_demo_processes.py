"""Children of the demo never outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('safe_pruner_ros.ros.demo.processes')

from safe_pruner_ros.ros.demo.processes import (
    ChildDied,
    Children,
    private_domain,
    ros_arguments,
)

STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print('up', flush=True)
time.sleep(60)
"""


def wait_until(condition, limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, 'waited in vain'
        time.sleep(0.02)


@pytest.fixture
def stubborn(tmp_path: Path) -> dict[str, str]:
    """Environment in which the module 'stubborn' exists."""
    (tmp_path / 'stubborn.py').write_text(STUBBORN)
    return {'PYTHONPATH': f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'}


def gone(pid: int) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, or while it is read
        return True
    return state == 'Z'


def test_stop_ends_who_does_not_listen(tmp_path, stubborn, monkeypatch) -> None:
    monkeypatch.setattr('safe_pruner_ros.ros.demo.processes.STOP_S', (0.1, 5.0, 1.0))
    with Children(tmp_path / 'logs', stubborn) as children:
        children.start('one', 'stubborn', [])
        children.start('two', 'stubborn', [])
        logs = [tmp_path / 'logs' / f'{name}.log' for name in ('one', 'two')]
        wait_until(lambda: all('up' in log.read_text() for log in logs))
        pids = [child.process.pid for child in children._children]
        children.check()
        children.stop('one')
        assert gone(pids[0]) and not gone(pids[1])
    assert gone(pids[1])


def test_a_child_that_dies_is_reported_with_its_log(tmp_path: Path) -> None:
    with Children(tmp_path, {}) as children:
        children.start('policy', 'json.tool', ['/nowhere.json'])
        wait_until(lambda: children._children[0].process.poll() is not None)
        with pytest.raises(ChildDied, match=r'(?s)the policy process ended .*nowhere\.json'):
            children.check()


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is Linux')
def test_children_end_when_the_parent_is_killed(tmp_path: Path, stubborn) -> None:
    script = (
        'import time\nfrom pathlib import Path\n'
        'from safe_pruner_ros.ros.demo.processes import Children\n'
        f'children = Children(Path({str(tmp_path)!r}), {{}})\n'
        "children.start('one', 'stubborn', [])\n"
        'print(children._children[0].process.pid, flush=True)\ntime.sleep(60)\n'
    )
    parent = subprocess.Popen(
        [sys.executable, '-c', script], stdout=subprocess.PIPE, env={**os.environ, **stubborn}
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_until(lambda: 'up' in (tmp_path / 'one.log').read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: gone(child))


def test_domain_is_private() -> None:
    environment = private_domain()
    assert 1 <= int(environment['ROS_DOMAIN_ID']) <= 100
    assert environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert Path(environment['FASTRTPS_DEFAULT_PROFILES_FILE']).is_file()
    assert 'ROS_LOCALHOST_ONLY' not in environment


def test_children_stay_in_the_private_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shell says; on Humble by its own variable."""
    monkeypatch.setenv('ROS_STATIC_PEERS', '10.0.0.7')
    monkeypatch.setenv('ROS_LOCALHOST_ONLY', '0')
    for distro, expected in (('jazzy', None), ('humble', '1')):
        monkeypatch.setenv('ROS_DISTRO', distro)
        environment = Children(tmp_path, private_domain())._environment
        assert environment.get('ROS_LOCALHOST_ONLY') == expected
        assert 'ROS_STATIC_PEERS' not in environment


def test_parameters_become_arguments() -> None:
    found = ros_arguments(autostart=True, seed=5)
    assert found == ['--ros-args', '-p', 'autostart:=true', '-p', 'seed:=5']
