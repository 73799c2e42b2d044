"""`safe-pruner play`: a bag into the live node, by `ros2 bag play` where that is installed."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safe_pruner_ros.ros.bags.mapping import parse_map
from safe_pruner_ros.ros.bags.reader import Bag, BagError
from safe_pruner_ros.ros.bags.source import CLOCK_TOPIC
from safe_pruner_ros.runtime.config import RobotConfig

if TYPE_CHECKING:
    from safe_pruner_ros.ros.bags.player import Route


def main(arguments: argparse.Namespace, robot: RobotConfig) -> int:
    """0 when the bag is over or the user ended it. Wrong requests raise ValueError."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from safe_pruner_ros.ros.bags.player import Player, plan_routes, wait_for_listeners
    from safe_pruner_ros.ros.lifecycle import StopSignal, make_executor

    with Bag(arguments.bag) as bag:
        routes = plan_routes(bag, robot, parse_map(arguments.map), arguments.topic)
        if not 0 <= arguments.start_offset <= bag.duration_s:
            raise ValueError(
                f'--start-offset must lie in the {bag.duration_s:.1f} s of {bag.path}, got '
                f'{arguments.start_offset}'
            )
        clock = choose_clock(bag, arguments.clock)
        other = choose_player(arguments, routes, clock)
        stop = StopSignal()
        stop.install()
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        executor = make_executor()
        latched = [r.topic for r in routes if robot.instruction_topic in r.outputs]
        player = Player(bag, routes, clock, arguments.rate, latched)
        executor.add_node(player)
        try:
            missing = wait_for_listeners(player, executor, arguments.wait, stop.is_set)
            if missing and not stop.is_set():
                print(f'safe-pruner play: nobody listens to {missing}', file=sys.stderr)
            if arguments.start_paused:
                player.play_clock.pause()
            offset_s = arguments.start_offset
            while not (stop.is_set() or other):
                sent = player.play(executor, stop.is_set, offset_s)
                print(f'{sent} messages played', file=sys.stderr)
                offset_s = 0.0
                if not arguments.loop:
                    break
        finally:
            executor.shutdown()
            player.destroy_node()
            rclpy.try_shutdown()
            stop.restore()
    if other and not stop.is_set():
        sys.stderr.flush()
        os.execvp(other[0], other)  # signals reach it directly, and its exit code is ours
    return 0


def choose_clock(bag: Bag, asked: str) -> str:
    """As `BagSource` does. Raises BagError for a /clock that is not there."""
    has_clock = bool(bag.counts.get(CLOCK_TOPIC))
    if asked == 'topic' and not has_clock:
        raise BagError(f'{bag.path}: has no messages on {CLOCK_TOPIC}; use --clock record')
    return ('topic' if has_clock else 'record') if asked == 'auto' else asked


def choose_player(arguments: argparse.Namespace, routes: Sequence[Route], clock: str) -> list[str]:
    """Command line of `ros2 bag play`; [] for our own. Raises ValueError for 'ros2' where it is
    not installed or cannot do what is asked for."""
    if arguments.player == 'own':
        return []
    problems = []
    if not has_ros2_bag():
        problems.append('ros2 bag is not installed')
    if not (arguments.bag / 'metadata.yaml').is_file():
        problems.append('it plays rosbag2 folders only')
    if clock == 'header':
        problems.append('it has no clock of header stamps')
    if any(len(route.outputs) > 1 for route in routes):
        problems.append('it plays a topic once')
    if problems and arguments.player == 'ros2':
        raise ValueError(f'--player ros2: {"; ".join(problems)}; use --player own')
    return [] if problems else ros2_bag_play(arguments, routes, clock)


def has_ros2_bag() -> bool:
    from ament_index_python.packages import PackageNotFoundError, get_package_prefix

    try:
        get_package_prefix('ros2bag')
    except PackageNotFoundError:
        return False
    return shutil.which('ros2') is not None


def ros2_bag_play(arguments: argparse.Namespace, routes: Sequence[Route], clock: str) -> list[str]:
    """Only what our node reads; the bag's /clock, or one of the record times."""
    command = ['ros2', 'bag', 'play', str(arguments.bag), '--rate', f'{arguments.rate:g}']
    command += ['--loop'] if arguments.loop else []
    command += ['--start-paused'] if arguments.start_paused else []
    if arguments.start_offset:
        command += ['--start-offset', f'{arguments.start_offset:g}']
    command += ['--clock', '100'] if clock == 'record' else []
    command += ['--topics', *(route.topic for route in routes)]
    command += [CLOCK_TOPIC] if clock == 'topic' else []
    renamed = [f'{r.topic}:={r.outputs[0]}' for r in routes if r.outputs[0] != r.topic]
    return [*command, *(['--remap', *renamed] if renamed else [])]
