"""`safe-pruner demo`: simulator and policy node as two processes over DDS, watched by a third.

Five scenes, five instructions. What the node publishes while it works becomes summary.json,
overlay.mp4 and timeline.png. Children are ended whatever happens here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.evaluation.demo.record import DemoRecord, EpisodeRecord
from safe_pruner_ros.evaluation.demo.screen import LiveScreen, PlainScreen, Screen
from safe_pruner_ros.evaluation.plan import parse_seeds
from safe_pruner_ros.ros.demo.processes import (
    ChildDied,
    Children,
    private_domain,
    ros_arguments,
)
from safe_pruner_ros.ros.resources import config_file
from safe_pruner_ros.runtime.code_and_machine import git_commit, machine
from safe_pruner_ros.runtime.config_yaml import load_config
from safe_pruner_ros.sim.tasks.catalog import get_task

# Scenes that serve neither training nor any choice or reported rate.
DEMO_SEEDS = (800_000, 800_001, 800_002, 800_003, 800_004)
WAITING_SEED = 800_999  # the scene while everything starts
EPISODE_LIMIT_FACTOR = 1.7  # of the task's own limit: a live robot also waits and holds
AFTERWARDS_S = 0.7  # recorded after success: the arm leaves
START_LIMIT_S = 90.0
CALL_LIMIT_S = 15.0
SPIN_S = 0.05
REPORT_RESERVE_S = 60.0  # of --timeout, for the film
NEEDED_SHARE = 0.8
# Simulated per wall time. A machine that cannot render or compute in time gets a slower world, not
# a blind robot: the node holds the arms when pictures are older than 0.3 s of simulated time.
RATE_FACTORS = (1.0, 0.5, 0.25, 0.125)
PROBE_S = 2.5
MAX_PICTURE_GAP_S = 0.15
MAX_AGE_S = 0.15  # of an observation when its actions are ready


class DemoFailed(RuntimeError):
    """The demo could not be carried out; the message says why."""


def main(arguments: argparse.Namespace) -> int:
    """0 when at least 80 % of the episodes were solved, else 1. ValueError for wrong requests."""
    seeds = parse_seeds(arguments.seeds) if arguments.seeds else DEMO_SEEDS
    get_task(arguments.task)  # refuses unknown names
    policy_file = config_file('policies', arguments.policy_file).resolve()
    config = load_config(config_file('robots', 'sim'), policy_file)
    if config.policy.name != 'embedded':
        raise ValueError(
            f'{policy_file} is of policy {config.policy.name!r}; the demo has the embedded one, '
            'which is what the simulated robot was trained for'
        )
    arguments.policy_file = str(policy_file)
    robot = config.robot
    arguments.method = arguments.method or config.pruner.method
    if arguments.retention is None:
        arguments.retention = config.pruner.retention_ratio
    build_pruner(arguments.method, 12, **_ratio(arguments))  # refuses unknown names and ratios
    if arguments.checkpoint and not Path(arguments.checkpoint).is_file():
        raise FileNotFoundError(f'no weights file at {arguments.checkpoint}')
    signal.signal(signal.SIGTERM, _interrupt)
    environment = private_domain()
    # Physics, pictures, policy and this process share the cores; OpenMP threads that wait for a
    # taken core more than double a policy step.
    threads = max(1, len(os.sched_getaffinity(0)) // 4)
    environment['OMP_NUM_THREADS'] = os.environ.get('OMP_NUM_THREADS') or str(threads)
    os.environ.update(environment)
    title = (
        f'safe-pruner demo: {arguments.method} at {arguments.retention:g}, '
        f'ROS_DOMAIN_ID={environment["ROS_DOMAIN_ID"]}'
    )
    is_plain = arguments.plain or not sys.stdout.isatty()
    screen: Screen = PlainScreen() if is_plain else LiveScreen(title)
    began_s = time.monotonic()
    ratio = float(_ratio(arguments).get('retention_ratio', 1.0))
    record = DemoRecord(arguments.method, ratio, tuple(camera.name for camera in robot.cameras))
    problem = ''
    with screen:
        if is_plain:
            screen.say(title)
        try:
            with Children(arguments.out / 'logs', environment) as children:
                demo = _Demo(arguments, robot, record, screen, children, began_s)
                try:
                    demo.run(seeds)
                finally:
                    screen.say('stopping both processes')
                    demo.close()
        except (ChildDied, DemoFailed) as error:
            problem = str(error)
        if any(episode.pictures for episode in record.episodes):
            _report(record, arguments.out, screen, began_s, environment)
    return _verdict(record, len(seeds), problem, arguments.out)


def _ratio(arguments: argparse.Namespace) -> dict[str, float]:
    from safe_pruner_ros.core.catalog import accepted_settings

    takes_ratio = 'retention_ratio' in accepted_settings(arguments.method)
    return {'retention_ratio': arguments.retention} if takes_ratio else {}


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Demo:
    """The live part. ROS is imported here, after the domain has been chosen."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        robot: Any,
        record: DemoRecord,
        screen: Screen,
        children: Children,
        began_s: float,
    ) -> None:
        self._record, self._screen, self._children = record, screen, children
        self._task = arguments.task
        self._limit_s = EPISODE_LIMIT_FACTOR * get_task(arguments.task).time_limit_s
        self._deadline_s = began_s + arguments.timeout - REPORT_RESERVE_S
        self._rates = [arguments.rate] if arguments.rate else list(RATE_FACTORS)
        screen.say('starting the simulator and the policy node')
        self._start_simulator()
        children.start(
            'policy', arguments.node_module, ros_arguments(**_node_parameters(arguments))
        )

        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from safe_pruner_ros.ros.demo.recorder import DemoRecorder
        from safe_pruner_ros.ros.demo.service_caller import ServiceCaller

        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._rclpy = rclpy
        self._recorder = DemoRecorder(robot, record)
        self._services = ServiceCaller(self._recorder, self._step)
        # The events executor of rclpy 7.1.6 cannot serve callbacks that take a message info.
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._recorder)

    def close(self) -> None:
        self._recorder.end()
        self._executor.shutdown()
        self._recorder.destroy_node()
        self._rclpy.try_shutdown()

    def run(self, seeds: tuple[int, ...]) -> None:
        self._start()
        for number, seed in enumerate(seeds, start=1):
            if time.monotonic() > self._deadline_s:
                raise DemoFailed(
                    f'time is up after {number - 1} of {len(seeds)} episodes; this machine is too '
                    'slow or too busy, try a longer --timeout'
                )
            self._episode(number, seed, len(seeds))

    def _start(self) -> None:
        recorder = self._recorder
        self._spin(lambda: bool(recorder.sim), START_LIMIT_S, 'the simulator did not come up')
        self._screen.say('the simulator runs; waiting for the policy node to load and warm up')
        self._spin(
            lambda: recorder.node_state.get('lifecycle') == 'active',
            START_LIMIT_S,
            'the policy node did not become active; see logs/policy.log in the output folder',
        )
        self._screen.say('both run; watching whether they keep up')
        while len(self._rates) > 1 and not self._keeps_up():
            self._rates.pop(0)
            self._screen.say(
                f'this machine is slow or busy: simulated time goes on at {self._rates[0]:g} of '
                'real time'
            )
            self._children.stop('sim')
            recorder.sim = {}
            self._start_simulator()
            self._spin(lambda: bool(recorder.sim), START_LIMIT_S, 'the simulator did not come up')
            # Its clock begins anew: what the node remembers is of another time.
            self._trigger('/safe_pruner/reset')
        self._record.rate_factor = self._rates[0]

    def _start_simulator(self) -> None:
        self._children.start(
            'sim',
            'safe_pruner_ros.ros.sim_node',
            ros_arguments(task=self._task, seed=WAITING_SEED, rate_factor=float(self._rates[0])),
        )

    def _keeps_up(self) -> bool:
        """Whether pictures and policy steps are fast enough for nine of ten policy steps."""
        recorder = self._recorder
        for patience_s in (PROBE_S, PROBE_S):  # the first ones of a process are slow
            recorder.picture_stamps_s.clear()
            recorder.ages_s.clear()
            end_s = time.monotonic() + patience_s
            while time.monotonic() < end_s:
                self._step()
        gaps_s = [b - a for a, b in pairwise(recorder.picture_stamps_s)]
        return _ninth_of_ten(gaps_s) < MAX_PICTURE_GAP_S and (
            _ninth_of_ten(recorder.ages_s) < MAX_AGE_S
        )

    def _episode(self, number: int, seed: int, total: int) -> None:
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        recorder = self._recorder
        self._trigger('/safe_pruner/pause')
        parameters = [Parameter('seed', value=seed), Parameter('target', value=-1)]
        request = SetParameters.Request(parameters=[p.to_parameter_msg() for p in parameters])
        self._call(SetParameters, '/sim/set_parameters', request)
        scene = json.loads(self._trigger('/sim/reset'))
        self._spin(
            lambda: recorder.sim.get('episode') == scene['episode'],
            CALL_LIMIT_S,
            'the simulator did not start the episode',
        )
        self._trigger('/safe_pruner/reset')
        episode = EpisodeRecord(number, seed, scene['instruction'])
        recorder.begin(episode)
        self._screen.begin(episode, total)
        self._trigger('/safe_pruner/resume')
        try:
            self._watch(episode, left=total - number + 1)
        finally:
            recorder.end()
            self._screen.end(episode)

    def _watch(self, episode: EpisodeRecord, left: int) -> None:
        recorder, drawn_s = self._recorder, 0.0
        fair_share_s = (self._deadline_s - time.monotonic()) / left
        limit_s = time.monotonic() + min(2 * self._limit_s / self._rates[0], fair_share_s)
        until_s = math.inf
        while recorder.time_s < min(self._limit_s, until_s) and time.monotonic() < limit_s:
            self._step()
            if recorder.sim.get('success') and not episode.success:
                episode.success, until_s = True, recorder.time_s + AFTERWARDS_S
            if not episode.success:
                episode.duration_s = recorder.time_s
            if time.monotonic() - drawn_s > 0.15:
                drawn_s = time.monotonic()
                self._screen.update(recorder.live())
        if not episode.success:
            state = recorder.node_text
            episode.note = 'time is up' + ('' if state == 'RUN' else f'; node: {state}')

    # ---- waiting

    def _step(self) -> None:
        self._children.check()
        self._executor.spin_once(timeout_sec=SPIN_S)

    def _spin(self, until: Callable[[], bool], limit_s: float, problem: str) -> None:
        deadline_s = min(time.monotonic() + limit_s, self._deadline_s)
        while not until():
            if time.monotonic() > deadline_s:
                raise self._failed(problem)
            self._step()

    def _trigger(self, service: str) -> str:
        """Call a std_srvs/Trigger and return its message."""
        from std_srvs.srv import Trigger

        response = self._call(Trigger, service, Trigger.Request())
        if not response.success:
            raise DemoFailed(f'{service}: {response.message}')
        return str(response.message)

    def _call(self, kind: Any, service: str, request: Any) -> Any:
        try:
            return self._services.call(kind, service, request)
        except TimeoutError as error:
            raise self._failed(str(error)) from None

    def _failed(self, problem: str) -> DemoFailed:
        state = self._recorder.node_text
        return DemoFailed(problem + (f' (node: {state})' if state else ''))


def _ninth_of_ten(values: list[float]) -> float:
    return sorted(values)[int(0.9 * len(values))] if values else math.inf


def _node_parameters(arguments: argparse.Namespace) -> dict[str, object]:
    parameters: dict[str, object] = {
        'autostart': True,
        'use_sim_time': True,
        'activation_timeout_s': 30.0,
        'policy_file': arguments.policy_file,
        'pruner.method': arguments.method,
        **{f'pruner.{name}': float(value) for name, value in _ratio(arguments).items()},
    }
    if arguments.checkpoint:
        parameters['policy.checkpoint'] = str(Path(arguments.checkpoint).resolve())
    return parameters


def _report(
    record: DemoRecord, out: Path, screen: Screen, began_s: float, environment: dict[str, str]
) -> None:
    from safe_pruner_ros.evaluation.demo.summary import write_summary
    from safe_pruner_ros.evaluation.demo.timeline import draw_timeline
    from safe_pruner_ros.evaluation.demo.video import write_video

    live_s = time.monotonic() - began_s
    screen.say(f'drawing {out / "timeline.png"}')
    draw_timeline(record, out / 'timeline.png')
    screen.say(f'filming {out / "overlay.mp4"}')
    write_video(record, out / 'overlay.mp4')
    write_summary(
        record,
        out / 'summary.json',
        live_s=round(live_s, 1),
        wall_s=round(time.monotonic() - began_s, 1),
        commit=git_commit(),
        machine=machine(),
        ros_domain_id=int(environment['ROS_DOMAIN_ID']),
        omp_num_threads=environment['OMP_NUM_THREADS'],
    )
    screen.say(f'results are in {out}')


def _verdict(record: DemoRecord, wanted: int, problem: str, out: Path) -> int:
    needed = math.ceil(NEEDED_SHARE * wanted)
    solved = f'{record.successes} of {wanted} episodes solved (needed: {needed})'
    if problem:
        print(f'safe-pruner demo: FAILED: {problem}\n{solved}', file=sys.stderr)
        return 1
    if record.successes < needed:
        print(f'safe-pruner demo: FAILED: {solved}; see {out / "overlay.mp4"}', file=sys.stderr)
        return 1
    print(f'safe-pruner demo: {solved}. Watch {out / "overlay.mp4"}, look at '
          f'{out / "timeline.png"}')  # fmt: skip
    return 0
