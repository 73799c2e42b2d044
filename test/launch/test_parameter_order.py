"""What is typed wins over params_file, and params_file over what nobody typed.

On doubles of the launch system; the parameters it would write are read by the real rclpy.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import launch_doubles

MOVE = 'ros__parameters:\n    robot.dry_run: false\n'
# Ways to write it, each a trap of its own: for every node, relative, several names that all fit.
FILES = {
    'node': f'/safe_pruner:\n  {MOVE}',
    'every_node': f'/**:\n  {MOVE}',
    'relative': f'safe_pruner:\n  {MOVE}',
    'one_after_the_other': f'/safe_pruner:\n  {MOVE}/**:\n  {MOVE}/*:\n  {MOVE}',
    'both_ways': f'/**:\n  {MOVE}    robot:\n      dry_run: false\n',
    'levels': '/**:\n  ros__parameters:\n    robot:\n      dry_run: false\n',
}
Values = dict[str, Any]


@pytest.fixture
def pick_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """Parameters of the node, as pick_place.launch.py hands them over, for what was typed."""
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    launch_doubles.install(monkeypatch)
    module = launch_doubles.load('pick_place.launch.py')

    def parameters(**typed: str) -> list[Any]:
        actions = module.start(launch_doubles.with_defaults(module, typed))
        return list(launch_doubles.only(actions, 'LifecycleNode').named['parameters'])

    return parameters


@pytest.fixture
def replay(
    monkeypatch: pytest.MonkeyPatch, pick_place: Callable[..., list[Any]]
) -> Callable[..., list[Any]]:
    """The same, through replay.launch.py."""
    module = launch_doubles.load('replay.launch.py')

    def parameters(**typed: str) -> list[Any]:
        context = launch_doubles.with_defaults(module, {'bag': '/data/run7'} | typed)
        included = launch_doubles.only(module.start(context), 'IncludeLaunchDescription')
        return pick_place(**dict(included.named['launch_arguments']))

    return parameters


@pytest.fixture
def node_sees(tmp_path: Path) -> Callable[[list[Any], str], Values]:
    """What rclpy makes of such a list. launch_ros writes a dict to a file, for the full name of
    the node or, in older versions, for all nodes."""
    import rclpy
    from rclpy.node import Node

    def values(parameters: list[Any], written_for: str) -> Values:
        arguments = ['node', '--ros-args']
        for number, entry in enumerate(parameters):
            if isinstance(entry, dict):
                path = tmp_path / f'{number}.yaml'
                path.write_text(yaml.dump({written_for: {'ros__parameters': entry}}))
                entry = str(path)
            arguments += ['--params-file', entry]
        context = rclpy.Context()
        rclpy.init(args=arguments, context=context, domain_id=10 + os.getpid() % 90)
        node = Node('safe_pruner', context=context)
        try:
            return {name: given.value for name, given in node._parameter_overrides.items()}
        finally:
            node.destroy_node()
            rclpy.shutdown(context=context)

    return values


def written(folder: Path, text: str) -> str:
    (folder / 'mine.yaml').write_text(text)
    return str(folder / 'mine.yaml')


@pytest.mark.ros
@pytest.mark.parametrize('written_for', ['/safe_pruner', '/**'])
@pytest.mark.parametrize('text', FILES.values(), ids=FILES)
def test_a_typed_dry_run_wins_over_the_parameter_file(
    pick_place, node_sees, tmp_path, text, written_for
) -> None:
    params_file = written(tmp_path, text)
    typed = pick_place(params_file=params_file, dry_run='true')
    assert node_sees(typed, written_for)['robot.dry_run'] is True
    untyped = pick_place(params_file=params_file)
    assert node_sees(untyped, written_for)['robot.dry_run'] is False, 'the file still counts'


@pytest.mark.ros
@pytest.mark.parametrize('dry_run', [{}, {'dry_run': ''}], ids=['untyped', 'empty'])
def test_a_replay_is_a_dry_run_whatever_the_parameter_file_says(
    replay, node_sees, tmp_path, dry_run
) -> None:
    params_file = written(tmp_path, FILES['every_node'])
    parameters = replay(params_file=params_file, **dry_run)
    assert node_sees(parameters, '/safe_pruner')['robot.dry_run'] is True


@pytest.mark.ros
@pytest.mark.parametrize('written_for', ['/safe_pruner', '/**'])
@pytest.mark.parametrize('name', ['/safe_pruner', '/**'])
def test_a_default_beats_nothing_that_the_file_says(
    pick_place, replay, node_sees, tmp_path, name, written_for
) -> None:
    said = {
        'robot_file': 'aloha', 'policy_file': 'pi05', 'activation_timeout_s': 90.0,
        'use_sim_time': True, 'instruction': 'lift', 'pruner.retention_ratio': 0.5,
    }  # fmt: skip
    params_file = written(tmp_path, yaml.dump({name: {'ros__parameters': said}}))

    def sees(parameters: list[Any]) -> Values:
        return node_sees(parameters, written_for)

    assert sees(pick_place(params_file=params_file)) == said
    typed = sees(pick_place(params_file=params_file, policy='cogact', use_sim_time='false'))
    assert typed == said | {'policy_file': 'cogact', 'use_sim_time': False}
    typed = sees(pick_place(params_file=params_file, sim='true', activation_timeout_s='5'))
    of_the_simulator = {'robot_file': 'sim', 'use_sim_time': True}
    assert typed == said | of_the_simulator | {'activation_timeout_s': 5.0}
    # Of the player, too: the robot and how long both wait.
    of_the_player = {'robot_file': 'sim', 'activation_timeout_s': 60.0}
    replayed = sees(replay(params_file=params_file, retention_ratio='0.1'))
    assert replayed == said | of_the_player | {
        'use_sim_time': True, 'robot.dry_run': True, 'pruner.retention_ratio': 0.1,
    }  # fmt: skip


def test_without_a_file_there_are_the_defaults_and_what_was_typed(pick_place, replay) -> None:
    defaults = {'robot_file': 'astribot_s1', 'policy_file': 'embedded', 'use_sim_time': False,
                'activation_timeout_s': 30.0}  # fmt: skip
    assert pick_place() == [defaults]
    simulated = {'robot_file': 'sim', 'use_sim_time': True}
    assert pick_place(sim='true') == [defaults | simulated]
    assert pick_place(robot='aloha', dry_run='false') == [
        defaults | {'robot_file': 'aloha', 'robot.dry_run': False}
    ]
    assert replay() == [
        defaults | simulated | {'robot.dry_run': True, 'activation_timeout_s': 60.0}
    ]


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, 'mine.yaml cannot be read'),
        ('/**: [', 'mine.yaml cannot be read'),
        ('dry_run: true', 'no node with ros__parameters'),
        ('- 1', 'no node with ros__parameters'),
    ],
)
def test_a_file_that_is_none_is_named(pick_place, tmp_path, text, words) -> None:
    params_file = str(tmp_path / 'mine.yaml') if text is None else written(tmp_path, text)
    with pytest.raises(RuntimeError, match=words):
        pick_place(params_file=params_file, dry_run='true')
