"""What was set before a configure, after it, and after one that was refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ros

ROBOT_FILES = Path(__file__).parents[2] / 'config' / 'robots'
MAX_VELOCITY = 'robot.joints.astribot_arm_left_joint_2.max_velocity'
MAX_STEP = 'robot.joints.astribot_arm_left_joint_1.max_step'


class Settings:
    """The parameters of a node, as the node and its operator use them."""

    def __init__(self, context: Any, given: dict[str, Any]) -> None:
        from rclpy.node import Node
        from rclpy.parameter import Parameter

        from safe_pruner_ros.ros.parameters import NodeParameters

        overrides = [Parameter(name, value=value) for name, value in given.items()]
        self.node = Node('safe_pruner', context=context, parameter_overrides=overrides)
        self._parameters = NodeParameters(self.node, lambda: False, lambda config, text: None)
        self.load = self._parameters.load
        self.diagnostics_period_s = self._parameters.diagnostics_period_s

    def set(self, name: str, value: Any) -> None:
        from rclpy.parameter import Parameter

        (result,) = self.node.set_parameters([Parameter(name, value=value)])
        assert result.successful, result.reason

    def get(self, name: str) -> Any:
        return self.node.get_parameter(name).value

    def refuses(self, words: str) -> None:
        from safe_pruner_ros.runtime.config import ConfigError

        with pytest.raises(ConfigError, match=words):
            self.load()


@pytest.fixture
def start() -> Iterator[Callable[..., Settings]]:
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context)
    started: list[Settings] = []

    def start(**given: Any) -> Settings:
        values = {name.replace('__', '.'): value for name, value in given.items()}
        started.append(Settings(context, values))
        return started[-1]

    yield start
    for settings in started:
        settings.node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """An Astribot S1 that moves, in a file of its own."""
    text = (ROBOT_FILES / 'astribot_s1.yaml').read_text()
    assert 'dry_run: true' in text
    (tmp_path / 'mine.yaml').write_text(text.replace('dry_run: true', 'dry_run: false'))
    return tmp_path / 'mine.yaml'


def test_a_refused_configure_forgets_nothing(start, mine) -> None:
    settings = start(robot_file=str(mine), **{MAX_STEP: 0.02})
    assert not settings.load().robot.dry_run
    settings.set('robot.dry_run', True)
    settings.set(MAX_VELOCITY, 0.3)
    assert settings.load().robot.dry_run
    broken = mine.with_name('broken.yaml')
    broken.write_text(mine.read_text() + '  sinks_of_mine: []\n')
    for wrong, words in (('/no/such/robot.yaml', 'no/such'), (str(broken), 'sinks_of_mine')):
        settings.set('robot_file', wrong)
        settings.refuses(words)
        assert settings.get('robot.dry_run') is True and settings.get(MAX_VELOCITY) == 0.3
    settings.set('robot_file', str(mine))
    config = settings.load()
    assert config.robot.dry_run and config.robot.joints[1].max_velocity == 0.3
    assert config.robot.joints[0].max_step == 0.02


def test_what_was_given_for_another_policy_is_refused_and_nothing_is_forgotten(start) -> None:
    unit = 'policy.deployment.actions.astribot_arm_left_joint_1.offset'
    settings = start(robot_file='astribot_s1', policy_file='cogact', robot__dry_run=False,
                     **{unit: 0.1})  # fmt: skip
    assert not settings.load().robot.dry_run
    settings.set('robot.dry_run', True)
    settings.set('policy_file', 'embedded')
    settings.refuses(unit)
    assert settings.get('robot.dry_run') is True
    settings.set('policy_file', 'cogact')
    assert settings.load().robot.dry_run


def test_a_misspelt_name_at_the_start_is_refused_before_anything_is_touched(start, mine) -> None:
    settings = start(robot_file=str(mine), robot__dry_rum=True)
    settings.refuses("'robot.dry_rum'.*'robot.dry_run'")
    assert not settings.node.has_parameter('robot.dry_run')


def test_files_that_do_not_fit_what_is_set_change_nothing(start, tmp_path) -> None:
    """Refused late, after the new values have been declared."""
    settings = start(robot_file='astribot_s1')
    settings.load()
    settings.set('runtime.buffer.max_image_age_s', 0.2)
    settings.set('robot.dry_run', False)
    (tmp_path / 'policy.yaml').write_text(
        'policy: {name: embedded}\nruntime: {buffer: {max_image_age_warn_s: 0.25}}\n'
    )
    settings.set('policy_file', str(tmp_path / 'policy.yaml'))
    settings.refuses('max_image_age_warn_s must not exceed')
    assert settings.get('runtime.buffer.max_image_age_s') == 0.2
    assert settings.get('runtime.buffer.max_image_age_warn_s') == 0.15
    assert settings.get('robot.dry_run') is False
    settings.set('policy_file', 'embedded')
    config = settings.load()
    assert config.runtime.buffer.max_image_age_s == 0.2 and not config.robot.dry_run


def test_what_is_set_for_a_robot_does_not_move_another_one(start) -> None:
    settings = start(robot_file='astribot_s1')
    assert settings.load().robot.dry_run
    settings.set('robot.dry_run', False)
    settings.set('runtime.guard.soft_start_s', 2.0)
    assert not settings.load().robot.dry_run
    settings.set('robot_file', 'aloha')
    config = settings.load()
    assert config.robot.name == 'aloha' and config.robot.dry_run
    assert config.runtime.guard.soft_start_s == 2.0, 'which is not of a robot'
    settings.set('robot_file', 'astribot_s1')
    assert not settings.load().robot.dry_run, 'as it was set for this one'


def test_what_is_given_at_the_start_is_for_the_first_robot(start, capfd) -> None:
    settings = start(robot_file='astribot_s1', robot__dry_run=False, **{MAX_STEP: 0.02})
    assert not settings.load().robot.dry_run
    settings.set('robot_file', 'aloha')
    assert settings.load().robot.dry_run
    log = capfd.readouterr().err
    assert 'robot.dry_run' in log and 'do not count for this one' in log
    settings.set('robot_file', 'astribot_s1')
    config = settings.load()
    assert not config.robot.dry_run and config.robot.joints[0].max_step == 0.02


def test_a_robot_that_never_loaded_has_no_claim_on_what_was_given(start) -> None:
    settings = start(robot_file='aloha', **{MAX_STEP: 0.02})
    settings.refuses(MAX_STEP)
    settings.set('robot_file', 'astribot_s1')
    assert settings.load().robot.joints[0].max_step == 0.02


def test_setting_a_value_back_to_what_the_file_says_is_setting_it(start) -> None:
    settings = start(robot_file='astribot_s1', robot__dry_run=False)
    assert not settings.load().robot.dry_run
    settings.set('robot.dry_run', True)
    assert settings.load().robot.dry_run
    assert settings.load().robot.dry_run


def test_a_file_that_was_edited_counts_where_nothing_was_set(start, mine) -> None:
    settings = start(robot_file=str(mine))
    assert not settings.load().robot.dry_run
    mine.write_text(mine.read_text().replace('dry_run: false', 'dry_run: true'))
    assert settings.load().robot.dry_run


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        *(('activation_timeout_s', value) for value in (math.nan, math.inf, -1.0)),
        *(('diagnostics_rate_hz', value) for value in (math.nan, math.inf, -1.0, 0.0, 500.0)),
    ],
)
def test_a_number_that_would_make_the_node_mute_is_refused(start, name, value) -> None:
    from rclpy.parameter import Parameter

    settings = start()
    good = settings.get(name)
    (result,) = settings.node.set_parameters([Parameter(name, value=value)])
    words = f'{name} must be finite and .*, got {value:g}'
    assert not result.successful and re.search(words, result.reason)
    assert settings.get(name) == good
    given = start(**{name: value})
    given.refuses(words)
    assert 0 < given.diagnostics_period_s() <= 10, 'there is one to say so'
    given.set(name, good)
    given.load()
