"""Rows 26, 30 to 35, 41: whatever comes in, no NaN, no limit, no step is ever violated."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.guard_bench import HOME, TICK, Bench, arms

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.command_guard import ARMS_LIMITED
from safe_pruner_ros.runtime.config import GuardConfig
from safe_pruner_ros.types import ArmState


@pytest.fixture
def bench(kit):
    return Bench(kit)


@pytest.fixture
def stalling(kit):
    return Bench(kit, stall_s=GuardConfig().stall_s)


def test_small_step_passes_unchanged(bench):
    verdict = bench.tick(HOME + 0.01)
    assert verdict.action == 'pass' and verdict.reasons == ()
    assert verdict.command.positions == pytest.approx(HOME + 0.01)


def test_position_limit(bench):
    target = HOME.copy()
    target[0] = 9.0
    assert bench.tick(target).codes == (Code.START_ERROR,)
    bench.settle(HOME)
    verdict = bench.settle(target)
    assert verdict.action == 'clamp' and verdict.codes == (Code.POSITION_LIMIT,)
    assert verdict.command.positions[0] == 0.5
    assert 'left_1' in verdict.reasons[0].text and 'left_2' not in verdict.reasons[0].text


def test_step_and_velocity_limits(kit, bench):
    verdict = bench.tick(HOME + 0.3)
    assert verdict.codes == (Code.STEP_LIMIT, Code.VELOCITY_LIMIT)
    assert np.abs(verdict.command.positions - HOME)[[0, 1]].tolist() == pytest.approx([0.05] * 2)
    slow = [j if j.kind == 'gripper' else type(j)(j.name, 'arm', -1, 0.5, 1.0, 0.05)
            for j in bench.robot.joints]  # fmt: skip
    slow_bench = Bench(kit, kit.robot(joints=tuple(slow)))
    verdict = slow_bench.tick(HOME + 0.04)
    assert verdict.codes == (Code.VELOCITY_LIMIT,)
    assert verdict.command.positions[0] == pytest.approx(0.1 + 1.0 * 0.02)


@pytest.mark.parametrize(('rate_hz', 'speed'), [(25, 1.25), (50, 2.5), (100, 2.5), (250, 2.5)])
def test_a_higher_rate_of_commands_is_no_higher_speed(kit, rate_hz, speed):
    """max_step 0.05 at 50 Hz, max_velocity 4.0: the step is what bounds."""
    bench = Bench(kit, rate_hz=float(rate_hz), max_tracking_error_rad=9.0)
    bench.tick(HOME, ns=1_000_000_000 // rate_hz)
    sent = [
        bench.tick(arms(-0.9), ns=1_000_000_000 // rate_hz).command.positions[0]
        for _ in range(rate_hz // 5)
    ]
    steps = -np.diff([HOME[0], *sent])
    assert steps.max() * rate_hz == pytest.approx(speed) and steps.max() <= 0.05 + 1e-9


def test_ticks_in_a_burst_do_not_move_faster(bench):
    bench.settle(HOME)
    start = bench.tick(HOME).command.positions[0]
    moved = [bench.tick(arms(-1.0), ns=1_000_000).command.positions[0] for _ in range(20)]
    # 20 ms have passed: one period's worth, and at most one more that was left over.
    assert start - moved[-1] <= 4.0 * 0.04 + 1e-9


def test_uneven_clock_of_a_simulator_keeps_the_average_speed(bench):
    bench.settle(HOME)
    positions = []
    for ns in (0, 2 * TICK) * 8:
        bench.measured = bench.tick(arms(-0.9), ns=ns).command.positions
        positions.append(bench.measured[0])
    assert positions[0] - positions[-1] == pytest.approx(0.05 * 15, abs=0.051)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_not_finite_is_held(bench, bad):
    bench.tick(HOME + 0.01)
    target = HOME.copy()
    target[4] = bad
    verdict = bench.tick(target)
    assert verdict.action == 'hold' and verdict.codes == (Code.COMMAND_NONFINITE,)
    assert 'right_2' in verdict.reasons[0].text
    assert verdict.command.positions == pytest.approx(HOME + 0.01)


def test_nothing_is_sent_before_the_first_good_command(bench):
    assert bench.tick(None).command is None
    assert bench.tick(HOME * np.nan).command is None
    assert bench.tick(HOME, reasons=[Reason(Code.IMAGE_STALE, 'x')]).command is None
    assert bench.tick(HOME, state=None).codes == (Code.STATE_MISSING,)
    assert bench.tick(HOME).command is not None


def test_hold_repeats_the_last_command_though_the_arm_sags(bench):
    sent = bench.settle(HOME + 0.02).command.positions
    for _ in range(50):
        bench.measured = bench.measured - 0.002
        verdict = bench.tick(None)
        assert verdict.action == 'hold' and verdict.codes == (Code.NO_ACTION,)
        assert verdict.command.positions.tolist() == sent.tolist()


def test_long_hold_ends_and_starts_softly_again(kit):
    bench = Bench(kit, hold_s=1.0, soft_start_s=1.0)
    bench.settle(HOME)
    commands = [bench.tick(None).command for _ in range(60)]
    assert commands[49] is not None and commands[51] is None
    bench.measured = arms(-0.2)  # moved by hand meanwhile
    verdict = bench.tick(arms(-0.17))
    assert verdict.codes == (Code.SOFT_START,)
    assert np.abs(verdict.command.positions - bench.measured).max() <= 0.011


def test_arm_that_is_not_where_it_was_sent(kit):
    """Moved by hand under an emergency stop: neither command nor hold may throw it back."""
    bench = Bench(kit, tracking_hold_s=0.0)
    bench.settle(HOME)
    for targets in (HOME, None):
        bench.measured = arms(-0.6)
        verdict = bench.tick(targets)
        assert verdict.command is None and Code.TRACKING_LOST in verdict.codes
        assert 'left_1, left_2' in verdict.reasons[-1].text
        verdict = bench.tick(arms(-0.59))
        assert np.abs(verdict.command.positions - bench.measured).max() <= 0.05
        bench.measured = HOME
        bench.guard.forget()
        bench.settle(HOME)
    bench.measured = np.where(np.array([0, 0, 1, 0, 0, 1], bool), 1.0, HOME)
    assert bench.tick(HOME).action == 'pass'  # a gripper on an object never arrives


def lose(bench):
    """The arms are found 0.6 rad from their command; the verdict of that tick."""
    bench.measured = HOME
    bench.settle(HOME)
    bench.measured = arms(-0.6)
    return bench.tick(arms(-0.59))


def test_a_loss_holds_long_enough_to_be_seen(bench):
    assert lose(bench).codes == (Code.TRACKING_LOST,)
    begin = bench.now
    while (verdict := bench.tick(arms(-0.59))).action == 'hold':
        assert verdict.codes == (Code.TRACKING_LOST,) and verdict.command is None
        assert 'left_1, left_2' in verdict.reasons[0].text
    assert 1.5 <= (bench.now - begin) * 1e-9 <= 1.54  # diagnostics come once or twice a second
    assert np.abs(verdict.command.positions - bench.measured).max() <= 0.05


def test_losses_again_and_again_are_a_fault_until_reset(bench):
    for _ in range(2):
        assert not lose(bench).is_fault
        bench.settle(arms(-0.59), 80)
    verdict = lose(bench)
    assert verdict.is_fault and verdict.command is None
    assert verdict.codes == (Code.TRACKING_FAILING,)
    assert '3 times within 30 s' in verdict.reasons[0].text
    assert '-0.6' not in verdict.reasons[0].text and 'left_1' in verdict.reasons[0].text
    assert bench.settle(HOME, 200).is_fault
    bench.guard.reset()
    bench.measured = HOME
    assert bench.tick(HOME).action == 'pass'
    assert lose(bench).codes == (Code.TRACKING_LOST,)  # counted anew


def test_emergency_stop_ends_sending_though_the_arm_is_not_far(stalling):
    """No message tells of it: the arm stands while its command goes on, here to 0.3 rad away."""
    stalling.settle(HOME)
    ticks = 0
    while stalling.tick(arms(-0.3)).command is not None:
        ticks += 1
    assert 50 <= ticks <= 54  # 0.15 rad away after three steps, then stall_s
    verdict = stalling.tick(arms(-0.3))
    assert verdict.codes == (Code.TRACKING_LOST,) and 'still for 1 s' in verdict.reasons[0].text
    assert (
        'left_1, left_2' in verdict.reasons[0].text and '(limit 0.15)' in verdict.reasons[0].text
    )
    # Still pressed: each start is soft, from where the arm stands, and the third loss is a FAULT.
    verdict = stalling.settle(arms(-0.3), 400)
    assert verdict.is_fault and verdict.codes == (Code.TRACKING_FAILING,)


def test_a_hold_beside_a_stalled_arm_ends_too(stalling):
    stalling.settle(HOME)
    stalling.tick(arms(-0.3))
    stalling.measured = arms(0.16)
    verdicts = [stalling.tick(None) for _ in range(60)]
    assert verdicts[40].command is not None and verdicts[-1].command is None


def test_arms_that_lag_move_or_nearly_arrive_have_not_stalled(stalling):
    stalling.settle(HOME)
    stalling.measured = arms(0.14)  # hangs through, and stays
    assert stalling.settle(HOME, 200).action == 'pass'
    stalling.measured = arms(0.4)
    for _ in range(150):  # slow, 0.03 rad in each second, and 0.2 rad away all the time
        stalling.measured = stalling.measured - np.array([1, 1, 0, 1, 1, 0]) * 0.0006
        assert stalling.tick(HOME + 0.1).command is not None
    stalling.measured = np.where(np.array([0, 0, 1, 0, 0, 1], bool), 1.0, HOME)
    assert stalling.settle(HOME, 200).action == 'pass'  # grippers hold something


def test_a_stall_begins_anew_after_a_gap_in_the_measured_joints(stalling):
    stalling.settle(HOME)
    stalling.measured = arms(0.2)
    for _ in range(4):
        assert stalling.settle(HOME, 45).command is not None
        stalling.tick(HOME, state=None)
    assert stalling.settle(HOME, 60).command is None


def test_rare_losses_are_no_fault(bench):
    for _ in range(6):
        assert not lose(bench).is_fault
        bench.now += 16_000_000_000
    bench.now -= 3_600_000_000_000  # the node clock went back: losses of its future do not count
    assert not lose(bench).is_fault


def test_preview_of_a_dry_run_is_not_tracked(kit):
    bench = Bench(kit, kit.robot(dry_run=True))
    bench.settle(HOME)
    bench.measured = arms(-0.6)
    assert bench.tick(HOME).action == 'pass'


@pytest.mark.parametrize(('ms', 'held'), [(90, False), (120, True), (-150, True)])
def test_stale_measured_joints_and_commands(bench, ms, held):
    bench.settle(HOME)
    old_state = ArmState(HOME, bench.kit.JOINTS, bench.now + TICK - ms * 1_000_000)
    verdict = bench.tick(HOME, state=old_state)
    assert verdict.codes == ((Code.STATE_STALE,) if held else ())
    verdict = bench.tick(HOME, age_ns=ms * 1_000_000)
    assert verdict.codes == ((Code.COMMAND_STALE,) if held else ())


def test_soft_start_ramps_up(kit):
    bench = Bench(kit, soft_start_s=1.0)
    last, steps = HOME, []
    for _ in range(30):
        sent = bench.tick(arms(-0.9)).command.positions
        steps.append(np.abs(sent - last)[0])
        last = sent
    assert steps[0] == pytest.approx(0.005, abs=1e-6)
    assert steps[-1] == pytest.approx(0.05 * 29 / 50, abs=1e-3)
    assert np.all(np.diff(steps) >= -1e-9)


def test_start_far_away_is_refused(kit):
    bench = Bench(kit, max_start_error_rad=0.3)
    verdict = bench.tick(arms(-0.5))
    assert verdict.codes == (Code.START_ERROR,) and verdict.command is None
    assert 'left_1' in verdict.reasons[0].text and 'limit 0.3' in verdict.reasons[0].text
    bench.measured = arms(-0.4)
    assert bench.tick(arms(-0.5)).command is not None


def test_reset_forgets_what_the_grippers_were_told(bench):
    bench.measured = HOME.copy()
    bench.measured[2] = 0.6  # stopped by a thing
    closed = np.where(np.arange(6) == 2, 1.0, HOME)
    bench.settle(closed)
    bench.guard.reset()  # and somebody took the thing out
    assert bench.tick(bench.measured).command.positions[2] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ('joint', 'value', 'starts'),
    [(0, 0.51, True), (0, 0.53, False), (0, -1.015, True), (2, 1.05, True), (2, 40.0, False)],
)
def test_measured_outside_the_limits(bench, joint, value, starts):
    bench.measured[joint] = value
    verdict = bench.tick(np.where(np.arange(6) == joint, min(value, 0.5), HOME))
    if not starts:
        assert verdict.codes == (Code.STATE_OUTSIDE_LIMITS,) and verdict.command is None
        return
    sent = verdict.command.positions[joint]
    assert bench.guard._lower[joint] <= sent <= bench.guard._upper[joint]
    assert abs(sent - value) <= bench.robot.joints[joint].max_step


def test_gripper_slightly_outside_is_clamped_and_units_are_noticed(bench):
    target = HOME.copy()
    target[2] = -0.03
    assert bench.settle(target).codes == (Code.POSITION_LIMIT,)
    for value in (40.0, 100.0, -60.0):
        target[2] = value
        verdict = bench.tick(target)
        assert verdict.codes == (Code.GRIPPER_RANGE,) and verdict.action == 'hold'


def test_clamped_for_long_is_a_fault_until_reset(bench):
    target = HOME.copy()
    target[0] = 0.7
    verdicts = [bench.tick(target) for _ in range(101)]
    faults = [verdict.is_fault for verdict in verdicts]
    assert faults.index(True) == 99
    assert verdicts[-1].command is None and verdicts[-1].codes == (Code.CLAMPED_TOO_LONG,)
    assert bench.tick(HOME).is_fault
    bench.guard.reset()
    assert bench.tick(HOME).action == 'pass'


def test_tiny_clamps_and_passes_do_not_add_up(bench):
    target = HOME.copy()
    target[0] = 0.51  # regression noise around the limit
    for _ in range(300):
        assert not bench.tick(target).is_fault
    near, target[0] = np.where(target > 0.5, 0.48, HOME), 0.7
    for tick in range(300):
        assert not bench.tick(near if tick % 50 == 0 else target).is_fault


def test_oscillation_is_held_and_released(bench):
    bench.settle(HOME)
    codes = [bench.tick(arms(0.5 if t % 2 else -0.5)).codes for t in range(40)]
    assert (Code.OSCILLATION,) in codes[:12] and codes[-1] == (Code.OSCILLATION,)
    released = [bench.tick(HOME).action for _ in range(60)]
    assert released[0] == 'hold' and released[-1] == 'pass'


def test_fault_of_the_policy_latches(bench):
    bench.settle(HOME)
    verdict = bench.tick(HOME, reasons=[Reason(Code.POLICY_FAILING, 'three errors')])
    assert verdict.is_fault and verdict.command is None
    assert bench.tick(HOME).codes == (Code.POLICY_FAILING,)


def test_joints_by_name_and_missing_ones(bench):
    names = bench.kit.JOINTS[::-1]
    target = HOME + np.arange(6) * 0.001
    verdict = bench.tick(target[::-1], names=names)
    assert verdict.command.positions == pytest.approx(target)
    assert verdict.command.joint_names == bench.kit.JOINTS
    verdict = bench.tick(HOME[:5], names=bench.kit.JOINTS[:5])
    assert verdict.codes == (Code.COMMAND_JOINTS,) and 'right_grip' in verdict.reasons[0].text
    assert bench.tick(HOME[:5]).codes == (Code.COMMAND_JOINTS,)


def test_counts(bench):
    bench.tick(None)
    bench.tick(HOME + 0.01)
    bench.tick(HOME + 0.01)
    assert bench.guard.take_counts() == {'hold': 1, 'NO_ACTION': 1, 'pass': 2}
    assert bench.guard.take_counts() == {}


@pytest.mark.parametrize('joint', ['gripper', 'arm'])
def test_only_arms_count_as_limited(bench, joint):
    bench.settle(HOME)
    bench.guard.take_counts()
    target = arms(0.3)
    if joint == 'gripper':  # told to close at once
        target = HOME + np.array([0, 0, 0.9, 0, 0, 0])
    bench.tick(target)
    counts = bench.guard.take_counts()
    assert counts['clamp'] == counts['STEP_LIMIT'] == 1
    assert counts.get(ARMS_LIMITED, 0) == (joint == 'arm')
