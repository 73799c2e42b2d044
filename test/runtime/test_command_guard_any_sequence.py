"""Rows 26, 30 to 35, 41 over any sequence of events: no NaN, no limit, no step is violated."""

from __future__ import annotations

import numpy as np
from helpers.guard_bench import HOME, TICK, Bench
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.command_guard import GRIPPER_STILL
from safe_pruner_ros.types import ArmState

anything = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-1.2, 1.2),
    st.sampled_from([5e-324, 1e300, -1e300, 0.5, -1.0, 1.0]),
)
targets = st.lists(anything, min_size=6, max_size=6)
near = st.lists(st.floats(-0.2, 0.6), min_size=6, max_size=6)
event = st.tuples(
    st.sampled_from(['move', 'move', 'move', 'near', 'near', 'none', 'reason', 'fault', 'reset',
                     'no state', 'old state', 'old command', 'jump']),
    targets,
    near,
    st.integers(-300, 300),
)  # fmt: skip


@settings(max_examples=80)
@given(events=st.lists(event, min_size=1, max_size=40), soft=st.sampled_from([0.0, 0.4]))
def test_no_sequence_of_events_yields_a_forbidden_command(kit, events, soft):
    """The release rule of the fault list, as a property over whole sequences."""
    bench = Bench(kit, soft_start_s=soft, hold_s=0.2, max_clamps_in_row=10, max_sign_flips=3)
    layout = bench.robot.layout
    max_step = np.array([joint.max_step for joint in bench.robot.joints])
    last, measured = None, HOME
    grip = None  # last sent, and measured then
    for what, wild, calm, ms in events:
        if what == 'reset':
            bench.guard.reset()
            last = grip = None
            continue
        if what == 'jump':
            bench.now += ms * 10_000_000 + 1  # never the very moment of an earlier start
        if what == 'near' and last is None:
            measured = bench.measured = np.array(calm)
        reasons = {
            'reason': (Reason(Code.IMAGE_STALE, ''),),
            'fault': (Reason(Code.POLICY_FAILING, ''),),
        }.get(what, ())
        given_targets = None if what == 'none' else calm if what == 'near' else wild
        state = True
        if what == 'no state':
            state = None
        elif what == 'old state':
            state = ArmState(measured, bench.kit.JOINTS, bench.now - abs(ms) * 1_000_000)
        age = ms * 1_000_000 if what == 'old command' else 0
        tick_ns = TICK if what != 'near' else abs(ms) * 100_000
        verdict = bench.tick(given_targets, reasons, state, age, ns=tick_ns)
        if verdict.command is None:
            assert verdict.action == 'hold'
            if what != 'move' or verdict.is_fault:
                last = None if verdict.is_fault else last
            continue
        sent = verdict.command.positions
        assert np.isfinite(sent).all()
        assert (layout.lower <= sent).all() and (sent <= layout.upper).all()
        start = last
        if verdict.action != 'hold' and bench.guard._started_ns == bench.now:
            start = measured
            if grip is not None:  # a gripper that did not move holds what it held
                still = layout.is_gripper & (np.abs(measured - grip[1]) <= GRIPPER_STILL)
                start = np.where(still, grip[0], measured)
        if start is not None:
            assert (np.abs(sent - start) <= max_step + 1e-9).all()
            if last is not None and start is last:
                velocity_step = layout.max_velocity * TICK * 1e-9
                assert (np.abs(sent - start) <= velocity_step + 1e-9).all()
        if verdict.action == 'hold':
            assert last is not None and sent.tolist() == last.tolist()
        else:
            assert not reasons and state is not None
        if verdict.action == 'pass':
            assert np.allclose(sent, given_targets, atol=1e-9)
        if verdict.action != 'hold':
            grip = sent, measured
        last = sent
