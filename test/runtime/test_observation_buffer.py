"""Rows 3 to 9, 20, 27, 28: what an observation may be made of."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig
from safe_pruner_ros.runtime.observation_buffer import NotReady, ObservationBuffer, Snapshot
from safe_pruner_ros.types import CameraImage


@pytest.fixture
def make(kit):
    def make(robot=None, **settings):
        buffer = ObservationBuffer(robot or kit.robot(), BufferConfig(**settings))
        buffer.set_instruction('lift the cup')
        return buffer, kit.Feeder(buffer)

    return make


def codes(result):
    return [reason.code for reason in result.reasons] if isinstance(result, NotReady) else []


def test_complete_and_fresh_is_ready(kit, make):
    buffer, feed = make()
    feed.all(kit.T0)
    snapshot = buffer.snapshot(kit.T0 + 5 * kit.MS)
    assert isinstance(snapshot, Snapshot) and snapshot.warnings == ()
    observation = snapshot.observation
    assert set(observation.images) == {'head', 'wrist'}
    assert observation.instruction == 'lift the cup'
    assert observation.stamp_ns == kit.T0
    assert observation.state.positions == pytest.approx([0.1] * 6)  # grippers: 10 of 100
    assert buffer.readiness(kit.T0) is None


def test_each_missing_part_is_named(kit, make):
    buffer, feed = make()
    feed.images(kit.T0, ('head',))
    not_ready = buffer.snapshot(kit.T0)
    assert codes(not_ready) == [Code.IMAGE_MISSING, Code.STATE_MISSING, Code.STATE_MISSING]
    text = str(not_ready)
    assert "camera 'wrist'" in text and '/wrist' in text and '/left/joint_states' in text
    assert buffer.state() is None  # never zeros


def test_refusal_of_the_conversion_is_the_reason(kit, make):
    buffer, feed = make()
    feed.joints(kit.T0)
    feed.images(kit.T0, ('head',))
    buffer.refuse('wrist', Reason(Code.IMAGE_INVALID, 'encoding bayer_bggr8 is not accepted'))
    assert 'bayer_bggr8' in str(buffer.snapshot(kit.T0))
    wrist = buffer.statistics(kit.T0)[1]
    assert wrist.refused == {Code.IMAGE_INVALID: 1} and np.isnan(wrist.age_s)


@pytest.mark.parametrize(
    ('offset_s', 'code'),
    [
        (None, Code.STAMP_ZERO),
        (0.06, Code.STAMP_IN_FUTURE),
        (10.0, Code.STAMP_IN_FUTURE),
        (-10.0, Code.STAMP_OTHER_CLOCK),
        (-900.0, Code.STAMP_OTHER_CLOCK),
        (0.04, None),
        (0.0, None),
    ],
)
def test_stamps(kit, make, offset_s, code):
    buffer, _ = make()
    stamp = 0 if offset_s is None else kit.T0 + round(offset_s * 1e9)
    image = buffer.store_image(kit.image('head', stamp), kit.T0)
    names, values = kit.LEFT, [0.0, 0.0, 0.0]
    state = buffer.store_joints('left', names, values, stamp, kit.T0)
    for reason in (image, state):
        assert (reason.code if reason else None) is code
    if code:
        assert 'head' in image.text and 'left' in state.text


def test_stamp_jump_recovers_when_stamps_return(kit, make):
    buffer, feed = make()
    for tick in range(20):
        now = kit.T0 + tick * 20 * kit.MS
        feed.joints(now)
        feed.images(now, ('wrist',))
        jump = 10_000 * kit.MS if 5 <= tick < 8 else 0
        buffer.store_image(kit.image('head', now + jump), now)
        assert buffer.readiness(now) is None  # three frames are less than the limit


def test_zero_stamps_count_from_their_reception_if_allowed(kit, make):
    buffer, feed = make(allow_zero_stamp=True)
    feed.joints(kit.T0)
    for view in ('head', 'wrist'):
        assert buffer.store_image(kit.image(view, 0, 3), kit.T0) is None
    assert buffer.snapshot(kit.T0).observation.images['head'].stamp_ns == kit.T0
    assert Code.IMAGE_STALE in codes(buffer.snapshot(kit.T0 + 400 * kit.MS))


@given(stamp=st.integers(-(2**62), 2**62), receive=st.integers(0, 2**62))
def test_any_stamp_gives_a_reason_or_a_believable_age(kit, stamp, receive):
    buffer = ObservationBuffer(kit.robot(), BufferConfig())
    reason = buffer.store_image(kit.image('head', stamp, 1), receive)
    age = buffer.statistics(receive)[0].age_s
    assert np.isnan(age) if reason else -0.06 < age <= 5.0


def test_node_clock_still_zero(kit, make):
    buffer, _ = make()
    assert buffer.store_image(kit.image('head', 5), 0).code is Code.CLOCK_MISSING
    assert codes(buffer.snapshot(0)) == [Code.CLOCK_MISSING]


def test_stale_view_is_named_warned_and_must_prove_itself(kit, make):
    buffer, feed = make()
    feed.all(kit.T0)
    for ms in range(20, 201, 20):
        now = kit.T0 + ms * kit.MS
        feed.joints(now)
    feed.images(now, ('wrist',))
    assert Code.IMAGE_OLD in [w.code for w in buffer.warnings(now)]
    for ms in range(220, 361, 20):
        now = kit.T0 + ms * kit.MS
        feed.joints(now)
    feed.images(now, ('wrist',))
    stale = buffer.snapshot(now)
    assert codes(stale) == [Code.IMAGE_STALE] and "camera 'head'" in str(stale)
    for frame in range(3):
        assert isinstance(buffer.snapshot(now), NotReady)
        now += 30 * kit.MS
        feed.all(now)
        assert bool(codes(buffer.snapshot(now))) == (frame < 2)


def test_burst_after_a_stall_uses_only_the_newest(kit, make):
    buffer, feed = make()
    feed.all(kit.T0)
    now = kit.T0 + 1870 * kit.MS
    for stamp in range(kit.T0 + 33 * kit.MS, now, 33 * kit.MS):
        feed.sample(stamp, now)
        buffer.store_image(kit.image('head', stamp), now)
        buffer.store_image(kit.image('wrist', stamp), now)
    snapshot = buffer.snapshot(now)
    assert isinstance(snapshot, Snapshot)
    assert now - snapshot.observation.stamp_ns < 40 * kit.MS
    assert len(buffer._views['head']._images) <= BufferConfig().history


def test_duplicates_and_reordered_images_are_dropped(kit, make):
    buffer, feed = make()
    feed.all(kit.T0)
    for stamp in (kit.T0, kit.T0 - 10 * kit.MS):
        reason = buffer.store_image(kit.image('head', stamp, 9), kit.T0)
        assert reason.code is Code.IMAGE_REORDERED
    seen = buffer.snapshot(kit.T0).observation.images['head'].rgb
    assert np.array_equal(seen, kit.image('head', kit.T0).rgb)


@pytest.mark.parametrize(('lag_ms', 'ready', 'warned'), [(30, True, False), (60, True, True), (150, False, True)])  # fmt: skip # noqa: E501
def test_skew_between_views(kit, make, lag_ms, ready, warned):
    buffer, feed = make(history=1)
    feed.joints(kit.T0)
    feed.images(kit.T0, ('head',))
    assert buffer.store_image(kit.image('wrist', kit.T0 - lag_ms * kit.MS), kit.T0) is None
    result = buffer.snapshot(kit.T0)
    assert isinstance(result, Snapshot) is ready
    assert (Code.IMAGE_SKEW in [w.code for w in buffer.warnings(kit.T0)]) is warned
    if not ready:
        assert codes(result) == [Code.IMAGE_SKEW] and 'wrist' in str(result)


def test_history_finds_the_newest_set_that_belongs_together(kit, make):
    """The wrist camera arrives one frame late; the matching head image must be taken."""
    buffer, feed = make()
    for frame in range(3):
        feed.images(kit.T0 + frame * 33 * kit.MS, ('head',))
    buffer.store_image(kit.image('wrist', kit.T0 + 34 * kit.MS), kit.T0 + 66 * kit.MS)
    feed.joints(kit.T0 + 66 * kit.MS)
    snapshot = buffer.snapshot(kit.T0 + 66 * kit.MS)
    stamps = {name: image.stamp_ns for name, image in snapshot.observation.images.items()}
    assert stamps == {'head': kit.T0 + 33 * kit.MS, 'wrist': kit.T0 + 34 * kit.MS}
    assert snapshot.warnings == ()


def frozen_run(kit, feed, buffer, frames, motion_rad, start=0):
    """Both arms move; the wrist camera, on the left arm, repeats one picture."""
    for frame in range(start, start + frames):
        now = kit.T0 + frame * 33 * kit.MS
        for name in ('left_1', 'right_1'):
            feed.positions[name] = 0.1 + motion_rad * frame
        feed.joints(now)
        feed.images(now, ('head',))
        buffer.store_image(kit.image('wrist', now, 5), now)
    return buffer.snapshot(now)


def test_frozen_camera(kit, make):
    buffer, feed = make()
    assert isinstance(frozen_run(kit, feed, buffer, 9, 0.02), Snapshot)
    frozen = frozen_run(kit, feed, buffer, 3, 0.02, start=9)
    assert codes(frozen) == [Code.IMAGE_FROZEN] and 'wrist' in str(frozen)
    now = kit.T0 + 12 * 33 * kit.MS
    feed.all(now)
    assert isinstance(buffer.snapshot(now), Snapshot)


def test_still_scene_is_not_frozen(kit, make):
    buffer, feed = make()
    assert isinstance(frozen_run(kit, feed, buffer, 60, 0.0), Snapshot)


def test_idle_arm_may_see_the_same_while_the_other_moves(kit, make):
    buffer, feed = make()
    for frame in range(30):
        now = kit.T0 + frame * 33 * kit.MS
        feed.positions['right_1'] = 0.01 * frame
        feed.joints(now)
        feed.images(now, ('head',))
        buffer.store_image(kit.image('wrist', now, 5), now)
    assert isinstance(buffer.snapshot(now), Snapshot)


def test_single_repeats_are_normal(kit, make):
    """Row 3: the real G1 data repeats 68 of 290 frames, never two in a row."""
    buffer, feed = make()
    for frame in range(60):
        now = kit.T0 + frame * 33 * kit.MS
        feed.positions['left_1'] = 0.01 * frame
        feed.joints(now)
        for view in ('head', 'wrist'):
            buffer.store_image(kit.image(view, now, frame // 2), now)
        assert isinstance(buffer.snapshot(now), Snapshot)


def test_covered_lens_warns_then_holds(kit, make):
    buffer, feed = make()
    for frame in range(12):
        now = kit.T0 + frame * 33 * kit.MS
        feed.joints(now)
        feed.images(now, ('head',))
        red = np.full((24, 32, 3), (200, 3, 3), np.uint8)
        buffer.store_image(CameraImage(red, 'wrist', now), now)
        assert Code.IMAGE_UNIFORM in [w.code for w in buffer.warnings(now)]
        assert (Code.IMAGE_UNIFORM in codes(buffer.snapshot(now))) == (frame >= 9)


def test_wrong_size_and_optional_view(kit, make):
    head, wrist = kit.robot().cameras
    fixed = kit.robot(cameras=(replace(head, width=32, height=24), replace(wrist, required=False)))
    buffer, feed = make(fixed)
    wrong = CameraImage(kit.picture(height=30), 'head', kit.T0)
    assert buffer.store_image(wrong, kit.T0).code is Code.IMAGE_SIZE
    feed.joints(kit.T0)
    feed.images(kit.T0, ('head',))
    snapshot = buffer.snapshot(kit.T0)
    assert set(snapshot.observation.images) == {'head'}
    assert [w.code for w in snapshot.warnings] == [Code.IMAGE_MISSING]


def test_unknown_view_and_source(kit, make):
    buffer, _ = make()
    assert buffer.store_image(kit.image('torso', kit.T0), kit.T0).code is Code.IMAGE_UNKNOWN_VIEW
    reason = buffer.store_joints('torso', [], [], kit.T0, kit.T0)
    assert reason.code is Code.STATE_UNKNOWN_SOURCE and "['left', 'right']" in reason.text


def test_joint_states_stop(kit, make):
    buffer, feed = make()
    feed.all(kit.T0)
    now = kit.T0 + 120 * kit.MS
    feed.images(now)
    stale = buffer.snapshot(now)
    assert codes(stale) == [Code.STATE_STALE, Code.STATE_STALE]
    for _ in range(6):
        feed.joints(now)
        assert codes(buffer.snapshot(now)) == [Code.STATE_RECOVERING] * 2
        now += 20 * kit.MS
    feed.joints(now)
    assert isinstance(buffer.snapshot(now), Snapshot)


def test_one_arm_behind_the_other(kit, make):
    buffer, feed = make(max_state_age_s=0.3)
    for ms in range(-400, 1, 20):
        feed.all(kit.T0 + ms * kit.MS)
    now = kit.T0 + 200 * kit.MS
    feed.images(now)
    assert buffer.store_joints('left', kit.LEFT, [0.1, 0.1, 10.0], now, now) is None
    skewed = buffer.snapshot(now)
    assert codes(skewed) == [Code.STATE_SKEW] and "'right' is 0.200 s behind 'left'" in str(skewed)


def test_encoder_glitch_is_refused_and_a_real_move_believed(kit, make):
    buffer, feed = make()
    feed.all(kit.T0)
    now, refusals = kit.T0, 0
    for sample in range(60):
        now += 10 * kit.MS
        value = 1.3 if sample == 3 or sample >= 10 else 0.1
        reason = buffer.store_joints('left', kit.LEFT, [value, 0.1, 10.0], now, now)
        refusals += reason is not None
        if sample == 3:
            assert reason.code is Code.STATE_JUMP and 'left_1' in reason.text
            assert buffer.state().positions[0] == pytest.approx(0.1)
        buffer.store_joints('right', kit.RIGHT, [0.1, 0.1, 10.0], now, now)
        feed.images(now)
        if sample == 25:  # 150 ms of refused samples
            assert Code.STATE_STALE in codes(buffer.snapshot(now))
    assert buffer.state().positions[0] == pytest.approx(1.3)
    assert 1 < refusals < 30


def test_reordered_joint_states(kit, make):
    buffer, feed = make()
    feed.joints(kit.T0)
    old = kit.T0 - 5 * kit.MS
    reason = buffer.store_joints('left', kit.LEFT, [0.0, 0.0, 0.0], old, kit.T0)
    assert reason.code is Code.STATE_REORDERED


def test_clock_goes_back(kit, make):
    """A bag loop: everything is forgotten, the second loop works like the first."""
    buffer, feed = make()
    for _loop in range(2):
        for frame in range(10):
            now = kit.T0 + frame * 33 * kit.MS
            generation = buffer.generation
            feed.all(now)
            assert (frame == 0) or buffer.generation == generation
            assert isinstance(buffer.snapshot(now), Snapshot)
    feed.joints(kit.T0)
    assert codes(buffer.snapshot(kit.T0)) == [Code.IMAGE_MISSING, Code.IMAGE_MISSING]


def test_rates(kit, make):
    buffer, _ = make()
    for frame in range(90):
        buffer.store_image(kit.image('head', kit.T0 + frame * 33 * kit.MS), kit.T0 + frame * 33 * kit.MS)  # fmt: skip # noqa: E501
    head = buffer.statistics(kit.T0 + 89 * 33 * kit.MS)[0]
    assert head.rate_hz == pytest.approx(30.3, abs=1.0) and head.accepted == 90


def test_threads(kit, make):
    """Callbacks, worker and timer at once: every snapshot is consistent, nothing raises."""
    buffer, feed = make()
    done, errors = threading.Event(), []

    def read():
        try:
            while not done.is_set():
                now = kit.T0 + 50 * kit.MS
                result = buffer.snapshot(now)
                buffer.readiness(now), buffer.statistics(now), buffer.state()
                if isinstance(result, Snapshot):
                    assert set(result.observation.images) == {'head', 'wrist'}
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for frame in range(150):
        feed.all(kit.T0 + frame * kit.MS)
        if frame % 40 == 39:
            buffer.clear()
    done.set()
    for reader in readers:
        reader.join()
    assert not errors
