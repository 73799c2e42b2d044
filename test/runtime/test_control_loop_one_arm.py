"""The driver of one arm is dead, the other one's speaks: that arm is watched all the same."""

from __future__ import annotations

import pytest
from helpers.control_bench import GOAL, TICK_MS, reach

from safe_pruner_ros.runtime.codes import Code

ARMS = ('left_1', 'left_2', 'right_1', 'right_2')


@pytest.fixture
def bench(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(3000)
    bench.here = dict(zip(kit.JOINTS, bench.commands[-1], strict=True))
    return bench


def look_on(kit, bench, ms, **poses):
    """Ticks in which the arms named stand as said, whatever they are told; the other is silent."""
    verdicts = []
    for _ in range(ms // TICK_MS):
        bench.clock.advance(TICK_MS * kit.MS)
        now = bench.clock.ns
        bench.feed.images(now)
        for source, pose in poses.items():
            names = kit.LEFT if source == 'left' else kit.RIGHT
            robot = [pose[n] * (100 if n.endswith('grip') else 1) for n in names]
            bench.loop.store_joints(source, names, robot, now, now)
        bench.loop.worker.run_once()
        verdicts.append(bench.loop.tick(now))
    return verdicts


def codes(verdicts):
    return {code for verdict in verdicts for code in verdict.codes}


def speaking(bench, is_left_alive, right):
    return {'right': right} | ({'left': bench.here} if is_left_alive else {})


@pytest.mark.parametrize('is_left_alive', [True, False])
def test_an_arm_that_is_pulled_away_is_no_longer_sent_back(kit, bench, is_left_alive):
    bench.loop.pause()
    right, verdicts = dict(bench.here), []
    for _ in range(22):  # 0.88 rad in steps that an encoder is believed
        right['right_1'] += 0.04
        verdicts += look_on(kit, bench, TICK_MS, **speaking(bench, is_left_alive, right))
    assert Code.TRACKING_LOST in codes(verdicts) and verdicts[-1].command is None
    assert all('right_1' in r.text for v in verdicts for r in v.reasons
               if r.code is Code.TRACKING_LOST)  # fmt: skip


@pytest.mark.parametrize('is_left_alive', [True, False])
def test_an_arm_that_stands_braked_near_its_command_is_let_go(kit, bench, is_left_alive):
    bench.loop.pause()
    right, verdicts = dict(bench.here), []
    for _ in range(15):
        right['right_1'] += 0.02
        verdicts += look_on(kit, bench, TICK_MS, **speaking(bench, is_left_alive, right))
    assert Code.TRACKING_LOST not in codes(verdicts)
    verdicts = look_on(kit, bench, 1500, **speaking(bench, is_left_alive, right))
    assert Code.TRACKING_LOST in codes(verdicts) and verdicts[-1].command is None


@pytest.mark.parametrize('is_left_back', [True, False])
def test_an_arm_that_sank_in_the_silence_of_both_is_not_pulled_up(kit, bench, is_left_back):
    look_on(kit, bench, 1000)  # both silent
    sunk = bench.here | {'right_1': bench.here['right_1'] - 0.9}
    verdicts = look_on(kit, bench, 3000, **speaking(bench, is_left_back, sunk))
    sent = [v.command for v in verdicts if v.command is not None]
    assert all(abs(command.positions[3] - sunk['right_1']) < 0.5 for command in sent)
    if not is_left_back:
        assert not sent


def test_what_a_dead_driver_said_last_is_no_loss(kit, bench):
    """Held, as ever: its arm is where it was seen, or nobody knows."""
    verdicts = look_on(kit, bench, 5000, right=bench.here)
    assert Code.TRACKING_LOST not in codes(verdicts)
    assert Code.STATE_STALE in verdicts[-1].codes
    assert all(verdict.command is not None for verdict in verdicts)
