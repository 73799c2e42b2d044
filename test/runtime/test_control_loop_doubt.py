"""The parts together: when what is measured cannot be believed, and when the clock goes back."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.control_bench import GOAL, TICK_MS, reach

from safe_pruner_ros.runtime.codes import Code

FAR = {'left_1': -0.95, 'left_2': 0.4, 'right_1': -0.9}  # from zero: more than a believable step


@pytest.mark.parametrize('event', ['start', 'gap', 'reset'])
@pytest.mark.parametrize('bad', [1, 4])
def test_a_first_bad_joint_message_moves_nothing(kit, make_bench, event, bad):
    """A driver that begins anew begins with zeros; the policy stays where it was told to be."""
    bench = make_bench()
    true = {name: 0.1 for name in kit.JOINTS} | FAR

    def tick(positions):
        bench.clock.advance(TICK_MS * kit.MS)
        now = bench.clock.ns
        for side, names in (('left', kit.LEFT), ('right', kit.RIGHT)):
            values = [positions[n] * (100 if n.endswith('grip') else 1) for n in names]
            bench.loop.store_joints(side, names, values, now, now)
        bench.feed.images(now)
        bench.loop.worker.run_once()
        verdict = bench.loop.tick(now)
        if verdict.command is not None:
            sent = dict(zip(kit.JOINTS, verdict.command.positions, strict=True))
            assert sent == pytest.approx(true, abs=1e-9)
        return verdict

    if event != 'start':
        for _ in range(50):
            tick(true)
    if event == 'gap':
        bench.clock.advance(200 * kit.MS)
    if event == 'reset':
        bench.loop.reset()
    for _ in range(bad):
        tick(dict.fromkeys(kit.JOINTS, 0.0))
    verdicts = [tick(true) for _ in range(50)]
    assert verdicts[-1].action == 'pass' and bench.loop.status(bench.clock.ns).state == 'RUN'


def test_two_publishers_of_joints_hold_the_arms(kit, make_bench):
    """A forgotten joint_state_publisher sends zeros beside the driver, which came first."""
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1000)
    assert bench.verdicts[-1].action != 'hold'
    for _ in range(50):
        bench.clock.advance(5 * kit.MS)
        for side, names in (('left', kit.LEFT), ('right', kit.RIGHT)):
            away = [0.9, -0.9, 0.0]
            bench.loop.store_joints(side, names, away, bench.clock.ns, bench.clock.ns)
        verdict = bench.run(TICK_MS)
    assert verdict.codes == (Code.STATE_CONFLICT, Code.STATE_CONFLICT)
    assert bench.loop.status(bench.clock.ns).state == 'HOLD'
    assert np.ptp(bench.commands[-40:], axis=0).max() == 0.0


def test_a_blocked_arm_is_not_pushed_again_and_again(kit, make_bench):
    """Void, held where /diagnostics can see it, then a FAULT that only a reset ends."""
    bench = make_bench(
        kit.Policy(lambda obs: np.tile(np.where(np.arange(6), 0.1, -0.7), (8, 1)), chunk=8)
    )
    wall, free = -0.05, bench.feed.joints

    def blocked(now_ns):
        bench.feed.positions['left_1'] = max(bench.feed.positions['left_1'], wall)
        free(now_ns)

    bench.feed.joints = blocked
    seen = []
    for _ in range(40):  # 20 s, looked at twice a second
        bench.run(500)
        seen.append((bench.loop.status(bench.clock.ns).state, bench.verdicts[-1].codes))
    assert seen.count(('HOLD', (Code.TRACKING_LOST,))) >= 4
    assert seen[-1] == ('FAULT', (Code.TRACKING_FAILING,))
    lost = [Code.TRACKING_LOST in v.codes or v.is_fault for v in bench.verdicts]
    starts = [n for n in range(1, len(lost)) if lost[n] and not lost[n - 1]]
    assert len(starts) == 3 and all(v.command is None for v in bench.verdicts[starts[-1] :])
    bench.loop.reset()
    wall = -1.0
    bench.run(1000)
    assert bench.loop.status(bench.clock.ns).state == 'RUN'


def test_what_was_planned_before_a_loss_is_void(kit, make_bench):
    bench = make_bench(kit.Policy(lambda obs: np.tile(GOAL, (40, 1)), chunk=40))
    bench.run(1000)
    bench.loop.worker.run_once = lambda: None
    generation = bench.loop.buffer.generation
    for _ in range(30):  # somebody moves the arm, ever further from where it is sent
        bench.feed.positions['left_2'] += 0.1
        bench.clock.advance(TICK_MS * kit.MS)
        bench.feed.all(bench.clock.ns)
        verdict = bench.loop.tick(bench.clock.ns)
        if Code.TRACKING_LOST in verdict.codes:
            break
    assert Code.TRACKING_LOST in verdict.codes and verdict.command is None
    assert bench.loop.actions.command(bench.clock.ns) is None
    bench.loop.tick(bench.clock.ns)
    assert bench.loop.buffer.generation == generation + 1  # once


def test_a_clock_that_went_back_begins_a_new_episode_for_the_policy(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1000)
    steps = len(bench.policy.observations)
    bench.clock.ns = kit.T0 + 10 * kit.MS
    assert bench.loop.tick(bench.clock.ns).codes == (Code.CLOCK_JUMPED,)
    bench.run(1000)
    assert len(bench.policy.observations) > steps and bench.policy.resets == 1
    assert bench.policy.observations[-1].instruction == 'lift the cup'
    assert bench.verdicts[-1].action != 'hold'


def test_a_clock_that_went_back_keeps_a_fault(kit, make_bench):
    def script(obs):
        raise RuntimeError('boom')

    bench = make_bench(kit.Policy(script))
    bench.run(1500)
    assert bench.verdicts[-1].is_fault
    bench.clock.ns = kit.T0 + 10 * kit.MS
    bench.loop.tick(bench.clock.ns)
    assert bench.run(1000).is_fault and bench.loop.worker.fault is not None
    bench.loop.reset()
    assert bench.loop.worker.fault is None


def test_a_second_start_begins_a_new_episode_and_keeps_the_instruction(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    for episode in (1, 2):
        steps = len(bench.policy.observations)
        bench.loop.start()
        assert bench.loop.worker.stop(5.0)
        bench.loop.worker._stopping = False  # its thread is gone; the bench asks in this one
        bench.run(1000)
        assert len(bench.policy.observations) > steps
        assert bench.policy.resets == episode
        assert bench.policy.observations[-1].instruction == 'lift the cup'
        bench.loop.stop()
        bench.clock.advance(3_600_000 * kit.MS)
