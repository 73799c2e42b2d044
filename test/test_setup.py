"""Set-up where something is installed: a sourced ROS 2, older packages, another Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What `make` and a shell may have set for this very run.
CLEAN = {
    k: v for k, v in os.environ.items() if k not in ('PYTHON', 'TORCH_INDEX_URL', 'ROS_DISTRO')
}


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**CLEAN, **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def ahead(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])


def test_a_python_that_cannot_load_the_distributions_rclpy_is_not_taken(tmp_path) -> None:
    """Sourcing ROS 2 puts its packages on the path of every Python, conda's too."""
    (tmp_path / 'rclpy').mkdir()
    (tmp_path / 'rclpy' / '__init__.py').write_text('raise ImportError("no _rclpy_pybind11")')
    ros = {'ROS_DISTRO': 'jazzy', 'PYTHONPATH': str(tmp_path)}
    done = run('scripts/find_python', PYTHON=sys.executable, **ros)
    assert done.returncode == 1 and done.stdout == ''
    assert 'rclpy, which was built for another Python (no _rclpy_pybind11)' in done.stderr
    (tmp_path / 'rclpy' / '__init__.py').write_text('')
    done = run('scripts/find_python', PYTHON=sys.executable, **ros)
    assert done.returncode == 0 and done.stdout.strip() == sys.executable


@pytest.mark.parametrize(
    'plugin', ['launch_testing', 'launch_testing_ros_pytest_entrypoint', 'launch_pytest']
)
def test_the_pytest_plugins_of_a_ros_distribution_stay_out(tmp_path, plugin: str) -> None:
    (tmp_path / 'loud_plugin.py').write_text('raise RuntimeError("the plugin was loaded")')
    installed = tmp_path / 'loud-1.0.dist-info'
    installed.mkdir()
    (installed / 'METADATA').write_text('Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n')
    (installed / 'entry_points.txt').write_text(f'[pytest11]\n{plugin} = loud_plugin\n')
    collect = (sys.executable, '-m', 'pytest', '--collect-only', '-q', '-p', 'no:cacheprovider')
    done = run(*collect, 'test/test_types.py', PYTHONPATH=ahead(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (installed / 'entry_points.txt').write_text('[pytest11]\nanother = loud_plugin\n')
    done = run(*collect, 'test/test_types.py', PYTHONPATH=ahead(tmp_path))
    assert 'the plugin was loaded' in done.stdout + done.stderr


@pytest.mark.ros
def test_the_inputs_import_on_humble(tmp_path) -> None:
    """rclpy.event_handler was rclpy.qos_event before Iron."""
    code = (
        'import sys, types, rclpy.lifecycle, rclpy.subscription\n'
        'from rclpy.event_handler import SubscriptionEventCallbacks\n'
        'old = types.ModuleType("rclpy.qos_event")\n'
        'old.SubscriptionEventCallbacks = SubscriptionEventCallbacks\n'
        'sys.modules.update({"rclpy.event_handler": None, "rclpy.qos_event": old})\n'
        'import safe_pruner_ros.ros.inputs\n'
    )
    done = run(sys.executable, '-c', code)
    assert done.returncode == 0, done.stderr


def test_bounds_of_what_a_distribution_may_bring_too_old() -> None:
    """With a ROS 2 distribution nothing else says which versions will do."""
    lines = (ROOT / 'requirements' / 'common.txt').read_text().splitlines()
    installed = dict(re.match(r'([\w.\[\]-]+)(.*)', x).groups() for x in lines if x[:1].isalnum())
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    needed = config['options']['install_requires'].split()
    assert 'joblib>=1.4' in needed, 'return_as="generator_unordered"'
    assert installed['joblib'] == '>=1.4' and installed['pytest'] == '>=7'


@pytest.fixture
def other_clone(tmp_path: Path) -> Path:
    """A clone whose .venv was made, as far as set-up can see."""
    clone = tmp_path / 'clone'
    for name in ('scripts', '.venv/bin'):
        (clone / name).mkdir(parents=True)
    for name in ('setup_env.py', 'setup_choices.py', 'with_env'):
        shutil.copy(ROOT / 'scripts' / name, clone / 'scripts')
    (clone / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
    note(clone)
    return clone


def note(clone: Path, **changes: str) -> None:
    made = {'source': 'ROS 2 Jazzy from wheels', 'folder': str(clone), 'torch_index_url': ''}
    made |= {'python': os.path.realpath(sys.executable)}
    (clone / '.venv' / 'setup_stamp').write_text(json.dumps(made | changes))


@pytest.mark.parametrize('step', ['build', 'env'])
@pytest.mark.parametrize(
    ('made', 'now', 'message'),
    [
        ({}, {'ROS_DISTRO': 'jazzy', 'AMENT_PREFIX_PATH': '/x'}, 'now it is ROS 2 jazzy'),
        ({'source': 'ROS 2 humble'}, {}, 'source ROS 2 humble, and now it is ROS 2 Jazzy from'),
        ({'folder': '/elsewhere'}, {}, 'folder /elsewhere'),
        ({}, {'TORCH_INDEX_URL': 'http://x'}, 'torch_index_url of PyPI, and now it is http://x'),
        ({}, {'PYTHON': '/bin/sh'}, 'python '),
    ],
)
def test_an_environment_of_other_choices_is_not_built_on(
    other_clone, step: str, made: dict[str, str], now: dict[str, str], message: str
) -> None:
    note(other_clone, **made)
    done = run(sys.executable, other_clone / 'scripts' / 'setup_env.py', step, **now)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert message in done.stderr and 'make distclean' in done.stderr


def test_a_program_whose_interpreter_is_gone_is_explained(other_clone) -> None:
    """What a folder that was moved looks like: colcon names its old Python."""
    colcon = other_clone / '.venv' / 'bin' / 'colcon'
    colcon.write_text('#!/nowhere/python\n')
    colcon.chmod(0o755)
    done = run(sys.executable, other_clone / 'scripts' / 'setup_env.py', 'build')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'could not start' in done.stderr and 'make distclean' in done.stderr


def test_two_ros_in_one_shell_are_refused(other_clone) -> None:
    (other_clone / '.venv' / 'share' / 'rclpy').mkdir(parents=True)
    share = other_clone / 'install' / 'safe_pruner_ros' / 'share' / 'safe_pruner_ros'
    share.mkdir(parents=True)
    (share / 'package.xml').touch()
    with_env = other_clone / 'scripts' / 'with_env'
    assert run(with_env, 'true').returncode == 0
    done = run(with_env, 'true', ROS_DISTRO='humble')
    assert done.returncode == 1 and 'has sourced humble' in done.stderr
