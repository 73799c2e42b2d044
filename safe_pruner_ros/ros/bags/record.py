"""`safe-pruner record`: cameras, joints, commands and what our node says -> an mcap bag."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from safe_pruner_ros.ros.bags.recorder import Recorder, wanted_topics
from safe_pruner_ros.ros.bags.writer import BagWriter, WriterThread
from safe_pruner_ros.ros.demo.processes import (
    ChildDied,
    Children,
    private_domain,
    ros_arguments,
)
from safe_pruner_ros.ros.discovery import describe_discovery
from safe_pruner_ros.ros.lifecycle import StopSignal, spin_until
from safe_pruner_ros.ros.resources import fastdds_profile
from safe_pruner_ros.runtime.config import RobotConfig

MIN_FREE_BYTES = 200 * 1024 * 1024
PROGRESS_PERIOD_S = 1.0
DRAIN_S = 0.5
FIRST_MESSAGE_S = 180.0


def main(arguments: argparse.Namespace, robot: RobotConfig) -> int:
    """Record until SIGINT, SIGTERM or ``--duration``. 0; 1 if something of it was lost.

    ValueError when the folder exists.
    """
    try:
        return _record(arguments, robot)
    except OSError as error:  # not even the end of the file could be written
        print(f'safe-pruner record: {error}; try "safe-pruner repair"', file=sys.stderr)
        return 1


def _record(arguments: argparse.Namespace, robot: RobotConfig) -> int:
    folder = arguments.out or Path('out/record') / datetime.now().strftime('%Y%m%d_%H%M%S')
    is_wanted = wanted_topics(robot, arguments.node, arguments.topic, arguments.overlays)
    stop = StopSignal()
    with ExitStack() as stack:
        writer = stack.enter_context(BagWriter(folder, arguments.compression))
        thread = stack.enter_context(WriterThread(writer))
        stop.install()
        stack.callback(stop.restore)
        check = _start_simulation(stack, arguments, folder) if arguments.sim else lambda: None
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        # Not the events executor: in rclpy 7.1.6 it has no message info for raw subscriptions.
        executor = SingleThreadedExecutor()
        # A simulation begins when the policy does.
        begins = f'{arguments.node}/status' if arguments.sim else ''
        recorder = Recorder(
            is_wanted, thread.announce, thread.put, begins, [robot.instruction_topic]
        )
        executor.add_node(recorder)
        print(f'recording to {folder}; end with Ctrl-C', file=sys.stderr)
        progress = _Progress(recorder, thread, folder, arguments.duration, begins, check)
        try:
            spin_until(executor, stop, until=progress.is_over)
            # What was published before the end is still under way.
            deadline_s = time.monotonic() + DRAIN_S
            while time.monotonic() < deadline_s:
                executor.spin_once(timeout_sec=DRAIN_S / 5)
        finally:
            executor.shutdown()
            recorder.destroy_node()
            rclpy.try_shutdown()
    return _report(folder, recorder, thread)


def _start_simulation(
    stack: ExitStack, arguments: argparse.Namespace, folder: Path
) -> Callable[[], None]:
    """Simulator and policy node as children, in a DDS domain where no robot is. Returns what
    raises ChildDied when one of them has ended."""
    environment = private_domain()
    # As the demo does: OpenMP threads that wait for a taken core double a policy step.
    threads = max(1, len(os.sched_getaffinity(0)) // 4)
    environment['OMP_NUM_THREADS'] = os.environ.get('OMP_NUM_THREADS') or str(threads)
    os.environ.update(environment)  # this process joins that domain, too
    logs = folder.with_name(f'{folder.name}_logs')
    children = stack.enter_context(Children(logs, environment))
    children.start(
        'node',
        'safe_pruner_ros.ros.node',
        ros_arguments(
            robot_file=arguments.robot_file,
            policy_file=arguments.policy_file,
            use_sim_time=True,
            autostart=True,
        ),
    )
    simulator = ros_arguments(
        robot_file=arguments.robot_file, task=arguments.task, seed=arguments.seed
    )
    children.start('sim', 'safe_pruner_ros.ros.sim_node', simulator)
    return children.check


class _Progress:
    """A line on the terminal, and when recording is over. ``begins``: topic whose first message
    starts the duration; '' any."""

    def __init__(
        self,
        recorder: Recorder,
        thread: WriterThread,
        folder: Path,
        duration_s: float,
        begins: str,
        check: Callable[[], None],
    ) -> None:
        self._recorder, self._thread, self._folder = recorder, thread, folder
        self._duration_s, self._began_s = duration_s, 0.0
        self._started_s, self._begins = time.monotonic(), begins
        self._check, self._looked_s = check, 0.0

    def is_over(self) -> bool:
        now_s = time.monotonic()
        topics = self._recorder.topics
        messages = sum(topic.messages for topic in topics.values())
        first = topics[self._begins].messages if self._begins in topics else 0
        has_begun = first if self._begins else messages
        if has_begun and not self._began_s:
            self._began_s = now_s  # --duration counts from the first message
        if self._duration_s and not self._began_s and now_s - self._started_s > FIRST_MESSAGE_S:
            self._thread.failure = f'nothing to record came within {FIRST_MESSAGE_S:.0f} s' + (
                f' on {self._begins}; see the logs beside the bag' if self._begins else ''
            )
        if now_s - self._looked_s > PROGRESS_PERIOD_S:
            self._looked_s = now_s
            self._look(messages)
        since_s = now_s - self._began_s if self._began_s else 0.0
        over = bool(self._duration_s) and since_s >= self._duration_s
        return over or bool(self._thread.failure)

    def _look(self, messages: int) -> None:
        try:
            self._check()
        except ChildDied as error:
            self._thread.failure = str(error)
        if shutil.disk_usage(self._folder).free < MIN_FREE_BYTES:
            self._thread.failure = (
                f'less than {MIN_FREE_BYTES >> 20} MiB are free at {self._folder}; stopped while '
                'the bag can still be closed'
            )
        if sys.stderr.isatty():
            topics = self._recorder.topics.values()
            megabytes = sum(topic.size_bytes for topic in topics) / 1e6
            text = f'{len(topics)} topics, {messages} messages, {megabytes:.0f} MB'
            print(f'\r{text} ', end='', file=sys.stderr, flush=True)


def _report(folder: Path, recorder: Recorder, thread: WriterThread) -> int:
    for topic, record in sorted(recorder.topics.items()):
        lost = f', {record.lost} LOST on the way' if record.lost else ''
        print(f'{record.messages:8d}  {topic} ({record.kind}{lost})')
    for topic, reason in sorted(recorder.refused.items()):
        print(f'       -  {topic}: not recorded, {reason}')
    problems = [thread.failure] if thread.failure else []
    if thread.dropped:
        problems.append(f'{thread.dropped} messages were dropped: the disk is too slow')
    if any(r.lost and r.kind.endswith('Image') for r in recorder.topics.values()):
        print(
            'pictures that are lost on one machine: publish them with the Fast DDS profile '
            f'{fastdds_profile()}',
            file=sys.stderr,
        )
    if not recorder.topics:
        problems.append(
            'nothing was published; start the drivers, correct the topics of the robot file, or '
            f'{describe_discovery()}'
        )
    for problem in problems:
        print(f'safe-pruner record: {problem}', file=sys.stderr)
    print(f'written to {folder}')
    return 1 if problems else 0
