"""The launch file on the real launch system; skipped where only the PyPI wheels are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip('launch_ros', reason='launch_ros is not on PyPI: needs a ROS 2 distribution')

LAUNCH_FILE = Path(__file__).parents[2] / 'launch' / 'pick_place.launch.py'
ARGUMENTS = {'sim', 'policy', 'method', 'retention_ratio', 'instruction', 'robot', 'checkpoint'}


@pytest.fixture(scope='module')
def launch_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location('pick_place_launch', LAUNCH_FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(launch_file: ModuleType) -> dict[str, str]:
    from launch.actions import DeclareLaunchArgument

    entities = launch_file.generate_launch_description().entities
    declared = [e for e in entities if isinstance(e, DeclareLaunchArgument)]
    return {entry.name: entry.description for entry in declared}


def test_every_argument_is_described(launch_file: ModuleType) -> None:
    declared = arguments(launch_file)
    assert {*ARGUMENTS, 'dry_run', 'rviz', 'seed', 'task'} <= set(declared)
    assert all(len(text) > 10 for text in declared.values())


@pytest.mark.parametrize(
    ('given', 'complaint'),
    [
        ({'sim': 'maybe'}, 'sim:=maybe'),
        ({'retention_ratio': 'little'}, 'retention_ratio:=little'),
        ({'dry_run': '2'}, 'dry_run:=2'),
    ],
)
def test_wrong_values_are_named(
    launch_file: ModuleType, given: dict[str, str], complaint: str
) -> None:
    from launch import LaunchContext

    context = LaunchContext()
    for entry in launch_file.generate_launch_description().entities[:-1]:
        entry.visit(context)
    context.launch_configurations.update(given)
    with pytest.raises(RuntimeError, match=complaint):
        launch_file.start(context)


def test_what_is_left_empty_keeps_the_yaml(launch_file: ModuleType) -> None:
    from launch import LaunchContext

    context = LaunchContext()
    for entry in launch_file.generate_launch_description().entities[:-1]:
        entry.visit(context)
    assert launch_file.overrides(context) == {}
    context.launch_configurations['retention_ratio'] = '0.2'
    assert launch_file.overrides(context) == {'pruner.retention_ratio': 0.2}
