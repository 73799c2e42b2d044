"""Row 27 and what follows from it: which measured pose is believed, and from when on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.config import BufferConfig
from safe_pruner_ros.runtime.state_history import StateHistory

HERE, ZERO, ELSEWHERE = -0.95, 0.0, 0.45  # of joint left_1; further apart than max_state_jump_rad


@pytest.fixture
def make(kit):
    def make(**settings):
        source = kit.robot().state_sources[0]
        arms = frozenset({'left_1', 'left_2'})
        history = StateHistory(source, BufferConfig(**settings), arms)
        bench = SimpleNamespace(history=history, now=kit.T0)

        def send(value, ms=20, late_ms=0):
            """One message ``ms`` after the last one; why it was refused, or None."""
            bench.now += ms * kit.MS
            stamp = bench.now - late_ms * kit.MS
            return history.store(kit.LEFT, [value, 0.1, 10.0], stamp, bench.now)

        def pose():
            return history.newest.values['left_1'] if history.newest else None

        def code():
            problem = history.problem(bench.now)
            return problem.code if problem else None

        bench.send, bench.pose, bench.code = send, pose, code
        return bench

    return make


@pytest.mark.parametrize(
    ('ms', 'max_age_s', 'samples'), [(100, 0.25, 4), (33, 0.1, 5), (20, 0.1, 7), (4, 0.1, 27)]
)
def test_a_start_takes_samples_that_agree_for_as_long_as_a_silence_may_last(
    make, ms, max_age_s, samples
):
    bench = make(max_state_age_s=max_age_s)
    assert bench.code() is Code.STATE_MISSING
    for number in range(1, samples + 1):
        assert bench.pose() is None
        assert bench.send(HERE, ms) is None
        assert bench.code() is (Code.STATE_RECOVERING if number < samples else None)
    assert bench.pose() == HERE
    # What agreed was measured: images of that time find their joints.
    assert bench.history.nearest(bench.now - 60_000_000).stamp_ns < bench.now


def test_first_messages_that_are_zeros_are_no_pose(make):
    bench = make()
    bench.send(ZERO)
    assert bench.send(HERE).code is Code.STATE_JUMP
    for _ in range(6):
        assert bench.pose() is None
        bench.send(HERE)
    assert bench.pose() == HERE and bench.code() is None


def test_a_driver_that_begins_anew_with_zeros_moves_nothing(make):
    bench = make()
    for _ in range(10):
        bench.send(HERE)
    bench.now += 180_000_000
    for _ in range(8):  # long enough for a start, but they contradict what was known
        bench.send(ZERO)
        assert bench.pose() is None and bench.code() is Code.STATE_RECOVERING
    assert 'other than before' in str(bench.history.problem(bench.now))
    taken = 0
    while bench.pose() is None:
        bench.send(HERE)
        taken += 1
    assert bench.pose() == HERE and taken == 7  # 0.12 s that agree, and with what was known


def test_an_arm_moved_during_a_gap_is_believed_after_more_samples(make):
    bench = make()
    for _ in range(10):
        bench.send(HERE)
    bench.now += 5_000_000_000
    for _ in range(BufferConfig().state_jump_samples - 1):
        bench.send(ELSEWHERE)
        assert bench.pose() is None
    bench.send(ELSEWHERE)
    assert bench.pose() == ELSEWHERE and bench.code() is None


def test_a_gap_of_refused_samples_counts_from_the_last_one_seen(make):
    """An arm that really jumped keeps sending: no gap, and the old pose stays the known one."""
    bench = make()
    for _ in range(10):
        bench.send(HERE)
    for _ in range(BufferConfig().state_jump_samples - 1):
        assert bench.send(ELSEWHERE).code is Code.STATE_JUMP
        assert bench.pose() == HERE
    assert bench.send(ELSEWHERE) is None and bench.pose() == ELSEWHERE


def test_after_clear_it_starts_anew(make):
    bench = make()
    for _ in range(10):
        bench.send(HERE)
    bench.history.clear()
    bench.send(ZERO)
    assert bench.pose() is None and bench.code() is Code.STATE_RECOVERING
    for _ in range(7):
        bench.send(HERE)
    assert bench.pose() == HERE


def test_silence_while_recovering_is_named_stale(make):
    bench = make()
    bench.send(HERE)
    bench.now += 150_000_000
    assert bench.code() is Code.STATE_STALE
    bench.send(HERE)
    assert 'gap of 0.170 s (limit 0.1 s)' in str(bench.history.problem(bench.now))


def test_messages_that_arrive_together_count_by_their_stamps(make):
    """After a stall of the receiver the queue comes at once: measured over a time all the same."""
    bench = make()
    for late_ms in range(120, -1, -20):
        bench.send(HERE, ms=0, late_ms=late_ms)
    assert bench.pose() == HERE and bench.code() is None


def test_the_same_stamp_again_and_again_is_never_believed_and_costs_no_memory(make, kit):
    bench = make()
    for ms in range(4000):
        bench.history.store(kit.LEFT, [HERE, 0.1, 10.0], kit.T0, kit.T0 + ms * kit.MS)
    assert bench.pose() is None and len(bench.history._doubted) <= 256


@pytest.mark.parametrize('rival_ms', [20, 100, 200])
@pytest.mark.parametrize('lag_ms', [0, 8])
def test_a_second_publisher_is_noticed(make, rival_ms, lag_ms):
    """Whichever is believed, the other one contradicts it; its stamps may lag or not."""
    bench = make()
    for _ in range(10):
        bench.send(HERE)
    assert bench.code() is None
    noticed_ms = None
    for ms in range(0, 3000, 20):
        bench.send(HERE, ms=15)
        if ms % rival_ms == 0:
            reason = bench.send(ZERO, ms=5, late_ms=lag_ms)
            assert reason.code in (Code.STATE_JUMP, Code.STATE_REORDERED)
        else:
            bench.now += 5_000_000
        assert bench.pose() == HERE
        if noticed_ms is None and bench.code() is Code.STATE_CONFLICT:
            noticed_ms = ms
    assert bench.code() is Code.STATE_CONFLICT and noticed_ms <= 5 * rival_ms
    assert 'ros2 topic info -v /left/joint_states' in str(bench.history.problem(bench.now))
    for _ in range(101):  # it ended
        bench.send(HERE)
    assert bench.code() is None


def test_a_second_publisher_at_the_start_is_named(make):
    bench = make()
    for _ in range(4):
        bench.send(ZERO)
        bench.send(HERE)
    assert bench.pose() is None and bench.code() is Code.STATE_CONFLICT


def test_a_rare_glitch_holds_nothing_and_a_moved_arm_is_one_contradiction(make):
    bench = make()
    for number in range(300):
        bench.send(ZERO if number % 50 == 49 else HERE)
        assert number < 10 or bench.code() is None
    for _ in range(60):
        bench.send(ELSEWHERE)
        assert bench.code() is not Code.STATE_CONFLICT
    assert bench.pose() == ELSEWHERE and bench.code() is None
