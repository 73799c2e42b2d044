"""`safe-pruner benchmark --ros`: what the node adds between a picture and a command.

Simulator and node run as two processes, this one watches the writers' time stamps. First with a
policy that costs nothing, then, where there are weights, with the policy of the policy file.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from safe_pruner_ros.evaluation.node_timing import MessageTimes, markdown_table, node_timing
from safe_pruner_ros.evaluation.provenance import run_facts
from safe_pruner_ros.evaluation.results import to_json
from safe_pruner_ros.ros.demo.processes import (
    ChildDied,
    Children,
    private_domain,
    ros_arguments,
)
from safe_pruner_ros.ros.resources import config_file
from safe_pruner_ros.runtime.config_yaml import load_config

SEED = 800_998
START_LIMIT_S = 90.0
SETTLE_S = 3.0
NO_MODEL, WITH_MODEL = 'no model', 'policy running'


def main(arguments: argparse.Namespace) -> int:
    """Measure, print, write node.json and node.md. 1 if a process died or never became active."""
    environment = private_domain()
    os.environ.update(environment)
    modules = {NO_MODEL: 'safe_pruner_ros.ros.benchmark_node'}
    if _has_weights(arguments):
        modules[WITH_MODEL] = 'safe_pruner_ros.ros.node'
    else:
        print('no weights: measuring without a policy only', file=sys.stderr)
    passes: dict[str, dict[str, Any]] = {}
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        for title, module in modules.items():
            print(f'{title}: {arguments.seconds:g} s ...', flush=True)
            with Children(arguments.out / 'logs', environment) as children:
                passes[title] = _measure(arguments, children, module)
    except (ChildDied, TimeoutError) as error:
        print(f'safe-pruner benchmark: FAILED: {error}', file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    result = {
        **run_facts(),
        'image_px': arguments.image_px,
        'camera_rate_hz': arguments.camera_rate,
        'seconds': arguments.seconds,
        'passes': passes,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / 'node.json').write_text(to_json(result) + '\n')
    table = markdown_table(passes)
    (arguments.out / 'node.md').write_text(table)
    print(f'\n{table}\nwritten to {arguments.out / "node.json"}')
    return 0


def _has_weights(arguments: argparse.Namespace) -> bool:
    from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS

    return Path(arguments.checkpoint or SHIPPED_WEIGHTS).is_file()


def _measure(arguments: argparse.Namespace, children: Children, module: str) -> dict[str, Any]:
    from rclpy.executors import SingleThreadedExecutor

    size = {'image_height': arguments.image_px[1], 'image_width': arguments.image_px[0]}
    sim = {'seed': SEED, 'camera_rate_hz': float(arguments.camera_rate), **size}
    node: dict[str, object] = {
        'autostart': True,
        'use_sim_time': True,
        'activation_timeout_s': 30.0,
    }
    if arguments.checkpoint:
        node['policy.checkpoint'] = str(Path(arguments.checkpoint).resolve())
    children.start('sim', 'safe_pruner_ros.ros.sim_node', ros_arguments(**sim))
    children.start('policy', module, ros_arguments(**node))

    watcher = _make_watcher()
    executor = SingleThreadedExecutor()
    executor.add_node(watcher)
    try:
        deadline_s = time.monotonic() + START_LIMIT_S
        while watcher.state != 'active':
            children.check()
            executor.spin_once(timeout_sec=0.1)
            if time.monotonic() > deadline_s:
                raise TimeoutError(f'the node was not active after {START_LIMIT_S:g} s')
        for duration_s in (SETTLE_S, arguments.seconds):
            watcher.clear()
            end_s = time.monotonic() + duration_s
            while time.monotonic() < end_s:
                children.check()
                executor.spin_once(timeout_sec=0.1)
        ratios = {view: count.ratio() for view, count in watcher.received.items()}
        return {
            'timing': node_timing(watcher.times),
            'image_receive_ratio': min(ratios.values(), default=None),
            'image_receive_ratio_by_view': ratios,
            'images_sent': {view: count.total for view, count in watcher.received.items()},
        }
    finally:
        executor.shutdown()
        watcher.destroy_node()


def _make_watcher() -> Any:
    """The node that listens; ROS is imported here, after the domain has been chosen."""
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.node import Node
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    from safe_pruner_ros.msg import ActionChunk, PruningStatus
    from safe_pruner_ros.ros.command_sinks import make_sink
    from safe_pruner_ros.ros.conversions import stamp_to_ns
    from safe_pruner_ros.ros.demo.recorder import PREFIX, ReceiveCount

    class Watcher(Node):
        """Callbacks take the message info: its source time stamp is when the writer sent it."""

        def __init__(self) -> None:
            super().__init__('safe_pruner_benchmark')
            robot = load_config(config_file('robots', 'sim')).robot
            self._views = [camera.name for camera in robot.cameras]
            self.state = ''
            self.clear()
            qos = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
            for camera in robot.cameras:
                callback = partial(self._on_image, camera.name)
                self.create_subscription(Image, camera.topic, callback, qos)
            sink = make_sink(robot.sinks[0], 0.02, dry_run=False)
            self.create_subscription(sink.message_type, sink.topic, self._on_command, 50)
            self.create_subscription(ActionChunk, '/safe_pruner/action_chunk', self._on_chunk, 50)
            self.create_subscription(PruningStatus, '/safe_pruner/status', self._on_status, 50)
            self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

        def clear(self) -> None:
            self.times = MessageTimes()
            self.received = {view: ReceiveCount() for view in self._views}

        def _on_image(self, view: str, msg: Image, info: dict[str, int]) -> None:
            self.received[view].sent = info['publication_sequence_number']
            stamp_ns, sent_ns = stamp_to_ns(msg.header.stamp), info['source_timestamp']
            self.times.pictures[stamp_ns] = max(self.times.pictures.get(stamp_ns, 0), sent_ns)

        def _on_command(self, msg: Any, info: dict[str, int]) -> None:
            self.times.commands.append(info['source_timestamp'])

        def _on_chunk(self, msg: ActionChunk, info: dict[str, int]) -> None:
            stamp_ns = stamp_to_ns(msg.observation_stamp)
            self.times.chunks.append((stamp_ns, info['source_timestamp']))

        def _on_status(self, msg: PruningStatus) -> None:
            stamp_ns = stamp_to_ns(msg.observation_stamp)
            self.times.policy_ms[stamp_ns] = float(msg.latency_total_ms)

        def _on_diagnostics(self, msg: DiagnosticArray) -> None:
            for status in msg.status:
                name = status.name.removeprefix(PREFIX)
                values = {item.key: item.value for item in status.values}
                if name == 'state':
                    self.state = values.get('lifecycle', '')
                view = name.removeprefix('camera ')
                if view in self.received:
                    got = int(values.get('accepted', 0)) + int(values.get('refused', 0))
                    self.received[view].node_has(got)

    return Watcher()
