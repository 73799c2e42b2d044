"""`safe-pruner play`, and the command line of `ros2 bag play` that does the same."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from safe_pruner_ros.ros.bag_mapping import parse_map
from safe_pruner_ros.ros.bag_reader import Bag, BagError
from safe_pruner_ros.ros.bag_source import CLOCK_TOPIC
from safe_pruner_ros.runtime.config import RobotConfig


def main(arguments: argparse.Namespace, robot: RobotConfig) -> int:
    """0 when the bag is over or the user ended it. Wrong requests raise ValueError."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from safe_pruner_ros.ros.lifecycle import StopSignal, make_executor
    from safe_pruner_ros.ros.player import Player, plan_routes, wait_for_listeners

    with Bag(arguments.bag) as bag:
        routes = plan_routes(bag, robot, parse_map(arguments.map), arguments.topic)
        if not 0 <= arguments.start_offset <= bag.duration_s:
            raise ValueError(
                f'--start-offset must lie in the {bag.duration_s:.1f} s of {bag.path}, got '
                f'{arguments.start_offset}'
            )
        clock = choose_clock(bag, arguments.clock)
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
            while not stop.is_set():
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
    return 0


def choose_clock(bag: Bag, asked: str) -> str:
    """As `BagSource` does. Raises BagError for a /clock that is not there."""
    has_clock = bool(bag.counts.get(CLOCK_TOPIC))
    if asked == 'topic' and not has_clock:
        raise BagError(f'{bag.path}: has no messages on {CLOCK_TOPIC}; use --clock record')
    return ('topic' if has_clock else 'record') if asked == 'auto' else asked


def ros2_bag_play(
    bag: Path,
    topics: Iterable[str],
    has_clock: bool,
    rate: float,
    loop: bool,
    start_offset_s: float,
    start_paused: bool,
) -> list[str]:
    """The same with `ros2 bag play`: only ``topics``, and the bag's /clock or one of its own."""
    command = ['ros2', 'bag', 'play', str(bag), '--rate', f'{rate:g}']
    command += ['--loop'] if loop else []
    command += ['--start-paused'] if start_paused else []
    command += ['--start-offset', f'{start_offset_s:g}'] if start_offset_s else []
    command += [] if has_clock else ['--clock', '100']
    return [*command, '--topics', *topics, *([CLOCK_TOPIC] if has_clock else [])]
