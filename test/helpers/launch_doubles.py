"""Stands in for the launch system, which the wheels do not have: launch files load, and what they
made can be looked at. A launch context is a dict of the arguments' texts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

LAUNCH_FILES = Path(__file__).parents[2] / 'launch'
CONFIGURE, ACTIVATE = 1, 3


class Made:
    """Stands for any class of the launch system: what it was made of, by name."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.values, self.named = values, named

    def perform(self, context: dict[str, str]) -> str:
        """Of a LaunchConfiguration: the text of its argument."""
        return context[self.values[0]]


MODULES = {
    'ament_index_python.packages': ['get_package_prefix', 'get_package_share_directory'],
    'launch': ['LaunchContext', 'LaunchDescription'],
    'launch.action': ['Action'],
    'launch.actions': [
        'DeclareLaunchArgument', 'EmitEvent', 'ExecuteProcess', 'IncludeLaunchDescription',
        'LogInfo', 'OpaqueFunction', 'RegisterEventHandler', 'SetEnvironmentVariable',
        'UnregisterEventHandler',
    ],
    'launch.event_handlers': ['OnProcessExit', 'OnProcessStart'],
    'launch.events': ['Shutdown', 'matches_action'],
    'launch.launch_description_sources': ['PythonLaunchDescriptionSource'],
    'launch.substitutions': ['LaunchConfiguration'],
    'launch_ros.actions': ['LifecycleNode', 'Node'],
    'launch_ros.event_handlers': ['OnStateTransition'],
    'launch_ros.events.lifecycle': ['ChangeState'],
    'lifecycle_msgs.msg': [],
}  # fmt: skip


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, classes in MODULES.items():
        parts = name.split('.')
        for depth in range(1, len(parts) + 1):
            parent = '.'.join(parts[:depth])
            if parent not in MODULES or parent == name:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        for cls in classes:
            setattr(sys.modules[name], cls, type(cls, (Made,), {}))
    packages: Any = sys.modules['ament_index_python.packages']
    packages.get_package_prefix = packages.get_package_share_directory = lambda package: '/prefix'
    messages: Any = sys.modules['lifecycle_msgs.msg']
    messages.Transition = SimpleNamespace(
        TRANSITION_CONFIGURE=CONFIGURE, TRANSITION_ACTIVATE=ACTIVATE
    )


def load(name: str) -> ModuleType:
    """The launch file ``name``, on what `install` put there."""
    spec = importlib.util.spec_from_file_location(
        name.split('.')[0] + '_launch', LAUNCH_FILES / name
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_defaults(launch_file: ModuleType, typed: dict[str, str]) -> dict[str, str]:
    """The context of a launch file whose user typed ``typed``."""
    entities = launch_file.generate_launch_description().values[0]
    declared = [entity for entity in entities if type(entity).__name__ == 'DeclareLaunchArgument']
    defaults = {entity.values[0]: entity.named['default_value'] for entity in declared}
    assert set(typed) <= set(defaults), 'an argument that no launch file declares'
    return defaults | typed


def only(actions: list[Any], kind: str) -> Any:
    (found,) = [action for action in actions if type(action).__name__ == kind]
    return found
