"""The flat list of parameters says what the schema says, and overriding checks everything."""

from __future__ import annotations

import pytest

from safe_pruner_ros.runtime.config import ConfigError
from safe_pruner_ros.runtime.config_parameters import override, parameter_specs, parse_text


def test_every_value_can_be_overridden_by_itself(kit):
    config = kit.config()
    specs = parameter_specs(config)
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names)
    for name in (
        'robot.dry_run',
        'robot.joints.left_1.max_step',
        'robot.cameras.head.topic',
        'robot.state_sources.left.joints.left_grip.scale',
        'robot.sinks.right.adapter',
        'policy.checkpoint',
        'pruner.retention_ratio',
        'pruner.deep_layers',
        'runtime.control_rate_hz',
        'runtime.guard.soft_start_s',
        'runtime.buffer.max_image_age_s',
    ):
        assert name in names
    assert override(config, {spec.name: spec.default for spec in specs}) == config
    assert all(spec.doc for spec in specs)


def test_override(kit):
    changed = override(
        kit.config(),
        {
            'pruner.retention_ratio': 1,
            'robot.joints.left_2.lower': -0.5,
            'robot.cameras.wrist.encodings': ['mono8'],
            'runtime.buffer.max_image_age_warn_s': 0.4,  # only valid together with the next
            'runtime.buffer.max_image_age_s': 0.5,
        },
    )
    assert changed.pruner.retention_ratio == 1.0
    assert [joint.lower for joint in changed.robot.joints[:2]] == [-1.0, -0.5]
    assert changed.robot.cameras[1].encodings == ('mono8',)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('pruner.retention_ration', 0.5, "did you mean 'pruner.retention_ratio'"),
        ('pruner.retention_ratio', '0.5', 'must be of type float'),
        ('pruner.retention_ratio', True, 'must be of type float'),
        ('pruner.retention_ratio', 0.0, 'pruner.retention_ratio must be in (0, 1]'),
        ('pruner.retention_ratio', float('nan'), 'must be finite'),
        ('pruner.seed', 1.0, 'must be of type int'),
        ('pruner.norm', 'l2', 'must be one of'),
        ('robot.dry_run', 1, 'must be of type bool'),
        ('pruner.deep_layers', [1.5], 'must be of type int_list'),
        ('robot.joints.left_1.lower', 2.0, 'lower must be below upper'),
        ('robot.joints.left_1.name', 'x', 'no setting is called'),
    ],
)
def test_override_refused(kit, name, value, message):
    with pytest.raises(ConfigError) as error:
        override(kit.config(), {name: value})
    assert message in str(error.value)


def test_launch_arguments(kit):
    specs = {spec.name: spec for spec in parameter_specs(kit.config())}

    def parsed(name, text):
        return parse_text(specs[name], text)

    assert parsed('robot.dry_run', 'True') is True
    assert parsed('pruner.seed', '7') == 7
    assert parsed('pruner.alpha', '1e-1') == 0.1
    assert parsed('pruner.deep_layers', '-2, -1') == [-2, -1]
    assert parsed('policy.checkpoint', '/a b') == '/a b'
    for name, text in (('robot.dry_run', '1'), ('pruner.seed', '7.0'), ('pruner.alpha', 'x')):
        with pytest.raises(ConfigError, match='must be of type'):
            parsed(name, text)
