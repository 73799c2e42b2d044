"""Deadline-driven retention: holds the budget without flutter; the audit has the last word."""

from __future__ import annotations

import math

import pytest

from safe_pruner_ros.runtime.config import AuditConfig, RetentionConfig
from safe_pruner_ros.runtime.retention_control import BUCKETS, RetentionController


class Robot:
    """A policy that takes ``fixed`` ms and ``per_token`` ms for all tokens, under control."""

    def __init__(self, budget=0.0, ratio=0.3, audit_limit=0.0, **settings):
        self.fixed, self.variable = 10.0, 100.0
        self.control = RetentionController(
            RetentionConfig(latency_budget_ms=budget, **settings),
            AuditConfig(max_deviation_rad=audit_limit, clean_audits=2),
            ratio,
        )
        self.changes = []

    @property
    def ratio(self):
        return self.control.state.ratio

    def latency(self, ratio):
        return self.fixed + self.variable * ratio

    def run(self, steps, key_every=5):
        for k in range(steps):
            is_key = k % key_every == 0
            changed = self.control.note_step(self.latency(1.0 if is_key else self.ratio), is_key)
            if changed is not None:
                assert changed == self.ratio
                self.changes.append(changed)

    def audit(self, deviation):
        changed = self.control.note_audit(deviation)
        if changed is not None:
            self.changes.append(changed)


def test_without_a_budget_nothing_changes():
    robot = Robot(ratio=0.37)
    robot.run(500)
    robot.audit(9.0)
    assert robot.changes == [] and robot.ratio == 0.37
    assert robot.control.state.reason == 'as configured'


@pytest.mark.parametrize('budget', [25.0, 45.0, 60.0, 90.0])
def test_settles_on_the_most_tokens_that_fit(budget):
    """... with headroom on the way up: the bucket above must be expected within 85 %."""
    for start in (0.05, 0.3, 1.0):
        robot = Robot(budget, ratio=start, min_ratio=0.05)
        robot.run(1000)
        settled = list(robot.changes)
        robot.run(1000)
        assert robot.changes == settled, 'flutters'
        assert robot.latency(robot.ratio) <= budget
        above = [b for b in BUCKETS if b > robot.ratio]
        assert not above or robot.latency(above[0]) > 0.85 * budget


def test_goes_down_at_once_and_straight_to_what_fits():
    robot = Robot(budget=40.0, ratio=0.3)
    robot.run(100)
    robot.variable = 250.0  # the GPU throttles
    robot.run(60)
    assert robot.latency(robot.ratio) <= 40.0 and robot.ratio == 0.1
    assert 'the budget is 40 ms' in robot.control.state.reason


def test_the_budget_never_lowers_below_the_minimum_and_says_so():
    robot = Robot(budget=12.0, min_ratio=0.2)
    robot.run(200)
    assert robot.ratio == 0.2
    assert 'runtime.retention.min_ratio' in robot.control.state.warning


def test_slow_key_timesteps_do_not_cost_tokens():
    robot = Robot(budget=45.0, ratio=0.3)
    robot.run(300, key_every=2)  # p95 of all steps is that of the key timesteps: 110 ms
    assert robot.ratio == 0.3
    assert 'key timesteps take 110 ms' in robot.control.state.warning


def test_without_keyframes_a_higher_bucket_is_not_overrated():
    robot = Robot(budget=60.0, ratio=0.1)
    for _ in range(2000):
        robot.control.note_step(robot.latency(robot.ratio), False)
    assert robot.ratio >= 0.3 and robot.latency(robot.ratio) <= 60.0


def test_an_audit_above_the_limit_raises_and_clean_ones_lower_again():
    robot = Robot(ratio=0.2, audit_limit=0.05)
    robot.audit(0.04)
    assert robot.ratio == 0.2
    robot.audit(0.06)
    assert robot.ratio == 0.3 and '0.060 rad' in robot.control.state.reason
    robot.audit(math.nan)
    assert robot.ratio == 0.4
    for _ in range(4):
        robot.audit(0.01)
    assert robot.ratio == 0.2, 'back to what the user asked for, not below'
    for _ in range(8):
        robot.audit(0.01)
    assert robot.ratio == 0.2 and robot.changes == [0.3, 0.4, 0.3, 0.2]


def test_the_audit_has_the_last_word_over_the_budget():
    """Slow arms wait; wrong arms hurt."""
    robot = Robot(budget=32.0, ratio=0.2, audit_limit=0.05)
    robot.run(100)
    robot.audit(0.3)
    robot.run(300)
    assert robot.ratio == 0.3
    assert 'the audit asks for this many tokens' in robot.control.state.warning


def test_a_new_ratio_of_the_user_starts_anew():
    robot = Robot(ratio=0.2, audit_limit=0.05)
    robot.audit(1.0)
    robot.control.set_base(0.5)
    assert robot.ratio == 0.5 and robot.control.state.reason == 'as configured'


def test_a_latency_that_is_not_a_number_decides_nothing():
    robot = Robot(budget=1.0)
    for _ in range(100):
        assert robot.control.note_step(math.nan, False) is None
