"""`safe-pruner` commands about recordings: replay, and what makes and plays them."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from safe_pruner_ros.cli_common import (
    add_command,
    add_policy_arguments,
    at_least,
    names,
    ratios,
    read_config,
)


def add_commands(commands: Any) -> None:
    _add_replay(commands)


def _add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """How a recording becomes observations."""
    parser.add_argument(
        '--robot-file', default='sim', help='topics and joints: a name in config/robots, or a path'
    )
    _add_map(parser)
    parser.add_argument('--instruction', default='', help="instead of the bag's own")
    _add_clock(parser)


def _add_map(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--map',
        action='append',
        default=[],
        metavar='NAME=TOPIC',
        help='another topic for a view, state source, sink or "instruction" of the robot file; '
        'joint.NAME=OTHER renames a joint of the messages; repeatable',
    )


def _add_clock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--clock',
        default='auto',
        choices=('auto', 'record', 'header', 'topic'),
        help="the node's clock: record times, header stamps, or the bag's /clock; auto: /clock "
        'where it was recorded, else record times',
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for name, kind, what in (
        ('--max-deviation-rad', float, 'of any arm joint from unpruned'),
        ('--max-deviation-p99-rad', float, 'the same, 99th percentile'),
        ('--max-gripper-flips', int, 'targets closed in one, open in the other'),
        ('--max-missed-deadlines', int, 'policy steps slower than the deadline'),
        ('--max-latency-p99-ms', float, 'of a policy step'),
    ):
        parser.add_argument(name, type=kind, help=f'limit: {what}')
    parser.add_argument(
        '--deadline-ms', type=float, default=0.0, help='of a policy step; 0: as long as the '
        'executed actions of a chunk take'
    )  # fmt: skip


# ---- replay


def _add_replay(commands: Any) -> None:
    parser = add_command(
        commands,
        'replay',
        _replay,
        'what pruning would have changed on a recording of your robot',
        'Writes report.json, report.html and overlay.mp4. Exit code 1 when a method exceeds one '
        'of the limits given. Needs no ROS.',
    )
    parser.add_argument('bag', type=Path, help='rosbag2 folder, .mcap, .db3, or ROS 1 .bag')
    _add_bag_arguments(parser)
    parser.add_argument('--methods', default='safe_pruner', help='comma separated')
    parser.add_argument('--retention', default='0.3', help='ratios in (0, 1], comma separated')
    _add_limits(parser)
    parser.add_argument('--no-video', action='store_true', help='write no overlay.mp4')
    parser.add_argument('--out', type=Path, default=Path('out/replay'), help='results folder')
    add_policy_arguments(parser)


def _replay(arguments: argparse.Namespace) -> int:
    at_least('--deadline-ms', arguments.deadline_ms, 0)
    plan = import_module('safe_pruner_ros.evaluation.plan')
    settings = plan.parse_settings(arguments.settings)
    config, configured = read_config(arguments, arguments.robot_file)
    cells = plan.build_cells(
        names(arguments.methods), ratios(arguments.retention), settings, configured
    )
    return int(import_module('safe_pruner_ros.ros.replay').main(arguments, config, cells))
