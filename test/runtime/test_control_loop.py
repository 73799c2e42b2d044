"""The parts together: what the arms do when something fails, on a clock that is told the time."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from helpers.control_bench import GOAL, TICK_MS, reach

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import ActionConfig, AuditConfig, ConfigError, GuardConfig
from safe_pruner_ros.runtime.control_loop import ControlLoop


def test_reaches_the_goal_smoothly(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    verdict = bench.run(8000)
    assert verdict.command.positions == pytest.approx(GOAL, abs=1e-3)
    steps = np.abs(np.diff(bench.commands, axis=0))
    # 0.02 rad in 0.1 s are 0.004 a tick; seams may add a little, never a jump.
    assert steps.max() < 0.012
    assert {v.action for v in bench.verdicts[100:]} == {'pass'}
    status = bench.loop.status(bench.clock.ns)
    assert status.state == 'RUN' and status.reasons == () and status.policy_step > 30
    assert status.policy_step_ms.count == status.policy_step + 1
    assert status.command_period_ms.p50 == pytest.approx(20.0)
    assert [source.name for source in status.sources] == ['head', 'wrist', 'left', 'right']


def test_nothing_is_sent_before_everything_is_there(kit, make_bench):
    bench = make_bench()
    bench.drop = {'joints'}
    assert {reason.code for reason in bench.loop.missing(bench.clock.ns)} == {
        Code.IMAGE_MISSING,
        Code.STATE_MISSING,
    }
    bench.run(400)
    assert bench.commands == [] and bench.policy.observations == []
    bench.drop = set()
    bench.run(100)
    assert bench.loop.missing(bench.clock.ns) == () and bench.commands


@pytest.mark.parametrize(('lost', 'code', 'limit_ms'), [('wrist', Code.IMAGE_STALE, 300), ('joints', Code.STATE_STALE, 100)])  # fmt: skip # noqa: E501
def test_lost_source_holds_in_time_and_resumes(kit, make_bench, lost, code, limit_ms):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1500)
    bench.drop = {lost}
    assert bench.run(limit_ms - TICK_MS).action != 'hold'
    held = bench.run(2 * TICK_MS)
    assert held.action == 'hold' and code in held.codes
    frozen_at = held.command.positions
    bench.run(1000)
    assert np.ptp(bench.commands[-40:], axis=0).max() == 0.0
    count = len(bench.policy.observations)
    bench.drop = set()
    bench.run(200)
    assert len(bench.policy.observations) > count  # the old chunk was dropped, not resumed
    assert bench.verdicts[-1].action != 'hold'
    assert np.abs(bench.commands[-1] - frozen_at).max() < 0.2
    assert np.abs(np.diff(bench.commands, axis=0)).max() < 0.051


def test_slow_policy_holds_at_the_end_of_the_chunk(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1000)
    bench.loop.worker.run_once = lambda: None  # a policy step that never comes back
    bench.run(700)
    assert bench.verdicts[-1].codes == (Code.NO_ACTION,)
    assert bench.verdicts[-1].command.positions.tolist() == bench.commands[-1].tolist()
    bench.loop.worker._busy_since_ns = bench.clock.steady_ns
    bench.run(2100)
    assert Code.INFERENCE_SLOW in bench.verdicts[-1].codes


def test_instruction_change_flushes_and_goes_on_without_a_jump(kit, make_bench):
    goals = {'lift the cup': GOAL, 'put it down': -GOAL}
    bench = make_bench(kit.Policy(lambda obs: reach(goals[obs.instruction])(obs)))
    bench.run(2000)
    assert bench.loop.set_instruction('put it down') is None
    assert bench.loop.actions.command(bench.clock.ns) is None
    held = bench.loop.tick(bench.clock.ns)
    assert held.codes == (Code.NO_ACTION,) and held.command is not None
    bench.run(2000)
    assert bench.policy.observations[-1].instruction == 'put it down'
    assert np.abs(np.diff(bench.commands, axis=0)).max() < 0.02


def test_empty_instruction_holds(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1000)
    assert bench.loop.set_instruction('').code is Code.INSTRUCTION_EMPTY
    held = bench.run(40)
    assert held.codes == (Code.INSTRUCTION_EMPTY,)
    assert bench.loop.missing(bench.clock.ns) == ()  # data is there, only the instruction is not


def test_failing_policy_ends_in_a_fault_that_only_reset_clears(kit, make_bench):
    broken = []

    def script(obs):
        if broken:
            raise RuntimeError('boom')
        return reach(GOAL)(obs)

    bench = make_bench(kit.Policy(script))
    bench.run(1000)
    broken.append(True)
    bench.run(1000)
    assert bench.verdicts[-1].is_fault and bench.verdicts[-1].command is None
    assert bench.loop.status(bench.clock.ns).state == 'FAULT'
    broken.clear()
    bench.run(500)
    assert bench.verdicts[-1].is_fault
    bench.loop.reset()
    assert bench.loop.status(bench.clock.ns).sources[0].rate_hz != 0
    bench.run(500)
    assert bench.verdicts[-1].action != 'hold' and bench.policy.resets == 1


def test_nan_from_the_policy_never_reaches_the_arms(kit, make_bench):
    poison = []

    def script(obs):
        rows = reach(GOAL)(obs)
        if poison:
            rows[1, 2] = np.nan
        return rows

    bench = make_bench(kit.Policy(script))
    bench.run(1000)
    poison.append(True)
    bench.run(300)
    assert Code.ACTION_NONFINITE in bench.verdicts[-1].codes
    bench.run(2000)
    assert bench.verdicts[-1].is_fault
    assert np.isfinite(bench.commands).all()


def test_clock_back_stopped_and_missing(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    assert bench.loop.tick(0).codes == (Code.CLOCK_MISSING,)
    bench.run(1000)
    generation = bench.loop.buffer.generation
    bench.clock.ns = kit.T0 + 10 * kit.MS  # the bag begins again
    verdict = bench.loop.tick(bench.clock.ns)
    assert verdict.codes == (Code.CLOCK_JUMPED,) and verdict.command is None
    assert bench.loop.buffer.generation > generation
    bench.run(400)
    assert bench.verdicts[-1].action != 'hold'
    for _ in range(40):  # the simulator is paused, the timer is not
        bench.clock.steady_ns += TICK_MS * kit.MS
        verdict = bench.loop.tick(bench.clock.ns)
    assert verdict.codes == (Code.CLOCK_STOPPED,) and verdict.action == 'hold'


def test_pause_resume_keyframe(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1000)
    bench.loop.pause()
    held = bench.run(500)
    assert held.codes == (Code.PAUSED,) and held.command is not None
    bench.loop.resume()
    bench.loop.force_keyframe()
    bench.run(200)
    assert bench.verdicts[-1].action != 'hold' and bench.policy.keyframes == 1


def test_dirty_camera_is_named(kit, make_bench):
    bench = make_bench()
    bench.run(400)
    bench.drop = {'head'}
    bench.loop.buffer.refuse('head', Reason(Code.IMAGE_INVALID, 'truncated JPEG'))
    held = bench.run(400)
    assert 'truncated JPEG' in held.reasons[0].text


def test_policy_that_does_not_fit_is_refused(kit):
    policy = kit.Policy()
    policy.spec = replace(policy.spec, joint_names=('x',))
    with pytest.raises(ConfigError, match='differ in joints'):
        ControlLoop(kit.config(), policy, kit.Clock())


@pytest.mark.parametrize(
    ('horizon', 'period_s', 'own_horizon', 'own_period_s', 'fits'),
    [(8, 0.2, 0, 0.0, False), (6, 0.2, 0, 0.0, True), (14, 0.1, 0, 0.0, True),
     (8, 0.2, 5, 0.0, True), (2, 0.1, 16, 0.0, False), (4, 0.1, 0, 0.4, False),
     (16, 0.1, 99, 0.05, True)],
)  # fmt: skip
def test_chunks_executed_for_longer_than_they_may_be_sent_are_refused(
    kit, horizon, period_s, own_horizon, own_period_s, fits
):
    policy = kit.Policy()
    policy.spec = replace(policy.spec, chunk_size=16, execution_horizon=horizon, period_s=period_s)
    config = kit.config()
    own = replace(config.policy, execution_horizon=own_horizon, period_s=own_period_s)
    config = replace(config, policy=own)
    if fits:
        ControlLoop(config, policy, kit.Clock())
        return
    with pytest.raises(ConfigError) as refused:
        ControlLoop(config, policy, kit.Clock())
    text = str(refused.value)
    assert (
        'runtime.actions.max_action_age_s is 1.5' in text
        and 'lower policy.execution_horizon' in text
    )


def test_actions_that_are_too_old_are_told_as_such(kit, make_bench):
    bench = make_bench(kit.Policy(lambda obs: np.tile(GOAL, (40, 1)), chunk=40))
    bench.run(1000)
    bench.loop.worker.run_once = lambda: None
    held = bench.run(1700)
    assert held.codes == (Code.ACTION_OLD,) and held.command is not None
    assert bench.loop.status(bench.clock.ns).starved_ticks > 0


def test_with_its_own_thread(kit):
    """Real time, real threads: commands flow, stop returns, nothing is left running."""
    import time

    policy, reports = kit.Policy(reach(GOAL)), []
    loop = ControlLoop(kit.config(), policy, lambda: time.time_ns(), reports.append)
    feed = kit.Feeder(loop)
    loop.set_instruction('lift the cup')
    loop.start()
    sent = []
    for _ in range(40):
        now = time.time_ns()
        feed.all(now)
        verdict = loop.tick(now)
        if verdict.command is not None:
            sent.append(verdict.command.positions)
        time.sleep(0.01)
    assert loop.stop()
    assert len(sent) > 10 and reports and all(r.succeeded for r in reports)
    assert loop.tick(time.time_ns()).command is None


def test_actions_from_before_a_hold_are_not_resumed(kit, make_bench):
    """A chunk that would last for seconds must not go on where a short gap interrupted it."""
    policy = kit.Policy(lambda obs: np.tile(GOAL, (40, 1)), chunk=40)
    bench = make_bench(policy)
    bench.run(1000)
    bench.drop = {'joints'}
    assert Code.STATE_STALE in bench.run(200).codes
    bench.drop, bench.loop.worker.run_once = set(), lambda: None
    resumed = bench.run(200)
    assert resumed.codes == (Code.NO_ACTION,)


def test_a_policy_may_list_the_joints_in_another_order(kit, make_bench):
    """It sees each position under its own name, and what it answers reaches the same joint."""
    policy = kit.Policy()
    policy.spec = replace(policy.spec, joint_names=kit.JOINTS[::-1])
    bench = make_bench(policy)
    pose = {name: 0.05 * place for place, name in enumerate(kit.JOINTS, 1)}
    bench.feed.positions = dict(pose)
    bench.run(1000)
    state = policy.observations[0].state
    assert dict(zip(state.joint_names, state.positions, strict=True)) == pytest.approx(pose)
    np.testing.assert_allclose(bench.commands[-1], list(pose.values()), atol=1e-9)


@pytest.mark.parametrize('period_s', [0.1, 0.2, 1.0])
@pytest.mark.parametrize('age_ms', [0, 60])
def test_a_policy_that_starts_elsewhere_is_refused_however_slow_its_steps(
    kit, make_bench, period_s, age_ms
):
    """A fresh chunk's first target lies on the way from the measured pose, so always near it."""
    far, near = (0.1 - by * (np.arange(6) == 1) for by in (0.6, 0.4))
    slow = ActionConfig(max_action_age_s=3.0)
    config = kit.config(guard=GuardConfig(max_start_error_rad=0.5), actions=slow)
    policy = replace(config.policy, period_s=period_s, execution_horizon=1)
    bench = make_bench(
        kit.Policy(lambda obs: np.tile(far, (4, 1))), replace(config, policy=policy)
    )
    now = bench.clock.ns
    bench.feed.joints(now)
    bench.feed.images(now)
    bench.loop.worker.run_once()
    bench.clock.advance(age_ms * kit.MS)
    bench.run(1000)
    assert bench.commands == []
    assert any(Code.START_ERROR in verdict.codes for verdict in bench.verdicts)
    bench.policy.script = lambda obs: np.tile(near, (4, 1))
    bench.run(1000)
    assert bench.commands


def test_a_step_that_begins_while_reset_clears_does_not_use_the_reset_up(kit, make_bench):
    bench = make_bench(kit.Policy(reach(GOAL)))
    bench.run(1000)
    clear, remembered = bench.loop.buffer.clear, []
    bench.policy.reset = remembered.clear
    predict = bench.policy.predict

    def remember(observation):
        remembered.append(observation.stamp_ns)
        return predict(observation)

    bench.policy.predict = remember

    def preempted():
        bench.loop.worker.run_once()  # the worker thread comes in between
        clear()

    before_ns = bench.clock.ns
    bench.loop.buffer.clear = preempted
    bench.loop.reset()
    bench.loop.buffer.clear = clear
    bench.run(1000)
    assert remembered and min(remembered) > before_ns


def test_the_users_ratio_is_in_force_where_it_is_reported(kit, make_bench):
    """Set in the moment in which an audit asks for another one."""
    audit = AuditConfig(every_steps=1, first_ms=1.0, max_deviation_rad=0.01)
    policy = kit.Policy(reach(GOAL))
    policy.unpruned = lambda observation: reach(GOAL)(observation) + 0.1
    bench = make_bench(policy, kit.config(audit=audit))
    loop, in_force, users = bench.loop, [], []
    policy.update_pruner = lambda **changes: in_force.append(changes['retention_ratio'])
    note_audit = loop.retention.note_audit

    def set_by_the_user():  # as Session.apply_live
        with loop.retention.lock:
            policy.update_pruner(retention_ratio=0.9)
            loop.retention.set_base(0.9)

    def preempted(deviation_rad):
        ratio = note_audit(deviation_rad)
        if ratio is not None and not users:
            users.append(threading.Thread(target=set_by_the_user))
            users[0].start()
            users[0].join(0.2)
        return ratio

    loop.retention.note_audit = preempted
    for _ in range(500):
        if not users:
            bench.run(TICK_MS)
    users[0].join(5.0)
    assert in_force[-1] == loop.retention.state.ratio
