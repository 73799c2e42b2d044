"""The parts together, when time passed unseen: a stopped process, a silent driver, a clock that
stood still and went back, a node that was deactivated."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers.control_bench import GOAL, TICK_MS, reach

from safe_pruner_ros.runtime.codes import Code, Reason

HOUR_NS = 3600 * 10**9


def look_on(kit, bench, ticks):
    """Ticks of a robot that stays where it is whatever it is told; (verdicts, its pose)."""
    verdicts = []
    for _ in range(ticks):
        bench.clock.advance(TICK_MS * kit.MS)
        bench.feed.sample(bench.clock.ns, bench.clock.ns)
        bench.feed.images(bench.clock.ns)
        bench.loop.worker.run_once()
        verdicts.append(bench.loop.tick(bench.clock.ns))
    return verdicts, np.array(list(bench.feed.positions.values()))


@pytest.mark.parametrize(
    ('moved', 'clock'),  # less and more than a loss of tracking
    [(0.4, 'both'), (0.9, 'both'), (0.4, 'node only'), (0.9, 'node only'), (0.4, 'steady only')],
)
def test_a_process_that_was_stopped_starts_anew_from_where_the_arm_is(
    kit, make_bench, moved, clock
):
    """Ctrl-Z, a paused container, a machine asleep; somebody moved the arm meanwhile."""
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(3000)
    bench.clock.ns += HOUR_NS * (clock != 'steady only')
    bench.clock.steady_ns += HOUR_NS * (clock != 'node only')
    bench.feed.positions['left_1'] -= moved
    verdicts, pose = look_on(kit, bench, 60)
    assert verdicts[0].codes[0] is Code.CONTROL_GAP and verdicts[0].command is None
    sent = [verdict.command for verdict in verdicts if verdict.command is not None]
    assert sent and np.abs(sent[0].positions - pose).max() < 0.01
    assert bench.policy.resets == 1  # what it remembers is an hour old, too
    assert Code.TRACKING_LOST not in {code for verdict in verdicts[:20] for code in verdict.codes}


def test_an_arm_that_sank_while_its_driver_was_silent_is_not_pulled_up(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(3000)
    bench.drop = {'joints'}
    before = len(bench.commands)
    bench.run(5000)
    assert len(bench.commands) - before == 250  # a silent driver: held
    bench.drop = set()
    bench.feed.positions['left_1'] -= 0.9
    verdicts, pose = look_on(kit, bench, 60)
    assert verdicts[0].codes == (Code.STATE_RECOVERING, Code.STATE_RECOVERING)
    sent = [verdict.command for verdict in verdicts if verdict.command is not None]
    assert sent and all(abs(command.positions[0] - pose[0]) < 0.5 for command in sent)
    assert verdicts[-1].codes != (Code.TRACKING_FAILING,)


def test_a_short_silence_of_a_driver_is_held_through(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(3000)
    bench.clock.advance(150 * kit.MS)
    verdicts, _ = look_on(kit, bench, 3)
    assert all(verdict.command is not None for verdict in verdicts)
    assert Code.STATE_RECOVERING in verdicts[0].codes


def test_a_clock_that_stood_still_and_went_back_leaves_no_old_chunk(kit, make_bench):
    """A simulator that is paused, then reset: the chunk computed in the pause must not run."""
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(3000)
    for _ in range(60):
        bench.clock.steady_ns += TICK_MS * kit.MS
        bench.loop.worker.run_once()
        verdict = bench.loop.tick(bench.clock.ns)
    assert verdict.codes == (Code.CLOCK_STOPPED,)
    bench.clock.ns = kit.T0 - 600 * 10**9
    assert bench.loop.tick(bench.clock.ns).codes == (Code.CLOCK_JUMPED,)
    steps, resets = len(bench.policy.observations), bench.policy.resets
    bench.run(2000)
    assert len(bench.policy.observations) > steps + 5 and bench.policy.resets == resets + 1
    assert bench.verdicts[-1].action != 'hold'


def test_a_clock_that_goes_through_zero_begins_a_new_episode(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1000)
    bench.clock.ns = 0
    assert bench.loop.tick(0).codes == (Code.CLOCK_JUMPED,)
    bench.clock.steady_ns += TICK_MS * kit.MS
    assert Code.CLOCK_MISSING in bench.loop.tick(0).codes
    bench.clock.ns = kit.T0 // 2
    bench.run(1000)
    assert bench.policy.resets == 1 and bench.verdicts[-1].action != 'hold'


@pytest.mark.parametrize('whose', ['guard', 'policy'])
def test_a_fault_outlives_a_restart(kit, make_bench, whose):
    broken = [whose == 'policy']

    def script(observation):
        if broken[0]:
            raise RuntimeError('boom')
        return reach(GOAL)(observation)

    bench = make_bench(kit.Policy(script))
    if whose == 'guard':
        fault = (Reason(Code.TRACKING_FAILING, 'blocked'),)
        bench.loop.guard.check(None, None, bench.clock.ns, fault)
    bench.run(1500)
    assert bench.verdicts[-1].is_fault
    broken[0] = False
    bench.loop.stop()
    bench.loop.start()
    assert bench.loop.worker.stop(5.0)
    bench.loop.worker._stopping = False
    assert bench.run(1000).is_fault
    bench.loop.reset()
    assert bench.run(1000).action != 'hold'


def test_a_reset_does_not_come_into_the_middle_of_a_tick(kit, make_bench):
    """It would be undone by the rest of that tick."""

    def script(observation):
        raise RuntimeError('boom')

    bench = make_bench(kit.Policy(script))
    bench.run(1500)
    check, threads = bench.loop.guard.check, []

    def interrupted(*arguments):
        threads.append(threading.Thread(target=bench.loop.reset))
        threads[-1].start()
        threads[-1].join(0.2)
        assert threads[-1].is_alive()
        return check(*arguments)

    bench.loop.guard.check = interrupted
    assert bench.loop.tick(bench.clock.ns).is_fault
    threads[0].join(5.0)
    bench.loop.guard.check = check
    bench.policy.script = reach(GOAL)
    assert not bench.run(1000).is_fault


def hold_a_thing(kit, make_bench, **policy):
    """Both grippers are told to close, and a thing stops them at 0.6."""
    closed = np.array([0.1, 0.1, 1.0, 0.1, 0.1, 1.0])
    config = kit.config()
    if policy:
        config = type(config)(config.robot, runtime=config.runtime, policy=policy['policy'])
    bench = make_bench(kit.Policy(lambda observation: np.tile(closed, (4, 1))), config)
    free = bench.feed.joints

    def stopped(now_ns):
        for grip in ('left_grip', 'right_grip'):
            bench.feed.positions[grip] = min(bench.feed.positions[grip], 0.6)
        free(now_ns)

    bench.feed.joints = stopped
    bench.run(3000)
    assert bench.commands[-1][2] == pytest.approx(1.0)
    return bench


def test_a_gripper_that_holds_something_does_not_let_go_at_a_restart(kit, make_bench):
    bench = hold_a_thing(kit, make_bench)
    bench.loop.pause()
    assert bench.run(11_000).command is None
    bench.loop.resume()
    before = len(bench.commands)
    bench.run(1000)
    assert min(sent[2] for sent in bench.commands[before:]) == pytest.approx(1.0)


def test_fingers_that_were_still_closing_at_a_pause_keep_what_they_then_hold(kit, make_bench):
    """Slow ones: the thing stops them long after the hold began, and the hold runs out."""
    closed = np.array([0.1, 0.1, 1.0, 0.1, 0.1, 0.1])
    bench = make_bench(kit.Policy(lambda observation: np.tile(closed, (4, 1))))
    finger = bench.feed.positions['left_grip']

    def run(ms):
        nonlocal finger
        for _ in range(ms // TICK_MS):
            bench.run(TICK_MS)
            told = bench.commands[-1][2] if bench.commands else finger
            finger = min(0.6, finger + float(np.clip(told - finger, -0.1, 0.005)))
            bench.feed.positions['left_grip'] = finger

    for _ in range(500):
        if not (bench.commands and bench.commands[-1][2] > 0.9):
            run(TICK_MS)
    assert bench.commands[-1][2] > 0.9 and finger < 0.5
    bench.loop.pause()
    run(12_000)
    assert finger == pytest.approx(0.6) and bench.verdicts[-1].command is None
    bench.loop.resume()
    before = len(bench.commands)
    run(1000)
    assert min(sent[2] for sent in bench.commands[before:]) > 0.9


@pytest.mark.parametrize('event', ['opened', 'deactivated', 'reset', 'others used the robot'])
def test_a_gripper_does_not_go_back_to_what_it_was_told_for_another_thing(kit, make_bench, event):
    bench = hold_a_thing(kit, make_bench)
    bench.loop.pause()
    bench.run(11_000)
    if event == 'opened':
        bench.feed.positions['left_grip'] = 0.2
    elif event == 'reset':
        bench.loop.reset()
    elif event == 'others used the robot':
        bench.loop.block((Reason(Code.COMMAND_RIVAL, ''),), mute=True)
        bench.run(100)
        bench.loop.block()
    else:
        bench.loop.stop()
        bench.loop.start()
        assert bench.loop.worker.stop(5.0)
        bench.loop.worker._stopping = False
    bench.loop.resume()
    before = len(bench.commands)
    bench.run(1000)
    start = 0.2 if event == 'opened' else 0.6
    assert bench.commands[before][2] == pytest.approx(start, abs=0.05)


def test_the_force_of_a_grip_does_not_pulse_with_the_chunks(kit, make_bench):
    policy = type(kit.config().policy)(period_s=0.5, execution_horizon=1)
    bench = hold_a_thing(kit, make_bench, policy=policy)
    before = len(bench.commands)
    bench.run(3000)
    assert min(sent[2] for sent in bench.commands[before:]) == pytest.approx(1.0)
