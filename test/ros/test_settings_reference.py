"""docs/settings.md says what the code says."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.ros


def test_the_committed_file_is_current() -> None:
    from safe_pruner_ros.ros.settings_reference import REFERENCE, reference

    assert REFERENCE.read_text() == reference(), 'run: scripts/with_env scripts/settings_reference'


def test_it_names_every_setting_of_a_real_configuration() -> None:
    from safe_pruner_ros.ros.parameters import LIVE_PARAMETERS
    from safe_pruner_ros.ros.resources import config_file
    from safe_pruner_ros.ros.settings_reference import WIDTH, reference
    from safe_pruner_ros.runtime.config_parameters import parameter_specs
    from safe_pruner_ros.runtime.config_yaml import load_config

    text = reference()
    assert max(map(len, text.splitlines())) <= WIDTH
    entries = dict(re.findall(r'^- `([^`]+)`(.*)$', text, re.MULTILINE))
    config = load_config(config_file('robots', 'aloha'), config_file('policies', 'pi05'))
    for spec in parameter_specs(config):
        # The names of list items are the user's: robot.cameras.head.topic
        name = re.sub(r'(joints|cameras|state_sources|sinks)\.\w+', r'\1.NAME', spec.name)
        name = re.sub(r'((?:sources|sinks)\.NAME\.joints)\.NAME', r'\1.JOINT', name)
        name = re.sub(r'(deployment\.actions)\.\w+', r'\1.JOINT', name)
        assert name in entries, spec.name
        assert ('**live**' in entries[name]) is (spec.name in LIVE_PARAMETERS)
