"""Small recordings of the simulated robot, written with rosbags: no ROS anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from safe_pruner_ros.ros.resources import config_file
from safe_pruner_ros.runtime.config_yaml import load_config

START_NS = 1_700_000_000_000_000_000
IMAGE_LAG_NS = 4_000_000  # from capture to record
STATE_LAG_NS = 1_000_000
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
JOINTS, STRING = 'sensor_msgs/msg/JointState', 'std_msgs/msg/String'
TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'
VIEWS = ('head', 'left_wrist', 'right_wrist')
INSTRUCTION = 'pick up the red block and place it in the tray'
NEUTRAL = ('proprioception_mean', 'proprioception_std', 'delta_scale')


@dataclass(frozen=True)
class Entry:
    """One message to write: ``values`` as plain data, ``stamp_ns`` for its header."""

    topic: str
    kind: str
    log_ns: int
    stamp_ns: int
    values: dict[str, Any] = field(default_factory=dict)


def image(topic: str, log_ns: int, stamp_ns: int, rgb: np.ndarray, **changes: Any) -> Entry:
    height, width = rgb.shape[:2]
    values = {
        'height': height, 'width': width, 'encoding': 'rgb8', 'is_bigendian': 0,
        'step': 3 * width, 'data': rgb.reshape(-1),
    }  # fmt: skip
    return Entry(topic, IMAGE, log_ns, stamp_ns, values | changes)


def _episode() -> list[Entry]:
    """Two seconds of the scripted expert: three views at 10 Hz, joints and commands at 50 Hz."""
    from safe_pruner_ros.sim.env import DualArmEnv
    from safe_pruner_ros.sim.expert import ScriptedExpert

    robot = load_config(config_file('robots', 'sim')).robot
    found: list[Entry] = []
    with DualArmEnv(image_height=64, image_width=64) as env:
        env.reset(800_400)
        expert = ScriptedExpert(env)
        text = {'data': env.instruction}
        found.append(Entry(robot.instruction_topic, STRING, START_NS, START_NS, text))
        names, command = list(env.layout.names), env.state().positions
        rows: list[np.ndarray] = []
        for tick in range(100):
            if tick % 20 == 0:
                rows = list(expert.chunk(env.target_index))
            if tick % 5 == 0:
                begin, command = command, rows[tick % 20 // 5]
                stamp_ns = START_NS + tick * 20_000_000
                for number, camera in enumerate(robot.cameras):
                    log_ns = stamp_ns + IMAGE_LAG_NS + number
                    found.append(image(camera.topic, log_ns, stamp_ns, env.render(camera.name)))
            target = begin + (command - begin) * (tick % 5 + 1) / 5
            stamp_ns = START_NS + tick * 20_000_000
            log_ns = stamp_ns + STATE_LAG_NS
            positions = env.state().positions
            found.append(
                Entry(
                    '/joint_states',
                    JOINTS,
                    log_ns,
                    stamp_ns,
                    {'name': names, 'position': positions},
                )
            )
            for sink in robot.sinks:
                mine = [mapped.joint for mapped in sink.joints]
                values = {'names': mine, 'point': target[[names.index(name) for name in mine]]}
                found.append(Entry(sink.topic, TRAJECTORY, log_ns + 1, 0, values))
            env.step(target)
    return sorted(found, key=lambda entry: entry.log_ns)


def _message(types: Any, entry: Entry, is_ros1: bool) -> Any:
    time = types['builtin_interfaces/msg/Time']
    duration = types.get('builtin_interfaces/msg/Duration')
    sec, nanosec = divmod(entry.stamp_ns, 1_000_000_000)
    extra = {'seq': 0} if is_ros1 else {}
    header = types['std_msgs/msg/Header'](stamp=time(sec, nanosec), frame_id='', **extra)
    cls, values = types[entry.kind], entry.values
    nothing = np.zeros(0)
    if entry.kind == STRING:
        return cls(data=values['data'])
    if entry.kind == 'rosgraph_msgs/msg/Clock':
        return cls(clock=time(sec, nanosec))
    if entry.kind == JOINTS:
        return cls(header=header, name=values['name'], position=np.array(values['position']),
                   velocity=nothing, effort=nothing)  # fmt: skip
    if entry.kind == TRAJECTORY:
        point = types['trajectory_msgs/msg/JointTrajectoryPoint'](
            positions=values['point'], velocities=nothing, accelerations=nothing, effort=nothing,
            time_from_start=duration(0, 20_000_000),
        )  # fmt: skip
        return cls(header=header, joint_names=values['names'], points=[point])
    return cls(header=header, **values)


def write_bag(path: Path, entries: Iterable[Entry], storage: str = 'mcap') -> Path:
    """``storage``: mcap, sqlite3 or ros1. Returns what to open."""
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    is_ros1 = storage == 'ros1'
    store = get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_JAZZY)
    if is_ros1:
        path = path.with_suffix('.bag')
        writer: Any = Writer1(path)
    else:
        writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    with writer:
        connections: dict[str, Any] = {}
        for entry in entries:
            if entry.topic not in connections:
                connections[entry.topic] = writer.add_connection(
                    entry.topic, entry.kind, typestore=store
                )
            message = _message(store.types, entry, is_ros1)
            serialize = store.serialize_ros1 if is_ros1 else store.serialize_cdr
            writer.write(connections[entry.topic], entry.log_ns, serialize(message, entry.kind))
    return path


@pytest.fixture(scope='session')
def episode() -> list[Entry]:
    return _episode()


@pytest.fixture(scope='session')
def recording(episode: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The episode as mcap."""
    return write_bag(tmp_path_factory.mktemp('bags') / 'episode', episode)


def seeded_model(seed: int = 7) -> Any:
    """A small embedded policy for the simulated robot whose weights come from numpy's generator:
    the same on every machine, and no shipped weights in it."""
    import torch

    from safe_pruner_ros.policies.embedded_model import PAD_WORD, EmbeddedConfig, EmbeddedVLA

    layout = load_config(config_file('robots', 'sim')).robot.layout
    grippers = tuple(joint.name for joint in layout.joints if joint.kind == 'gripper')
    words = tuple(f'{INSTRUCTION} and yellow bottle on table'.split())
    config = EmbeddedConfig(
        VIEWS, layout.names, grippers, (PAD_WORD, *dict.fromkeys(words)),
        width=32, mlp_width=48, n_layers=6, n_heads=2, vision_width=16,
    )  # fmt: skip
    model, rng = EmbeddedVLA(config), np.random.default_rng(seed)
    state = {}
    for name, value in sorted(model.state_dict().items()):
        # Not drawn: counters, masks, and statistics whose neutral value is right.
        if not value.is_floating_point() or 'running' in name or name.endswith(NEUTRAL):
            state[name] = value
            continue
        drawn = rng.standard_normal(tuple(value.shape))
        fan_in = drawn[0].size if drawn.ndim > 1 else 0
        centre = 1.0 if fan_in == 0 and name.endswith('weight') else 0.0
        scale = 1.6 / fan_in**0.5 if fan_in else 0.1
        state[name] = torch.from_numpy(centre + scale * drawn).to(value.dtype)
    model.load_state_dict(state)
    return model


@pytest.fixture(scope='session')
def seeded_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`seeded_model` as a file."""
    from safe_pruner_ros.policies.embedded import save_weights

    path = tmp_path_factory.mktemp('weights') / 'seeded.safetensors'
    save_weights(seeded_model(), path, {})
    return path


@pytest.fixture(scope='session')
def kit() -> SimpleNamespace:
    """Builders of this file for tests."""
    return SimpleNamespace(
        Entry=Entry, image=image, write_bag=write_bag, replace=replace, START_NS=START_NS,
        IMAGE=IMAGE, COMPRESSED=COMPRESSED, JOINTS=JOINTS, STRING=STRING, TRAJECTORY=TRAJECTORY,
        INSTRUCTION=INSTRUCTION, VIEWS=VIEWS, seeded_model=seeded_model,
    )  # fmt: skip


@pytest.fixture(scope='session')
def sim_config() -> Any:
    return load_config(config_file('robots', 'sim'))


@pytest.fixture
def source_of(sim_config: Any) -> Callable[..., Any]:
    """Path -> list of observations, and the BagSource itself."""
    from safe_pruner_ros.ros.bags.reader import Bag
    from safe_pruner_ros.ros.bags.source import BagSource

    def read(path: Path, robot: Any = None, buffer: Any = None, **more: Any) -> Any:
        with Bag(path) as bag:
            source = BagSource(
                bag, robot or sim_config.robot, buffer or sim_config.runtime.buffer, 0.4, **more
            )
            return list(source), source, source.commands()

    return read
