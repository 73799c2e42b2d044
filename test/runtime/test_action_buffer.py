"""Rows 30, 33, 41: chunks become commands without late actions and without jumps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_pruner_ros.runtime.action_buffer import ActionBuffer
from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.config import ActionConfig
from safe_pruner_ros.types import ActionChunk, Joint, JointLayout

NAMES = ('a', 'b')
LAYOUT = JointLayout(tuple(Joint(name, 'arm', -3.0, 3.0, 1.0) for name in NAMES))
MS = 1_000_000
TICK, PERIOD = 20 * MS, 100 * MS
T0 = 10**12


def chunk(rows, start_ns=T0, names=NAMES, period_ns=PERIOD):
    rows = np.asarray(rows, float)
    return ActionChunk(rows, names, start_ns, period_ns)


def make(**settings):
    return ActionBuffer(LAYOUT, ActionConfig(**settings), TICK)


def test_waypoints_are_met_at_their_time_and_interpolated():
    buffer = make()
    assert buffer.push(chunk([[1.0, 0.0], [2.0, -1.0]]), T0, np.zeros(2)) is None
    for ms, expected in ((0, [0, 0]), (50, [0.5, 0]), (100, [1, 0]), (150, [1.5, -0.5]), (200, [2, -1])):  # fmt: skip # noqa: E501
        command = buffer.command(T0 + ms * MS)
        assert command.positions.tolist() == pytest.approx(expected)
        assert command.stamp_ns == T0 + ms * MS and command.joint_names == NAMES


def test_late_actions_are_discarded():
    buffer = make()
    buffer.push(chunk([[1, 1], [2, 2], [3, 3]]), T0 + 250 * MS)
    assert buffer.command(T0 + 250 * MS).positions.tolist() == pytest.approx([2.5, 2.5])
    late = make().push(chunk([[1, 1]]), T0 + 101 * MS)
    assert late.code is Code.ACTION_LATE and 'faster device' in late.text


def test_exhausted_chunk_sends_its_last_point_once_then_nothing():
    buffer = make()
    buffer.push(chunk([[1, 1], [2, 2]]), T0)
    end = T0 + 2 * PERIOD
    assert buffer.command(end + TICK).positions.tolist() == [2.0, 2.0]
    assert buffer.command(end + TICK + 1) is None
    assert buffer.command(end + 11 * TICK) is None
    assert buffer.gap.code is Code.NO_ACTION and 'ran out 0.20 s ago' in buffer.gap.text
    buffer.flush()
    assert buffer.command(end) is None and 'not there yet' in buffer.gap.text


def test_old_observation_is_not_acted_on():
    buffer = make(max_action_age_s=0.15)
    buffer.push(chunk(np.ones((8, 2))), T0)
    assert buffer.command(T0 + 149 * MS) is not None and buffer.gap is None
    assert buffer.command(T0 + 151 * MS) is None and buffer.starved_ticks == 1
    assert buffer.gap.code is Code.ACTION_OLD
    assert '0.15 s old (limit runtime.actions.max_action_age_s 0.15)' in buffer.gap.text


def test_joints_by_name():
    buffer = make()
    buffer.push(chunk([[1, 2]], names=('b', 'a')), T0)
    assert buffer.command(T0 + PERIOD).positions.tolist() == [2.0, 1.0]
    assert buffer.command(T0).joint_names == NAMES
    for names in (('a', 'c'), ('a', 'a')):
        assert make().push(chunk([[1, 2]], names=names), T0).code is Code.ACTION_JOINTS
    for wide in (7, 14, 25):
        names = tuple(f'j{index}' for index in range(wide))
        reason = make().push(chunk(np.zeros((3, wide)), names=names), T0)
        assert reason.code is Code.ACTION_JOINTS


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_one_bad_value_drops_the_whole_chunk(bad):
    buffer = make()
    buffer.push(chunk([[1, 1], [1, 1]]), T0)
    reason = buffer.push(chunk([[2, 2], [2, bad]], T0 + MS), T0 + MS)
    assert reason.code is Code.ACTION_NONFINITE and "['b']" in reason.text
    assert buffer.command(T0 + PERIOD).positions.tolist() == [1.0, 1.0]


def test_empty_future_and_older_chunks():
    buffer = make()
    assert buffer.push(chunk(np.zeros((0, 2))), T0).code is Code.ACTION_SHAPE
    future = chunk([[1, 1]], T0 + 10**9)
    assert buffer.push(future, T0).code is Code.ACTION_OUT_OF_ORDER
    buffer.push(chunk(np.ones((4, 2)), T0), T0)
    older = buffer.push(chunk(np.zeros((9, 2)), T0 - MS), T0 + MS)
    assert older.code is Code.ACTION_OUT_OF_ORDER


def test_heading_is_the_action_that_comes_next():
    buffer = make()
    assert buffer.heading(T0) is None
    buffer.push(chunk([[1, 10], [2, 20], [3, 30]]), T0, np.zeros(2))
    places = [(-MS, 1), (0, 1), (PERIOD - 1, 1), (PERIOD, 2), (3 * PERIOD - 1, 3), (9 * PERIOD, 3)]
    for after, first in places:
        assert buffer.heading(T0 + after).tolist() == [first, 10 * first]
    buffer.flush()
    assert buffer.heading(T0) is None


def test_flush_and_consumed():
    buffer = make()
    assert buffer.consumed(T0, 2)
    buffer.push(chunk(np.ones((4, 2))), T0)
    assert not buffer.consumed(T0 + 2 * PERIOD - 1, 2)
    assert buffer.consumed(T0 + 2 * PERIOD, 2)
    buffer.flush()
    assert buffer.command(T0 + MS) is None and buffer.consumed(T0 + MS, 2)


@pytest.mark.parametrize('fade_s', [0.05, 0.15])
def test_seam_starts_where_the_arms_were_sent_and_ends_on_the_new_chunk(fade_s):
    buffer = make(fade_s=fade_s)
    buffer.push(chunk(np.ones((8, 2))), T0)
    seam = T0 + 100 * MS
    buffer.executed(np.array([0.6, 0.9]), seam)  # the guard let less through
    buffer.push(chunk(np.full((8, 2), 2.0), T0 + 50 * MS), seam + 5 * MS, np.full(2, 2.0))
    assert buffer.command(seam).positions.tolist() == pytest.approx([0.6, 0.9])
    after = seam + round(fade_s * 1e9)
    assert buffer.command(after).positions.tolist() == pytest.approx([2.0, 2.0])


rows = st.lists(st.floats(-2.0, 2.0), min_size=4, max_size=8)


@given(
    chunks=st.lists(rows, min_size=2, max_size=5),
    latencies=st.lists(st.integers(5, 280), min_size=5, max_size=5),
    gaps=st.lists(st.integers(0, 30), min_size=5, max_size=5),
)
def test_no_jump_at_any_seam(chunks, latencies, gaps):
    """Between two ticks a command moves at most as the new chunk does, plus the faded difference.

    Chunks come after random latencies and at random moments between the ticks, some in the middle
    of the fade of the last seam.
    """
    fade_s = 0.15
    buffer, now, last = make(fade_s=fade_s, max_action_age_s=9.0), T0, None
    for values, latency, gap in zip(chunks, latencies, gaps, strict=False):
        start = now - latency * MS
        column = np.array(values)
        new = chunk(np.stack([column, -column], axis=1), start)
        before = buffer.command(now)
        reason = buffer.push(new, now + gap % 20 * MS, np.zeros(2))
        if before is not None and last is not None and reason is None:
            assert np.allclose(buffer.command(now).positions, last, atol=1e-9)
        steepest = np.abs(np.diff(np.concatenate([[0.0], column]))).max() / (PERIOD / TICK)
        for _ in range(1 + gap // 4):
            now += TICK
            command = buffer.command(now)
            if command is None:
                buffer.executed(last, now)
                continue
            if last is not None and reason is None:
                faded = 4.0 * 1.5 * (TICK * 1e-9) / fade_s  # difference <= 4, slope <= 1.5 / fade
                step = np.abs(command.positions - last).max()
                assert step <= steepest + faded + 1e-9
            last = command.positions
            buffer.executed(last, now)


@given(
    values=st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=6),
    times=st.lists(st.integers(-(10**9), 10**9), max_size=20),
)
def test_commands_stay_between_the_waypoints(values, times):
    buffer = make()
    buffer.push(chunk([[value, 0.0] for value in values]), T0, np.array([values[0], 0.0]))
    for time in times:
        command = buffer.command(T0 + time)
        if command is not None:
            assert np.isfinite(command.positions).all()
            low, high = min(values), max(values)  # up to rounding
            slack = 1e-15 * max(abs(low), abs(high))
            assert low - slack <= command.positions[0] <= high + slack


def test_a_seam_is_measured_at_the_first_command():
    buffer = make()
    buffer.push(chunk([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), T0, np.zeros(2))
    assert buffer.last_seam is None
    buffer.note_commanded(T0 + TICK)
    assert math.isnan(buffer.last_seam.position_jump_rad)  # nothing was sent before
    assert buffer.last_seam.action_age_s == pytest.approx(0.02)

    buffer.executed(buffer.command(T0 + 100 * MS).positions, T0 + 100 * MS)  # [1, 0], 10 rad/s
    late = T0 + 50 * MS
    buffer.push(chunk([[0.5, 0.7], [0.5, 0.7]], late), T0 + 110 * MS, np.array([0.5, 0.7]))
    buffer.note_commanded(T0 + 120 * MS)
    seam = buffer.last_seam
    assert seam.position_jump_rad == pytest.approx(0.7)
    assert seam.velocity_jump_rad_s == pytest.approx(10.0)
    assert seam.observation_stamp_ns == late and seam.action_age_s == pytest.approx(0.07)
    buffer.note_commanded(T0 + 140 * MS)
    assert buffer.last_seam is seam


def test_ticks_without_actions_are_counted():
    buffer = make()
    assert buffer.command(T0) is None and buffer.starved_ticks == 0  # none was ever there
    buffer.push(chunk([[1, 1]]), T0)
    for k in range(10):
        buffer.command(T0 + k * TICK)
    assert buffer.starved_ticks == 3  # 100 ms of actions and one tick of grace
    buffer.flush()
    assert buffer.command(T0 + 200 * MS) is None and buffer.starved_ticks == 3
    buffer.reset()
    assert buffer.starved_ticks == 0 and buffer.last_seam is None


def test_time_left_until_a_new_chunk_is_due():
    buffer = make()
    assert buffer.slack_ns(T0, 2) == 0 and buffer.consumed(T0, 2)
    buffer.push(chunk([[1, 1], [2, 2], [3, 3]]), T0)
    assert buffer.slack_ns(T0 + 50 * MS, 2) == 150 * MS and not buffer.consumed(T0 + 50 * MS, 2)
    assert buffer.slack_ns(T0 + 250 * MS, 2) == 0 and buffer.consumed(T0 + 250 * MS, 2)
