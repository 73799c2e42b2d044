"""What `safe-pruner record` writes is what was published, for everybody who reads bags."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from safe_pruner_ros import cli
from safe_pruner_ros.ros.bags.message_definitions import MessageDefinitions, UnknownMessage
from safe_pruner_ros.ros.bags.reader import Bag, BagError
from safe_pruner_ros.ros.bags.recorder import wanted_topics
from safe_pruner_ros.ros.bags.repair import RepairError, is_unfinished, repair
from safe_pruner_ros.ros.bags.writer import BagWriter, WriterThread

OURS = ('ActionChunk', 'KeyframeEvent', 'PruningStatus', 'SaliencyMap')
COMMAND = 'from safe_pruner_ros.cli import run; run()'


class Speaker:
    """A head camera, our status and a latched instruction, published from this process."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image
        from std_msgs.msg import Float64MultiArray, String

        from safe_pruner_ros.msg import PruningStatus

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('speaker', context=self.context)
        best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        make = self.node.create_publisher
        self.image = make(Image, '/camera/head/image_raw', best_effort)
        self.status = make(PruningStatus, '/safe_pruner/status', 10)
        self.instruction = make(String, '/instruction', latched)
        self.other = make(Float64MultiArray, '/unrelated', 10)
        self.instruction.publish(String(data='lift it'))
        self.sent: list[int] = []

    def wait_for_listener(self) -> None:
        deadline_s = time.monotonic() + 60
        while not (self.image.get_subscription_count() and self.status.get_subscription_count()):
            assert time.monotonic() < deadline_s, 'the recorder does not listen'
            time.sleep(0.05)

    def say_image(self) -> None:
        from sensor_msgs.msg import Image

        number = len(self.sent)
        pixels = bytes([number % 256] * 18)
        msg = Image(height=2, width=3, encoding='rgb8', step=9, data=pixels)
        msg.header.stamp.sec = number
        self.image.publish(msg)

    def speak(self, count: int) -> None:
        from std_msgs.msg import Float64MultiArray

        from safe_pruner_ros.msg import PruningStatus

        for _ in range(count):
            number = len(self.sent)
            self.say_image()
            status = PruningStatus(method='safe_pruner', policy_step=number, n_visual=192)
            status.attention_similarity = float('nan')
            self.status.publish(status)
            self.other.publish(Float64MultiArray(data=[1.0]))
            self.sent.append(number)
            time.sleep(0.02)

    def close(self) -> None:
        import rclpy

        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def speaker() -> Iterator[Speaker]:
    speaker = Speaker()
    yield speaker
    speaker.close()


def start_recorder(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-c', COMMAND, 'record', '--out', str(out), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip


def values(path: Path, topic: str) -> list[Any]:
    with Bag(path) as bag:
        return [message.data for message in bag.messages([topic])]


@pytest.mark.ros
def test_a_recording_ends_cleanly_and_is_complete(tmp_path, speaker) -> None:
    out = tmp_path / 'run'
    recorder = start_recorder(out)
    speaker.wait_for_listener()
    speaker.speak(40)
    recorder.send_signal(signal.SIGINT)
    printed, errors = recorder.communicate(timeout=60)
    assert recorder.returncode == 0, errors
    assert '/safe_pruner/status (safe_pruner_ros/msg/PruningStatus' in printed
    statuses = values(out, '/safe_pruner/status')
    assert [s.policy_step for s in statuses] == speaker.sent  # reliable: every one
    assert all(s.method == 'safe_pruner' and np.isnan(s.attention_similarity) for s in statuses)
    images = values(out, '/camera/head/image_raw')
    assert len(images) >= 30 and all(i.data[0] == i.header.stamp.sec % 256 for i in images)
    assert [m.data for m in values(out, '/instruction')] == ['lift it']
    with Bag(out) as bag:
        assert '/unrelated' not in bag.types
        times = [message.log_ns for message in bag.messages(bag.types)]
    assert times == sorted(times) and abs(times[-1] - time.time_ns()) < 120e9

    facts = YAML(typ='safe').load(out / 'metadata.yaml')['rosbag2_bagfile_information']
    assert facts['version'] == 9 and facts['storage_identifier'] == 'mcap'
    assert facts['relative_file_paths'] == ['run.mcap']
    topics = {t['topic_metadata']['name']: t for t in facts['topics_with_message_count']}
    assert topics['/safe_pruner/status']['message_count'] == len(statuses)
    camera = topics['/camera/head/image_raw']['topic_metadata']
    assert camera['offered_qos_profiles'][0]['reliability'] == 'best_effort'
    instruction = topics['/instruction']['topic_metadata']
    assert instruction['offered_qos_profiles'][0]['durability'] == 'transient_local'


@pytest.mark.ros
def test_a_killed_recorder_loses_a_second_at_most(tmp_path, speaker, capsys) -> None:
    out = tmp_path / 'run'
    recorder = start_recorder(out)
    speaker.wait_for_listener()
    speaker.speak(30)
    time.sleep(3.5)  # quiet: what was said is flushed
    speaker.speak(3)
    recorder.kill()
    recorder.communicate(timeout=60)
    assert is_unfinished(out) and not (out / 'metadata.yaml').exists()
    with pytest.raises(BagError, match='safe-pruner repair'), Bag(out):
        pass
    assert cli.main(['repair', str(out)]) == 0
    assert 'is complete now' in capsys.readouterr().out
    assert len(values(out, '/safe_pruner/status')) >= 30
    assert cli.main(['repair', str(out)]) == 0
    assert 'was complete already' in capsys.readouterr().out


@pytest.mark.parametrize('compression', ['none', 'zstd'])
@pytest.mark.parametrize('keep', [0.35, 0.7, 0.99, 1.0])
def test_a_torn_file_keeps_its_complete_chunks(keep, compression, tmp_path) -> None:
    """Cut anywhere: what the last complete chunk ends with is there, and nothing else."""
    store, out = MessageDefinitions(), tmp_path / 'bag'
    store.add('std_msgs/msg/Float64MultiArray')
    rng = np.random.default_rng(0)
    with BagWriter(out, compression) as writer:
        writer.add_topic('/numbers', 'std_msgs/msg/Float64MultiArray')
        cls = store.store.types
        layout = cls['std_msgs/msg/MultiArrayLayout'](dim=[], data_offset=0)
        for number in range(60):
            data = np.concatenate([[number], rng.standard_normal(8000)])
            message = cls['std_msgs/msg/Float64MultiArray'](layout=layout, data=data)
            raw = store.store.serialize_cdr(message, 'std_msgs/msg/Float64MultiArray')
            writer.write('/numbers', number * 300_000_000, bytes(raw))
    file = out / 'bag.mcap'
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole))])
    (out / 'metadata.yaml').unlink()
    repaired = repair(out)
    found = [int(m.data[0]) for m in values(out, '/numbers')]
    assert found == list(range(len(found))) and repaired.messages == len(found)
    # Chunks close after a second, that is four messages of 0.3 s.
    assert 60 * keep - 6 <= len(found) <= 60


def test_files_that_cannot_be_repaired(tmp_path) -> None:
    (tmp_path / 'film.mp4').write_bytes(b'x')
    (tmp_path / 'only_magic.mcap').write_bytes(b'\x89MCAP0\r\n')
    (tmp_path / 'other.mcap').write_bytes(b'not an mcap file at all')
    for name, message in (
        ('film.mp4', 'neither an .mcap file'),
        ('only_magic.mcap', 'no complete record'),
        ('other.mcap', 'not an mcap file'),
        ('nowhere', 'neither an .mcap file'),
    ):
        with pytest.raises(RepairError, match=name) as refused:
            repair(tmp_path / name)
        assert message in str(refused.value)


def test_a_slow_disk_is_counted_and_a_full_one_ends_it() -> None:
    class Full:
        path = Path('/full')

        def write(self, topic: str, log_ns: int, data: bytes) -> None:
            raise OSError(28, 'No space left on device')

        def flush(self, now_ns: int) -> None: ...

    with WriterThread(Full()) as thread:  # type: ignore[arg-type]
        thread.put('/a', 0, b'x')
        deadline_s = time.monotonic() + 10
        while not thread.failure and time.monotonic() < deadline_s:
            time.sleep(0.01)
        thread.put('/a', 1, b'x')
    assert 'No space left' in thread.failure and thread.dropped == 1


@pytest.mark.ros
def test_a_recording_that_begins_with_the_policy(speaker) -> None:
    """What came before is left out, but for the instruction."""
    from rclpy.executors import SingleThreadedExecutor

    from safe_pruner_ros.ros.bags.recorder import Recorder

    got: list[str] = []
    recorder = Recorder(
        lambda topic: topic in ('/camera/head/image_raw', '/instruction', '/safe_pruner/status'),
        lambda topic, kind, qos: None,
        lambda topic, log_ns, data: got.append(topic),
        '/safe_pruner/status', ['/instruction'], context=speaker.context,
    )  # fmt: skip
    executor = SingleThreadedExecutor(context=speaker.context)
    executor.add_node(recorder)
    try:
        deadline_s = time.monotonic() + 60
        while '/safe_pruner/status' not in got and time.monotonic() < deadline_s:
            speaker.say_image()
            if '/instruction' in got and recorder.topics.keys() >= {'/safe_pruner/status'}:
                assert '/camera/head/image_raw' not in got
                speaker.speak(1)
            executor.spin_once(timeout_sec=0.05)
        while '/camera/head/image_raw' not in got and time.monotonic() < deadline_s:
            speaker.say_image()
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.shutdown()
        recorder.destroy_node()
    assert got[0] == '/instruction' and '/camera/head/image_raw' in got
    assert got.index('/safe_pruner/status') < got.index('/camera/head/image_raw')


@pytest.mark.ros
def test_definitions_have_the_hashes_of_rosidl() -> None:
    from ament_index_python.packages import get_package_share_directory

    definitions = MessageDefinitions()
    kinds = [f'safe_pruner_ros/msg/{name}' for name in OURS]
    kinds += ['sensor_msgs/msg/Image', 'trajectory_msgs/msg/JointTrajectory']
    kinds += ['diagnostic_msgs/msg/DiagnosticArray', 'lifecycle_msgs/msg/TransitionEvent']
    for kind in kinds:
        package, _, name = kind.split('/')
        path = Path(get_package_share_directory(package)) / 'msg' / f'{name}.json'
        hashes = {
            h['type_name']: h['hash_string'] for h in json.loads(path.read_text())['type_hashes']
        }
        assert definitions.type_hash(kind) == hashes[kind]
    with pytest.raises(UnknownMessage, match='no definition is installed'):
        definitions.add('nowhere_msgs/msg/Nothing')


def test_what_is_wanted(sim_config) -> None:
    is_wanted = wanted_topics(sim_config.robot, '/robot1/safe_pruner', ['/imu'])
    ours = ('/robot1/safe_pruner/status', '/robot1/safe_pruner/preview/arm_left')
    robots = ('/camera/head/image_raw', '/joint_states', '/arm_left/joint_trajectory')
    for topic in (*ours, *robots, '/clock', '/imu'):
        assert is_wanted(topic), topic
    for topic in ('/camera/overview/image_raw', '/robot1/safe_pruner/overlay/head', '/rosout'):
        assert not is_wanted(topic), topic
    with_pictures = wanted_topics(sim_config.robot, '/safe_pruner', overlays=True)
    assert with_pictures('/safe_pruner/overlay/head')


def test_wrong_requests(tmp_path, capsys) -> None:
    (tmp_path / 'there').mkdir()
    for arguments, message in (
        (['record', '--out', str(tmp_path / 'there')], 'exists already'),
        (['record', '--topic', 'imu'], "full topic name like /imu, got 'imu'"),
        (['record', '--duration', '-1'], '--duration must be at least 0'),
        (['record', '--sim', '--seed', '-1'], '--seed must be at least 0'),
        (['record', '--sim', '--task', 'nosuch'], 'nosuch'),
        (['record', '--sim', '--policy-file', 'nosuch'], "no 'nosuch' in"),
        (['record', '--robot-file', 'r2d2'], "no 'r2d2' in"),
        (['play', str(tmp_path / 'nowhere')], 'does not exist'),
        (['play', 'x', '--rate', '0'], '--rate must be in (0, 1000]'),
        (['repair', str(tmp_path / 'there')], 'exactly one'),
    ):
        assert cli.main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1, error
