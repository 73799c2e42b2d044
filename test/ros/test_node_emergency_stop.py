"""An emergency stop: joints are reported, cameras run, nothing moves, no message tells of it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros


def test_an_arm_that_was_stopped_is_not_thrown_to_its_command(bench) -> None:
    robot = bench.run(
        runtime__guard__stall_s=0.5,
        runtime__guard__max_stall_error_rad=0.03,  # this policy plans small steps from the pose
        runtime__guard__max_tracking_losses=2,
        runtime__guard__soft_start_s=0.2,
    )
    robot.brakes_on = True
    robot.wait_state('HOLD', 'TRACKING_LOST', 'stood still for 0.5 s', 'emergency stop')
    assert bench.is_silent(0.5), 'released now, the arm would go to its last command'
    robot.wait_state('FAULT', 'TRACKING_FAILING')  # it tried again, from where the arm stands
    assert bench.is_silent(0.5)
    # Released: nothing moves until somebody says so, and then from where the arm is.
    robot.received['/arm_left/command'].clear()
    robot.received['/arm_right/command'].clear()
    robot.brakes_on = False
    stood = robot.positions['left_1']
    assert bench.is_silent(0.5)
    assert robot.trigger('reset').success
    robot.wait_state('RUN')
    first = robot.received['/arm_left/command'][0].points[0].positions[0]
    assert abs(first - stood) <= 0.01
