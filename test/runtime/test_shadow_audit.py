"""Shadow audit: the difference is right, and no deadline pays for it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from safe_pruner_ros.runtime.action_buffer import ActionBuffer
from safe_pruner_ros.runtime.config import (
    ActionConfig,
    AuditConfig,
    BufferConfig,
    PolicyConfig,
    RetentionConfig,
    WorkerConfig,
)
from safe_pruner_ros.runtime.inference_worker import InferenceWorker
from safe_pruner_ros.runtime.observation_buffer import ObservationBuffer
from safe_pruner_ros.runtime.retention_control import RetentionController
from safe_pruner_ros.runtime.shadow_audit import ShadowAudit, compare
from safe_pruner_ros.types import ActionChunk, Joint, JointLayout

LAYOUT = JointLayout(
    (
        Joint('a', 'arm', -3.0, 3.0, 1.0),
        Joint('g', 'gripper', 0.0, 1.0, 1.0),
        Joint('b', 'arm', -3.0, 3.0, 1.0),
    )
)


def chunk(rows, names=('a', 'g', 'b')):
    return ActionChunk(np.asarray(rows, float), names, 1, 1)


def test_compares_by_joint_name_and_only_what_is_executed():
    pruned = chunk([[0.0, 0.4, 0.0], [0.1, 0.6, 0.0], [9.0, 1.0, 9.0]])
    unpruned = chunk([[0.0, 0.4, 0.0], [-0.3, 0.2, 0.1], [0.0, 0.0, 0.0]], ('b', 'g', 'a'))
    found = compare(pruned, unpruned, LAYOUT, 2)
    assert found.arms_rad == pytest.approx(0.3)
    assert found.grippers == pytest.approx(0.4) and found.gripper_flips == 1
    assert math.isnan(found.end_effectors_mm)


def test_end_effectors_in_millimetres():
    def kinematics(positions):  # two points, metres
        return np.array([[positions[0], 0.0, 0.0], [0.0, 2 * positions[2], 0.0]])

    found = compare(chunk([[0.1, 0, 0.0]]), chunk([[0.0, 0, 0.2]]), LAYOUT, 1, kinematics)
    assert found.end_effectors_mm == pytest.approx(400.0)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_what_is_not_finite_is_no_agreement(bad):
    found = compare(chunk([[0.0, 0.0, 0.0]]), chunk([[0.0, 0.0, bad]]), LAYOUT, 1)
    assert math.isnan(found.arms_rad) and math.isnan(found.end_effectors_mm)


@pytest.fixture
def make(kit):
    def make(every=2, limit=0.0, **audit):
        bench = SimpleNamespace(clock=kit.Clock(), policy=kit.Policy(), audits=[])
        config = AuditConfig(every_steps=every, max_deviation_rad=limit, **audit)
        bench.buffer = ObservationBuffer(kit.robot(), BufferConfig())
        bench.actions = ActionBuffer(kit.robot().layout, ActionConfig(), 20 * kit.MS)
        bench.audit = ShadowAudit(config, kit.robot().layout, 2)
        bench.retention = RetentionController(RetentionConfig(), config, 0.3)
        bench.worker = InferenceWorker(
            bench.policy, bench.buffer, bench.actions, WorkerConfig(), PolicyConfig(),
            bench.clock, lambda report: None, dict, bench.clock.steady,
            bench.audit, bench.retention, bench.audits.append,
        )  # fmt: skip
        bench.buffer.set_instruction('lift the cup')
        feed = kit.Feeder(bench.buffer)

        def step():
            for _ in range(20):
                bench.clock.advance(10 * kit.MS)
                feed.all(bench.clock.ns)
            return bench.worker.run_once()

        bench.step = step
        return bench

    return make


def test_every_second_step_is_audited_on_its_own_observation(make):
    bench = make(every=2, first_ms=100.0)
    bench.policy.unpruned = lambda obs: np.tile(obs.state.positions, (4, 1)) + 0.01
    reports = [bench.step() for _ in range(6)]
    assert [audit.step for audit in bench.audits] == [1, 3, 5]
    assert bench.policy.audited == [reports[k].observation for k in (1, 3, 5)]
    audit = bench.audits[0]
    assert audit.deviation.arms_rad == pytest.approx(0.01) and not audit.overran
    assert (audit.n_retained, audit.n_visual) == (4, 8)
    assert bench.audit.counts.done == 3 and bench.audit.last is bench.audits[-1]


def test_an_audit_that_does_not_fit_is_put_off(make):
    """200 ms of idle time; 1.25 x 170 ms would not fit, 1.25 x 150 ms does."""
    bench = make(every=1, first_ms=170.0)
    for _ in range(3):
        bench.step()
    assert bench.audits == [] and bench.audit.counts.postponed == 3
    bench = make(every=1, first_ms=150.0)
    bench.step()
    assert len(bench.audits) == 1


def test_a_full_step_says_how_long_an_audit_takes_and_is_not_audited(make):
    bench = make(every=1, first_ms=1000.0)
    bench.policy.is_full = True
    bench.step()  # 12 ms, says the policy
    assert bench.audits == []
    bench.policy.is_full = False
    bench.step()
    assert len(bench.audits) == 1


def test_off_means_off(make):
    bench = make(every=0)
    for _ in range(5):
        bench.step()
    assert bench.policy.audited == [] and bench.audit.counts.postponed == 0


def test_a_policy_that_fails_unpruned_stops_the_audits_not_the_arms(make):
    bench = make(every=1, first_ms=10.0)

    def fails(observation):
        raise RuntimeError('out of memory')

    bench.policy.unpruned = fails
    reports = [bench.step() for _ in range(3)]
    assert all(report.succeeded for report in reports) and len(bench.policy.audited) == 1
    assert 'out of memory' in bench.audit.failure
    bench.worker.reset()
    bench.policy.unpruned = bench.policy.script
    bench.step()
    assert bench.audit.failure == '' and len(bench.audits) == 1


def test_above_the_limit_the_ratio_is_raised(make):
    bench = make(every=1, limit=0.005, first_ms=10.0)
    bench.policy.unpruned = lambda obs: np.tile(obs.state.positions, (4, 1)) + 0.01
    bench.step()
    assert bench.policy.ratios == [0.4] and bench.retention.state.ratio == 0.4
    assert bench.audit.counts.above_limit == 1
