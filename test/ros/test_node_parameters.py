"""Parameters of the node over DDS: what may change when, and what the arms then do."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


def test_safety_parameters_are_locked_while_active(bench) -> None:
    robot = bench.run()
    for name, value in (('robot.joints.left_1.upper', 3.0), ('robot.dry_run', True)):
        result = robot.set_parameter(name, value)
        assert not result.successful and 'active' in result.reason and name in result.reason
    assert robot.set_parameter('pruner.retention_ratio', 0.25).successful
    assert bench.policy.ratio == 0.25
    refused = robot.set_parameter('pruner.retention_ratio', 1.5)
    assert not refused.successful
    assert robot.set_parameter('instruction', 'lift something else').successful
    bench.wait_for(
        lambda: bench.policy.observations[-1].instruction == 'lift something else', 3.0, 'change'
    )


def test_the_clock_is_locked_while_active(bench) -> None:
    """rclpy switches the clock by itself when use_sim_time is set; a refusal must come before."""
    node, robot = bench.start(), bench.robot
    assert robot.configure() and robot.activate()
    robot.say('lift the block')
    robot.wait_state('RUN')
    for value in (True, False):
        result = robot.set_parameter('use_sim_time', value)
        assert not result.successful, value
        assert "['use_sim_time'] cannot change while the node is active" in result.reason
        assert 'deactivate' in result.reason
        assert not node.get_clock().ros_time_is_active
        assert not node.get_parameter('use_sim_time').value
    before = robot.sent()
    bench.wait_for(lambda: robot.sent() >= before + 8, 3.0, 'commands, by the same clock')
    assert 'RUN' in robot.state()

    assert robot.transition(4), 'deactivate'
    assert robot.set_parameter('use_sim_time', True).successful
    assert node.get_clock().ros_time_is_active
    assert not robot.activate(), 'it counts from the next configure on'


def test_another_threshold_leaves_the_ratio_that_an_audit_asked_for(bench) -> None:
    robot = bench.run(runtime__audit__every_steps=2, runtime__audit__first_ms=1.0,
                      runtime__audit__max_deviation_rad=0.005)  # fmt: skip
    bench.wait_for(lambda: bench.policy.ratio == 1.0, 20.0, 'audits that raise the ratio')
    assert robot.set_parameter('pruner.similarity_threshold', 0.8).successful
    assert bench.policy.threshold == 0.8
    assert bench.policy.ratio == 1.0, 'what /diagnostics show as target_retention_ratio'
    bench.wait_for(
        lambda: robot.diagnostics['safe_pruner: pruning'][2]['target_retention_ratio'] == '1',
        3.0, 'diagnostics',
    )  # fmt: skip


def test_a_parameter_set_while_inactive_counts_after_the_next_configure(bench) -> None:
    node = bench.start()
    robot = bench.robot
    assert robot.configure()
    assert robot.set_parameter('runtime.guard.soft_start_s', 0.5).successful
    assert robot.transition(2) and robot.configure()
    assert node._session.config.runtime.guard.soft_start_s == 0.5


def test_activate_refuses_settings_that_it_was_not_configured_with(bench, capfd) -> None:
    """/diagnostics and parameters must not say "dry run" while commands move the robot."""
    node, robot = bench.start(), bench.robot
    assert robot.configure()
    assert robot.set_parameter('robot.dry_run', True).successful
    assert robot.set_parameter('robot.joints.left_1.max_velocity', 0.1).successful
    assert robot.set_parameter('pruner.retention_ratio', 0.2).successful  # live: counts at once
    assert bench.policy.ratio == 0.2
    assert not node._session.config.robot.dry_run
    capfd.readouterr()
    assert not robot.activate()
    log = capfd.readouterr().err
    for words in ('changed since configure', 'robot.dry_run', 'max_velocity', 'configure again'):
        assert words in log, log
    assert 'retention_ratio' not in log
    assert robot.sent() == 0
    bench.wait_for(lambda: robot.state() != '', 3.0, 'diagnostics')
    assert robot.diagnostics['safe_pruner: state'][2]['dry_run'] == 'False', 'as it was built'

    assert robot.set_parameter('robot.joints.left_1.max_velocity', 2.0).successful
    assert not robot.activate()
    assert robot.transition(2) and robot.configure() and robot.activate()
    robot.say('lift')
    robot.wait_state('RUN', 'dry run')
    assert robot.sent() == 0


def test_a_setting_that_was_set_back_does_not_stand_in_the_way(bench) -> None:
    bench.start()
    robot = bench.robot
    assert robot.configure()
    assert robot.set_parameter('runtime.guard.soft_start_s', 0.5).successful
    assert not robot.activate()
    assert robot.set_parameter('runtime.guard.soft_start_s', 0.1).successful
    assert robot.activate()


def test_another_robot_file_counts_after_configure_only(bench, capfd) -> None:
    bench.start()
    assert bench.robot.configure()
    assert bench.robot.set_parameter('robot_file', 'aloha').successful
    assert not bench.robot.activate()
    assert "changed since configure: ['robot_file']" in capfd.readouterr().err


def test_an_instruction_that_the_topic_withdrew_does_not_come_back(bench) -> None:
    node, robot = bench.start(instruction='lift the block'), bench.robot
    assert robot.configure() and robot.activate()
    robot.wait_state('RUN')
    robot.say('')
    robot.wait_state('HOLD', 'INSTRUCTION_EMPTY')
    assert node.get_parameter('instruction').value == '', 'what is shown is in force'
    assert robot.transition(4) and robot.transition(2)
    assert robot.configure() and robot.activate()
    sent = robot.sent()
    robot.wait_state('HOLD', 'INSTRUCTION_EMPTY')
    assert robot.sent() == sent

    assert robot.set_parameter('instruction', 'lift the block').successful
    robot.wait_state('RUN')
    robot.say('lift something else')
    bench.wait_for(
        lambda: bench.policy.observations[-1].instruction == 'lift something else', 3.0, 'change'
    )
    assert node.get_parameter('instruction').value == ''


def test_an_instruction_parameter_that_is_refused_holds_and_says_so(bench) -> None:
    node, robot = bench.start(instruction='lift the block'), bench.robot
    assert robot.configure() and robot.activate()
    robot.wait_state('RUN')
    refused = robot.set_parameter('instruction', '\x01')
    assert not refused.successful and 'INSTRUCTION_REFUSED' in refused.reason
    assert 'U+0001' in refused.reason
    robot.wait_state('HOLD', 'INSTRUCTION_REFUSED')
    assert node.get_parameter('instruction').value == '', 'the one before is not in force'
    assert robot.set_parameter('instruction', 'lift the block').successful
    robot.wait_state('RUN')
    assert robot.set_parameter('instruction', '').successful, 'it withdraws the instruction'
    robot.wait_state('HOLD', 'INSTRUCTION_EMPTY')
