"""Bags become the observations of the live node, or a refusal that names file and next move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.ros.bags.mapping import apply_map, parse_map
from safe_pruner_ros.ros.bags.reader import Bag, BagError
from safe_pruner_ros.ros.conversions import image_to_camera_image, stamp_to_ns
from safe_pruner_ros.runtime.control_loop import ControlLoop
from safe_pruner_ros.types import ActionChunk

DATA = Path(__file__).parents[4] / 'shared' / 'data'  # beside the checkout
VIEWS = ('head', 'left_wrist', 'right_wrist')
# Not 0: joints count once they agreed for 100 ms. Not 500: when the head image of 500 ms makes a
# policy step due, the wrists' have not arrived yet.
STAMPS_MS = [100, 400, 700, 1000, 1300, 1600]


def same(one, other) -> bool:
    return (
        one.stamp_ns == other.stamp_ns
        and one.instruction == other.instruction
        and np.array_equal(one.state.positions, other.state.positions)
        and all(np.array_equal(one.images[v].rgb, other.images[v].rgb) for v in VIEWS)
    )


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3', 'ros1'])
def test_every_storage_gives_the_recorded_episode(storage, tmp_path, episode, kit, source_of):
    path = kit.write_bag(tmp_path / 'bag', episode, storage)
    seen, source, commands = source_of(path)
    stamps = [(o.stamp_ns - kit.START_NS) // 1_000_000 for o in seen]
    assert stamps == STAMPS_MS
    said = next(e for e in episode if e.kind == kit.STRING).values['data']
    for observation in seen:
        at = [e for e in episode if e.stamp_ns == observation.stamp_ns]
        head = next(e for e in at if e.topic == '/camera/head/image_raw')
        assert np.array_equal(observation.images['head'].rgb.reshape(-1), head.values['data'])
        joints = next(e for e in at if e.kind == kit.JOINTS)
        assert np.array_equal(observation.state.positions, joints.values['position'])
        assert observation.instruction == said
    assert source.clock == 'record' and not any(s.end_ns - s.start_ns > 2.1e8 for s in source.held)
    assert len(commands) == 200 and len(commands[0].joint_names) == 8
    first = next(e for e in episode if e.topic == '/arm_left/joint_trajectory')
    assert np.array_equal(commands[0].positions, first.values['point'])
    assert commands[0].stamp_ns == first.log_ns + 20_000_000


def test_two_drivers_that_share_a_topic(tmp_path, episode, kit, source_of, sim_config, recording):
    """The messages of one arm's driver are no refusals of the other's."""
    (body,) = sim_config.robot.state_sources
    left = replace(body, name='left', joints=body.joints[:8])
    right = replace(body, name='right', joints=body.joints[8:])
    entries = []
    for entry in episode:
        parts = [slice(8), slice(8, None)] if entry.kind == kit.JOINTS else []
        for part in parts:
            values = {key: value[part] for key, value in entry.values.items()}
            entries.append(replace(entry, values=values))
        entries += [] if parts else [entry]
    path = kit.write_bag(tmp_path / 'bag', entries)
    seen, source, _ = source_of(path, replace(sim_config.robot, state_sources=(left, right)))
    assert all(map(same, seen, source_of(recording)[0])) and len(seen) == len(STAMPS_MS)
    accepted = {s['name']: (s['accepted'], s['refused']) for s in source.summary()['sources']}
    assert accepted['left'] == accepted['right'] == (100, {})


def test_the_same_observations_as_the_live_loop(recording, sim_config, source_of):
    """The node's own loop, fed with the same messages at the same times, asks for a policy step
    at the same moments and with the same data."""
    offline, *_ = source_of(recording)
    now = [0]
    policy = StandStill(sim_config.robot)
    loop = ControlLoop(sim_config, policy, lambda: now[0], steady=lambda: now[0])
    cameras = {camera.topic: camera for camera in sim_config.robot.cameras}
    with Bag(recording) as bag:
        for message in bag.messages(bag.types):
            now[0], data = message.log_ns, message.data
            loop.tick(now[0])
            if message.topic in cameras:
                name = cameras[message.topic].name
                assert loop.store_image(image_to_camera_image(data, name), now[0]) is None
            elif message.topic == '/joint_states':
                stamp_ns = stamp_to_ns(data.header.stamp)
                loop.store_joints('joint_states', data.name, data.position, stamp_ns, now[0])
            elif message.topic == '/instruction':
                loop.set_instruction(data.data)
            loop.worker.run_once()
    assert len(policy.seen) == len(offline) == len(STAMPS_MS)
    assert all(map(same, policy.seen, offline))


class StandStill:
    """Answers with the measured joints."""

    def __init__(self, robot) -> None:
        views = tuple(ViewSpec(name, 64, 64, 2, 2) for name in VIEWS)
        self.spec = PolicySpec('still', views, robot.layout.names, 8, 0.1, 4)
        self.seen = []

    def check_instruction(self, instruction: str) -> None: ...

    def forget_plans(self) -> None: ...

    def reset(self) -> None: ...

    def predict(self, observation) -> PolicyOutput:
        self.seen.append(observation)
        rows = np.tile(observation.state.positions, (8, 1))
        chunk = ActionChunk(rows, self.spec.joint_names, observation.stamp_ns, 100_000_000)
        return PolicyOutput(
            chunk, PruningTrace('x', 1.0, 12, np.arange(12), False, '', 0, 0, 0), {'total': 1.0}
        )


def test_mapping_compressed_pictures_and_renamed_joints(
    tmp_path, episode, kit, sim_config, source_of
):
    def other(entry):
        if entry.kind == kit.IMAGE:
            rgb = entry.values['data'].reshape(64, 64, 3)
            data = cv2.imencode('.png', rgb[:, :, ::-1])[1].reshape(-1)
            topic = entry.topic.replace('/camera', '/cam') + '/compressed'
            values = {'format': 'rgb8; png compressed bgr8', 'data': data}
            return replace(entry, topic=topic, kind=kit.COMPRESSED, values=values)
        if entry.kind == kit.JOINTS:
            names = ['L1', *entry.values['name'][1:]]
            return replace(entry, topic='/robot/joints', values={**entry.values, 'name': names})
        return entry

    path = kit.write_bag(tmp_path / 'bag', map(other, episode))
    with pytest.raises(BagError, match='--map NAME=TOPIC') as refused:
        source_of(path)
    assert '/cam/head/image_raw/compressed' in str(refused.value)
    asked = [f'{view}=/cam/{view}/image_raw/compressed' for view in VIEWS]
    asked += ['joint_states=/robot/joints', 'joint.astribot_arm_left_joint_1=L1']
    with Bag(path) as bag:
        robot = apply_map(sim_config.robot, parse_map(asked), bag)
    seen, *_ = source_of(path, robot)
    plain, *_ = source_of(kit.write_bag(tmp_path / 'plain', episode))
    assert len(seen) == len(STAMPS_MS) and all(map(same, seen, plain))


@pytest.mark.parametrize(
    ('asked', 'message'),
    [
        (['head'], 'NAME=TOPIC'),
        (['head=/a', 'head=/b'], 'twice'),
        (['head=a'], 'starts with /'),
        (['tail=/a'], "has no ['tail']"),
        (['joint.tail=a'], "has no joint ['tail']"),
    ],
)
def test_wrong_maps(asked, message, recording, sim_config):
    with Bag(recording) as bag, pytest.raises(ValueError) as refused:
        apply_map(sim_config.robot, parse_map(asked), bag)
    assert message in str(refused.value)


def test_a_camera_that_drops_out_is_held_and_comes_back(tmp_path, episode, kit, source_of):
    gap = range(500_000_000, 1_200_000_000)
    entries = [
        e
        for e in episode
        if not (e.topic.startswith('/camera/head') and e.stamp_ns - kit.START_NS in gap)
    ]
    seen, source, _ = source_of(kit.write_bag(tmp_path / 'bag', entries))
    reasons = [str(r) for span in source.held for r in span.reasons]
    assert any("IMAGE_STALE: camera 'head'" in reason for reason in reasons)
    stamps = [(o.stamp_ns - kit.START_NS) // 1_000_000 for o in seen]
    assert (
        stamps[0] == STAMPS_MS[0]
        and stamps[-1] >= 1300
        and not set(stamps) & set(range(600, 1300))
    )


def test_a_clock_topic_is_the_clock(tmp_path, episode, kit, source_of):
    """Recorded on another clock than that of the stamps, with /clock beside it."""
    shift = 3_600 * 10**9
    entries = []
    for e in episode:
        if e.stamp_ns:
            entries.append(
                kit.Entry('/clock', 'rosgraph_msgs/msg/Clock', e.log_ns + shift - 1, e.stamp_ns)
            )
        entries.append(replace(e, log_ns=e.log_ns + shift))
    path = kit.write_bag(tmp_path / 'bag', entries)
    seen, source, _ = source_of(path)
    assert source.clock == 'topic' and len(seen) == len(STAMPS_MS)
    with pytest.raises(BagError, match='--clock header') as refused:
        source_of(path, clock='record')
    assert 'STAMP_OTHER_CLOCK' in str(refused.value) and str(path) in str(refused.value)
    assert len(source_of(path, clock='header')[0]) == len(STAMPS_MS)


def test_a_loop_starts_anew(tmp_path, episode, kit, source_of):
    """A second pass with earlier stamps: both passes give as many observations."""
    text, later = episode[0], []
    for e in episode:
        later.append(replace(e, log_ns=e.log_ns + 10**10))
    clock = [
        kit.Entry('/clock', 'rosgraph_msgs/msg/Clock', e.log_ns - 1, e.stamp_ns)
        for e in [*episode, *later]
        if e.stamp_ns and e is not text
    ]
    entries = sorted([*episode, *later, *clock], key=lambda e: e.log_ns)
    seen, *_ = source_of(kit.write_bag(tmp_path / 'bag', entries))
    stamps = [(o.stamp_ns - kit.START_NS) // 1_000_000 for o in seen]
    assert stamps == STAMPS_MS * 2


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'encoding': 'bayer_bggr8'}, "encoding 'bayer_bggr8' is not accepted"),
        ({'data': np.zeros(30, np.uint8)}, '30 data bytes, but 64 rows'),
    ],
)
def test_unusable_pictures_are_named(changes, message, tmp_path, episode, kit, source_of):
    entries = [
        replace(e, values={**e.values, **changes}) if e.kind == kit.IMAGE else e for e in episode
    ]
    path = kit.write_bag(tmp_path / 'bag', entries)
    with pytest.raises(BagError) as refused:
        source_of(path)
    text = str(refused.value)
    assert str(path) in text and message in text and 'head: 0 used, 20 refused' in text


def test_zero_stamps(tmp_path, episode, kit, sim_config, source_of):
    entries = [replace(e, stamp_ns=0) if e.kind == kit.IMAGE else e for e in episode]
    path = kit.write_bag(tmp_path / 'bag', entries)
    with pytest.raises(BagError, match='STAMP_ZERO') as refused:
        source_of(path)
    assert 'allow_zero_stamp' in str(refused.value)
    buffer = replace(sim_config.runtime.buffer, allow_zero_stamp=True)
    assert len(source_of(path, buffer=buffer)[0]) == len(STAMPS_MS)


def test_bags_that_are_none(tmp_path, kit, episode, source_of):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'empty.bag').touch()
    (tmp_path / 'noise.mcap').write_bytes(b'noise' * 100)
    (tmp_path / 'noise.bag').write_bytes(b'noise' * 100)
    (tmp_path / 'film.mp4').write_bytes(b'noise' * 100)
    kit.write_bag(tmp_path / 'silent', [])
    for name, message in {
        'nowhere': 'does not exist',
        'folder': 'without metadata.yaml',
        'empty.bag': 'is empty (0 bytes)',
        'noise.mcap': 'not a readable bag',
        'noise.bag': 'not a readable bag',
        'film.mp4': 'neither a rosbag2',
        'silent': 'no messages',
    }.items():
        with pytest.raises(BagError) as refused:
            source_of(tmp_path / name)
        assert name in str(refused.value) and message in str(refused.value), str(refused.value)
    cut = kit.write_bag(tmp_path / 'cut', episode, 'ros1')
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(BagError, match='cut.bag'):
        source_of(cut)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3', 'ros1'])
def test_damaged_bytes_are_a_refusal_or_fewer_messages(
    storage, tmp_path, episode, kit, source_of
) -> None:
    """Whatever byte is hit: observations, or a BagError with the name of the file."""
    path = kit.write_bag(tmp_path / 'bag', episode[:60], storage)
    file = path if path.is_file() else next(f for f in path.iterdir() if f.suffix != '.yaml')
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(8):
        data = bytearray(whole)
        for place in rng.integers(64, len(data), 40):
            data[place] = int(rng.integers(256))
        file.write_bytes(data)
        try:
            source_of(path)
        except BagError as error:
            assert str(path) in str(error)


def test_missing_instruction(tmp_path, episode, kit, source_of):
    path = kit.write_bag(tmp_path / 'bag', [e for e in episode if e.kind != kit.STRING])
    with pytest.raises(BagError, match='give it with --instruction'):
        source_of(path)
    seen, *_ = source_of(path, instruction='lift it')
    assert [o.instruction for o in seen] == ['lift it'] * len(STAMPS_MS)


@pytest.mark.skipif(not DATA.is_dir(), reason=f'the public recordings are not in {DATA}')
@pytest.mark.parametrize(
    ('name', 'topic', 'message'),
    [
        ('malformed_bags/geocamxyz/test_bag_mcap', '/test/sensor_msgs/image', '30 data bytes'),
        ('malformed_bags/geocamxyz/test_bag_sqlite3', '/test/sensor_msgs/image', '30 data bytes'),
        ('pr2_ros1_bags/test-button-light.bag', '/wide_stereo/left/image_raw', 'bayer_bggr8'),
    ],
)
def test_public_recordings_are_refused_by_name(name, topic, message, sim_config):
    from safe_pruner_ros.ros.conversions import InputError

    with Bag(DATA / name) as bag:
        first = next(bag.messages([topic]))
        with pytest.raises(InputError, match=message):
            image_to_camera_image(first.data, 'head')
        mapped = apply_map(sim_config.robot, parse_map([f'head={topic}']), bag)
        from safe_pruner_ros.ros.bags.source import BagSource

        with pytest.raises(BagError, match="camera 'left_wrist' needs"):
            BagSource(bag, mapped, sim_config.runtime.buffer, 0.4, 'lift it')
