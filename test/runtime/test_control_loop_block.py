"""A reason that only the caller of the loop sees: it holds the arms, or ends the sending."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.control_loop import ControlLoop

TICK_MS = 20
REASON = Reason(Code.INPUT_DOUBLED, 'two of them')


class Bench:
    """A policy that moves every arm joint up by 0.4 rad/s; the arms go where they are sent."""

    def __init__(self, kit: SimpleNamespace) -> None:
        self.kit, self.clock = kit, kit.Clock()
        up = np.array([0.0 if name.endswith('grip') else 0.04 for name in kit.JOINTS])
        self.policy = kit.Policy(lambda o: o.state.positions + np.outer(np.arange(1, 5), up))
        self.loop = ControlLoop(kit.config(), self.policy, self.clock, steady=self.clock.steady)
        self.feed = kit.Feeder(self.loop)
        self.loop.set_instruction('lift the cup')

    def tick(self):
        self.clock.advance(TICK_MS * self.kit.MS)
        self.feed.all(self.clock.ns)
        self.loop.worker.run_once()
        verdict = self.loop.tick(self.clock.ns)
        if verdict.command is not None:
            positions = verdict.command.positions
            self.feed.positions = dict(zip(self.kit.JOINTS, positions, strict=True))
        return verdict

    def run(self, ms: int) -> list:
        return [self.tick() for _ in range(ms // TICK_MS)]


@pytest.fixture
def bench(kit: SimpleNamespace) -> Bench:
    bench = Bench(kit)
    bench.run(600)
    return bench


def test_it_holds_where_the_arms_are_and_says_why(bench: Bench) -> None:
    last = bench.tick().command.positions
    bench.loop.block((REASON,))
    held = bench.run(400)
    assert all(v.action == 'hold' and REASON in v.reasons for v in held)
    assert all((v.command.positions == last).all() for v in held)
    assert bench.loop.status(bench.clock.ns).state == 'HOLD'


def test_mute_sends_nothing(bench: Bench) -> None:
    bench.loop.block((REASON,), mute=True)
    assert all(v.command is None and REASON in v.reasons for v in bench.run(400))


@pytest.mark.parametrize('mute', [False, True])
def test_afterwards_the_start_is_soft_and_from_where_the_arms_are(bench: Bench, mute) -> None:
    """Whatever was decided meanwhile, from whatever messages, is not executed."""
    bench.loop.block((REASON,), mute)
    bench.run(200)
    bench.feed.positions['left_1'] -= 0.1  # as somebody else moved it
    seen, keyframes = len(bench.policy.observations), bench.policy.keyframes
    bench.run(100)
    before = bench.feed.positions['left_1']
    released_ns = bench.clock.ns
    bench.loop.block()
    verdicts = bench.run(600)
    first = next(v for v in verdicts if v.action != 'hold')
    assert abs(first.command.positions[0] - before) <= 0.1 * 0.05 + 1e-9
    steps = np.abs(np.diff([v.command.positions[0] for v in verdicts if v.command is not None]))
    assert steps[0] < 0.7 * steps.max()
    assert bench.policy.keyframes == keyframes + 1
    used = [o for o in bench.policy.observations[seen:] if o.stamp_ns > released_ns]
    assert used and first.command.stamp_ns >= used[0].stamp_ns


def test_released_twice_is_released(bench: Bench) -> None:
    bench.loop.block()
    assert bench.tick().action != 'hold'
    bench.loop.block((REASON,))
    bench.loop.block()
    bench.loop.block()
    assert bench.run(400)[-1].action != 'hold'


def test_a_fault_outlasts_it(bench: Bench) -> None:
    bench.policy.script = lambda o: 1 / 0
    bench.run(2000)
    assert bench.loop.status(bench.clock.ns).state == 'FAULT'
    bench.loop.block((REASON,), mute=True)
    bench.run(100)
    bench.loop.block()
    bench.run(100)
    assert bench.loop.status(bench.clock.ns).state == 'FAULT'
