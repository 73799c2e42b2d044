"""Row 56: malformed, empty, huge YAML; repeated keys; NaN; 1e3; tags. With file and line."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safe_pruner_ros.runtime.config import ConfigError
from safe_pruner_ros.runtime.config_yaml import load_config, to_dict

GOOD = """\
robot:
  name: tiny
  dry_run: false
  joints:
    - {name: elbow, kind: arm, lower: -1, upper: 1.5e+0, max_velocity: 2.0, max_step: 0.05}
  cameras:
    - {name: head, topic: /head, encodings: [rgb8, bgr8]}
  state_sources:
    - {name: arm, topic: /joint_states, joints: [{joint: elbow}]}
  sinks:
    - {name: arm, topic: /command, joints: [{joint: elbow, name: vendor_elbow}]}
runtime:
  guard: {soft_start_s: 2}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name='robot.yaml'):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path, *parts):
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for part in (str(path), *parts):
        assert part in str(error.value), str(error.value)


def test_good_file(write):
    config = load_config(write(GOOD))
    assert config.robot.layout.names == ('elbow',)
    assert config.robot.joints[0].upper == 1.5
    assert config.robot.cameras[0].encodings == ('rgb8', 'bgr8')
    assert config.robot.sinks[0].joints[0].robot_name == 'vendor_elbow'
    assert config.runtime.guard.soft_start_s == 2.0
    assert not config.robot.dry_run


def test_dump_is_plain_and_loads_again(write):
    config = load_config(write(GOOD))
    plain = to_dict(config)
    json.dumps(plain)
    text = yaml.safe_dump({'robot': plain['robot'], 'runtime': plain['runtime']})
    assert load_config(write(text)).robot == config.robot


def test_policy_file_adds_and_overrides(write):
    policy = write(
        'policy: {name: embedded}\npruner: {retention_ratio: 0.5, deep_layers: [-2, -1]}\n'
        'runtime: {control_rate_hz: 100.0}\n',
        'policy.yaml',
    )
    config = load_config(write(GOOD), policy, {'pruner.alpha': 1})
    assert config.pruner.retention_ratio == 0.5
    assert config.pruner.deep_layers == (-2, -1)
    assert config.pruner.alpha == 1.0
    assert config.runtime.control_rate_hz == 100.0
    assert config.runtime.guard.soft_start_s == 2.0  # from the robot file


@pytest.mark.parametrize(
    ('old', 'new', 'parts'),
    [
        ('name: tiny', 'name: tiny\n  name: twin', (':3:', "key 'name' appears twice")),
        ('dry_run: false', 'dryrun: false', (':3:', "'dryrun'", "did you mean 'dry_run'?")),
        ('dry_run: false', 'dry_run: no', (':3:', 'robot.dry_run', 'expected true or false')),
        ('dry_run: false', 'dry_run: 0', ('expected true or false',)),
        ('lower: -1,', 'lower: 1.0e+999,', ('lower must be finite',)),
        ('lower: -1,', f'lower: {"9" * 5000},', ('must be finite',)),
        ('lower: -1,', 'lower: .nan,', (':5:', 'robot.joints[0].lower', 'finite number')),
        ('lower: -1,', 'lower: -.inf,', (':5:', 'finite number')),
        ('max_velocity: 2.0', 'max_velocity: 1e3', ("'1e3' is a string", 'write 1000.0')),
        ('max_velocity: 2.0', "max_velocity: '2.0'", ('expected a finite number',)),
        ('max_velocity: 2.0', 'max_velocity: 1:30', ('expected a finite number',)),
        ('max_velocity: 2.0', 'max_velocity: true', ('expected a finite number',)),
        ('max_velocity: 2.0', 'max_velocity: 0', (':5:', 'must be in (0, inf)')),
        ('upper: 1.5e+0', 'upper: -2', (':5:', 'lower must be below upper')),
        (', max_step: 0.05', '', (':5:', 'robot.joints[0]', "['max_step']")),
        # 'name' stands there already, so it is not what was meant.
        ('{name: arm, topic: /j', '{name: arm, name_map: x, topic: /j', ("known keys: ['name',",)),
        ('kind: arm', 'kind: armm', ("did you mean 'arm'?",)),
        ('name: tiny', 'name: 5', ('expected text', 'quotes')),
        ('name: tiny', 'name: null', ('expected text',)),
        ('name: tiny', 'name: !!python/object/apply:os.system [ls]', ('is not allowed',)),
        ('name: tiny', 'name: !secret x', ('is not allowed',)),
        ('encodings: [rgb8, bgr8]', 'encodings: rgb8', ('expected a list',)),
        ('encodings: [rgb8, bgr8]', 'encodings: []', ('at least one accepted',)),
        ('  guard: {soft_start_s: 2}', '  guard: [1]', (':13:', 'expected keys and values')),
        ('  guard: {soft_start_s: 2}', '  guard: {soft_start_s: 2', ('no valid YAML',)),
        ('runtime:', 'runtimes:', ("did you mean 'runtime'?",)),
        ('robot:', '? [a]\n: 1\nrobot:', ('keys must be plain words',)),
        ('{joint: elbow}', '{<<: {a: 1}, joint: elbow}', ('keys must be plain words',)),
    ],
)
def test_refused_with_file_line_and_key(write, old, new, parts):
    assert old in GOOD
    refused(write(GOOD.replace(old, new, 1)), *parts)


def test_whole_files_that_are_none(write, tmp_path):
    refused(write(''), 'is empty')
    refused(write('- 1\n'), 'expected keys and values')
    refused(write('runtime: {}\n'), 'no section robot')
    refused(write(b'\xff\xfe\x00bad'), 'robot.yaml')
    refused(write('a' * 200_001), 'larger than')
    refused(write('[' * 5000), 'nested too deeply')
    refused(write('- ' * 5000), 'nested too deeply')
    refused(write(GOOD + '---\n' + GOOD), 'no valid YAML')
    refused(tmp_path / 'missing.yaml', 'cannot be read')
    with pytest.raises(ConfigError, match='cannot be read'):
        load_config(tmp_path)  # a folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(data=st.data())
def test_mutated_files_never_raise_anything_else(write, data):
    text = list(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.sampled_from(list('{}[]:,&*!|>\'"%@`#-\n\t 0e.x\u20ac')))
    try:
        load_config(write(''.join(text)))
    except ConfigError as error:
        assert 'robot.yaml' in str(error)
