"""Row 58: what cannot be a robot, a limit or a fitting policy is refused, and says why."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, build_pruner
from safe_pruner_ros.policies.action_layout import ActionLayout
from safe_pruner_ros.policies.deployment import read_deployment
from safe_pruner_ros.policies.policy import ViewSpec
from safe_pruner_ros.runtime import config as c
from safe_pruner_ros.runtime.command_guard import MAX_TICK_GAP_S
from safe_pruner_ros.runtime.config_yaml import load_config

GRIPPER = {'kind': 'gripper', 'lower': 0.0, 'upper': 1.0}
POLICY_FILES = Path(__file__).parents[2] / 'config' / 'policies'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lower': 1.0, 'upper': -1.0}, 'lower must be below upper'),
        ({'lower': 1.0, 'upper': 1.0}, 'lower must be below upper'),
        ({'max_velocity': 0.0}, 'max_velocity must be in (0'),
        ({'max_velocity': -1.0}, 'max_velocity must be in (0'),
        ({'max_step': 0.0}, 'max_step must be in (0'),
        ({'upper': float('nan')}, 'upper must be finite'),
        ({'lower': float('-inf')}, 'lower must be finite'),
        ({'name': ''}, 'needs a name'),
        ({'kind': 'gripper', 'lower': 0.0, 'upper': 100.0}, 'scale and offset'),
        (
            {'lower': -180.0, 'upper': 180.0},
            'look like degrees; limits are rad, e.g. -3.142..3.14',
        ),
        ({'lower': -90.0}, '-90..1 of arm joint'),
        ({'upper': 12.6}, 'scale: 57.29578 in its state source and sink'),
        (
            {'max_velocity': 180.0},
            "max_velocity 180 of arm joint 'elbow' looks like degrees; it is rad/s, at most 30, "
            'e.g. 3.142',
        ),
        ({'max_velocity': 30.01}, 'looks like degrees'),
        (
            {'max_step': 1.7},
            "max_step 1.7 of arm joint 'elbow' looks like degrees; it is rad, at most 0.5, "
            'e.g. 0.02967',
        ),
        ({'max_step': 0.51}, 'looks like degrees'),
        ({**GRIPPER, 'max_velocity': 200.0}, "max_velocity 200 of gripper 'elbow' is more than"),
        ({**GRIPPER, 'max_step': 5.0}, 'closed fraction (0 open, 1 closed), at most 1. Put the'),
    ],
)
def test_impossible_joint(changes, message):
    joint = c.JointConfig('elbow', 'arm', -1.0, 1.0, 2.0, 0.05)
    with pytest.raises(c.ConfigError) as error:
        replace(joint, **changes)
    assert message in str(error.value)


def test_two_turns_either_way_are_an_arm_joint():
    joint = c.JointConfig('wrist', 'arm', -12.56, 12.56, 2.0, 0.05)
    assert joint.to_joint().upper == 12.56


def test_the_fastest_that_a_joint_may_be():
    c.JointConfig('wrist', 'arm', -1.0, 1.0, 30.0, 0.5)
    c.JointConfig('grip', 'gripper', 0.0, 1.0, 50.0, 1.0)


def test_every_joint_needs_exactly_one_source_and_sink(kit):
    robot = kit.robot()
    for what in ('state_sources', 'sinks'):
        first, second = getattr(robot, what)
        with pytest.raises(c.ConfigError, match=r"no entry .* has the joints \['right_1'"):
            kit.robot(**{what: (first,)})
        with pytest.raises(c.ConfigError, match='must be unique'):
            kit.robot(**{what: (first, second, replace(first, name='again'))})
        stranger = replace(second, joints=(*second.joints, c.JointMapping('torso')))
        with pytest.raises(c.ConfigError, match=r"unknown joints \['torso'\]"):
            kit.robot(**{what: (first, stranger)})


@pytest.mark.parametrize('what', ['state_sources', 'sinks'])
def test_one_topic_for_two_entries_needs_names_that_differ(kit, what):
    """Two arms with the same joint names differ by their topics only: a copied entry that keeps
    the other one's topic would measure, or move, the same arm twice."""
    named = []
    for entry in getattr(kit.robot(), what):
        joints = tuple(replace(m, name=m.joint.split('_')[1]) for m in entry.joints)
        named.append(replace(entry, joints=joints))
    left, right = named
    kit.robot(**{what: (left, right)})
    copied = replace(right, topic=left.topic)
    with pytest.raises(c.ConfigError) as error:
        kit.robot(**{what: (left, copied)})
    for words in ("'left' and 'right'", repr(left.topic), "['1', '2', 'grip']", 'its own topic'):
        assert words in str(error.value)
    one = replace(copied, joints=(*copied.joints[:1], replace(copied.joints[1], name='x'),
                                  replace(copied.joints[2], name='y')))  # fmt: skip
    with pytest.raises(c.ConfigError, match=r"\['1'\]"):
        kit.robot(**{what: (left, one)})
    left, right = getattr(kit.robot(), what)
    kit.robot(**{what: (left, replace(right, topic=left.topic))})  # one driver, names that differ


@pytest.mark.parametrize(
    ('what', 'nameless', 'words'),
    [
        ('state_sources', {'positional': True}, r"\['{}'\] \(positional\)"),
        ('sinks', {'adapter': 'float64_multiarray'}, r"\['{}'\] \(float64_multiarray\)"),
    ],
)
def test_what_has_no_names_has_a_topic_of_its_own(kit, what, nameless, words):
    left, right = getattr(kit.robot(), what)
    kit.robot(**{what: (left, replace(right, **nameless))})
    shared = replace(right, topic=left.topic)
    with pytest.raises(c.ConfigError, match=words.format('right')):
        kit.robot(**{what: (left, replace(shared, **nameless))})
    with pytest.raises(c.ConfigError, match=words.format('left')):
        kit.robot(**{what: (replace(left, **nameless), shared)})


@pytest.mark.parametrize(
    ('what', 'adapters'),
    [('state_sources', 'joint_state and astribot_state'),
     ('sinks', 'joint_trajectory and joint_state')],
)  # fmt: skip
def test_a_topic_has_one_type(kit, what, adapters):
    left, right = getattr(kit.robot(), what)
    other = replace(right, topic=left.topic, adapter=adapters.split()[-1])
    with pytest.raises(c.ConfigError, match=f"{left.topic}', but the adapters {adapters}, and a"):
        kit.robot(**{what: (left, other)})


def test_the_slowest_rate_of_commands_is_no_gap_between_them():
    for rate_hz in (1.0, 2.0, 4.9):
        with pytest.raises(c.ConfigError, match='control_rate_hz must be in .5, 1000'):
            c.RuntimeConfig(control_rate_hz=rate_hz)
    period_s = 1e-9 * c.RuntimeConfig(control_rate_hz=5.0).control_period_ns
    assert 2 * period_s < MAX_TICK_GAP_S, 'one tick may be late by a period'


def test_two_views_are_two_topics(kit):
    head, wrist = kit.robot().cameras
    with pytest.raises(c.ConfigError, match="'head' and 'wrist' have the same topic '/head'"):
        kit.robot(cameras=(head, replace(wrist, topic=head.topic)))


def test_repeated_names_and_missing_parts(kit):
    robot = kit.robot()
    with pytest.raises(c.ConfigError, match='names of joints must be unique'):
        kit.robot(joints=(*robot.joints, robot.joints[0]))
    with pytest.raises(c.ConfigError, match='names of cameras must be unique'):
        kit.robot(cameras=(robot.cameras[0], robot.cameras[0]))
    with pytest.raises(c.ConfigError, match='at least one camera'):
        kit.robot(cameras=(replace(robot.cameras[0], required=False),))
    with pytest.raises(c.ConfigError, match='no joints'):
        kit.robot(joints=())


def test_invert_is_for_grippers(kit):
    first, second = kit.robot().sinks
    flipped = (replace(first.joints[0], invert=True), *first.joints[1:])
    with pytest.raises(c.ConfigError, match='scale: -1'):
        kit.robot(sinks=(replace(first, joints=flipped), second))


@pytest.mark.parametrize('invert', [False, True])
def test_gripper_units_there_and_back(invert):
    mapping = c.JointMapping('grip', 'vendor', scale=100.0, offset=3.0, invert=invert)
    assert mapping.to_robot(1.0) == (3.0 if invert else 103.0)
    for value in (0.0, 0.25, 1.0):
        assert mapping.to_model(mapping.to_robot(value)) == pytest.approx(value)
    with pytest.raises(c.ConfigError, match='scale'):
        c.JointMapping('grip', scale=0.0)


def test_every_setting_has_a_doc():
    def check(cls):
        for item in fields(cls):
            default = item.default_factory() if callable(item.default_factory) else None
            if is_dataclass(default):
                check(type(default))
            elif cls is not c.Config:
                assert item.metadata.get('doc'), f'{cls.__name__}.{item.name}'

    for cls in (c.JointConfig, c.CameraConfig, c.StateSourceConfig, c.SinkConfig, c.RobotConfig):
        check(cls)
    for cls in (c.PolicyConfig, c.PrunerConfig, c.RuntimeConfig, c.JointMapping):
        check(cls)
    for cls in (c.DeploymentConfig, c.ActionDimensionConfig, c.ImageChainConfig):
        check(cls)
    check(c.DiffusionConfig)


def test_deployment_settings_are_those_of_the_policies():
    """Same names, same defaults, and every shipped file is read by both."""
    from safe_pruner_ros.policies.action_layout import ActionDimension
    from safe_pruner_ros.policies.cogact.diffusion import DiffusionSettings
    from safe_pruner_ros.policies.deployment import Deployment
    from safe_pruner_ros.policies.openvla.images import ImageChain

    for mirror, original in (
        (c.DeploymentConfig, Deployment),
        (c.ActionDimensionConfig, ActionDimension),
        (c.ImageChainConfig, ImageChain),
        (c.DiffusionConfig, DiffusionSettings),
    ):
        assert [f.name for f in fields(mirror)] == [f.name for f in fields(original)]
    assert c.DeploymentConfig().values() == {}
    action = c.ActionDimensionConfig('a', 'delta', -1.0, 1.0, gripper=True)
    plain = c.DeploymentConfig(views=('head',), actions=(action,), period_s=0.1)
    expected = Deployment(
        ('head',), ActionLayout((ActionDimension('a', 'delta', -1.0, 1.0, True),)), '', 0.1
    )
    assert read_deployment(plain.values()) == expected
    assert c.PolicyConfig(deployment=plain).deployment_values() == plain.values()
    slow = c.PolicyConfig(deployment=plain, period_s=0.4).deployment_values()
    assert slow == {**plain.values(), 'period_s': 0.4}
    fewer = c.PolicyConfig(deployment=plain, execution_horizon=3).deployment_values()
    assert fewer == {**plain.values(), 'execution_horizon': 3}
    assert c.PolicyConfig(period_s=0.4, execution_horizon=3).deployment_values() == {}
    with pytest.raises(c.ConfigError, match='scale of joint'):
        c.ActionDimensionConfig('a', scale=0.0)


@pytest.mark.parametrize('path', sorted(POLICY_FILES.glob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_policy_files_fit_the_shipped_robots(path):
    for name in ('aloha',) if path.stem.endswith('_aloha') else ('sim', 'astribot_s1'):
        config = load_config(POLICY_FILES.parent / 'robots' / f'{name}.yaml', path)
        deployment = config.policy.deployment
        of_a_kind = {name, config.pruner.method}
        assert path.stem in {config.policy.name, *(f'{config.policy.name}_{k}' for k in of_a_kind)}
        if config.policy.name != 'embedded':
            joints = [action.joint for action in deployment.actions]
            c.check_names_fit(config.policy.name, joints, deployment.views, config.robot)
            assert read_deployment(deployment.values()).actions.joint_names == tuple(joints)


def test_thresholds_must_be_in_order():
    with pytest.raises(c.ConfigError, match='max_image_age_warn_s must not exceed'):
        c.BufferConfig(max_image_age_warn_s=0.5)
    with pytest.raises(c.ConfigError, match=r'retention_ratio must be in \(0, 1\], got 1.4'):
        c.PrunerConfig(retention_ratio=1.4)


def test_policy_must_fit(kit):
    spec, robot = kit.Policy().spec, kit.robot()
    c.check_policy_fits(spec, robot)
    c.check_policy_fits(replace(spec, joint_names=spec.joint_names[::-1]), robot)
    with pytest.raises(c.ConfigError, match=r"only in the robot: \['right_grip'\]"):
        c.check_policy_fits(replace(spec, joint_names=spec.joint_names[:-1]), robot)
    with pytest.raises(c.ConfigError, match=r"needs the views \['torso'\]"):
        c.check_policy_fits(replace(spec, views=(ViewSpec('torso', 8, 8, 1, 1),)), robot)
    with pytest.raises(c.ConfigError, match='execution_horizon'):
        c.check_policy_fits(replace(spec, execution_horizon=9), robot)
    head, wrist = robot.cameras
    unwatched = replace(robot, cameras=(head, replace(wrist, required=False)))
    with pytest.raises(c.ConfigError, match=r"looks through \['wrist'\].* required: false"):
        c.check_policy_fits(spec, unwatched)
    c.check_policy_fits(replace(spec, views=spec.views[:1]), unwatched)


@pytest.mark.parametrize('method', METHODS)
def test_pruner_settings_are_what_each_method_takes(method):
    pruner = build_pruner(method, 12, **c.PrunerConfig().settings(accepted_settings(method)))
    assert pruner.method == method
    assert set(accepted_settings(method)) <= {item.name for item in fields(c.PrunerConfig)}
