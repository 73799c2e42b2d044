"""The replay launch file on the real launch system; skipped with the PyPI wheels alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip('launch_ros', reason='launch_ros is not on PyPI: needs a ROS 2 distribution')

LAUNCH_FILE = Path(__file__).parents[2] / 'launch' / 'replay.launch.py'


@pytest.fixture(scope='module')
def launch_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location('replay_launch', LAUNCH_FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declared(launch_file: ModuleType) -> dict[str, str]:
    entities = launch_file.generate_launch_description().entities[:-1]
    return {e.name: ''.join(part.text for part in e.default_value) for e in entities}


def test_the_player_gets_a_command_line_that_it_understands(launch_file: ModuleType) -> None:
    from safe_pruner_ros.cli import build_parser

    values = declared(launch_file) | {
        'bag': '/data/run7', 'loop': 'true', 'rate': '2', 'map': 'head=/a left_wrist=/b',
    }  # fmt: skip
    parsed = build_parser().parse_args(launch_file.player_arguments(values))
    assert parsed.bag == Path('/data/run7') and parsed.loop and not parsed.start_paused
    assert parsed.rate == 2 and parsed.map == ['head=/a', 'left_wrist=/b']
    with pytest.raises(RuntimeError, match='loop:=perhaps'):
        launch_file.player_arguments(values | {'loop': 'perhaps'})


def test_nothing_moves_by_default(launch_file: ModuleType) -> None:
    assert declared(launch_file)['dry_run'] == 'true'
    assert set(launch_file.PASSED_ON) <= set(declared(launch_file))
