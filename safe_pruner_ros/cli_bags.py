"""`safe-pruner` commands about recordings: replay, and what makes and plays them."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from safe_pruner_ros.cli_common import (
    UsageError,
    add_command,
    add_method_arguments,
    add_policy_arguments,
    at_least,
    import_ros,
    ratios,
    read_config,
    read_robot,
)


def add_commands(commands: Any) -> None:
    _add_replay(commands)
    _add_calibrate(commands)
    _add_record(commands)
    _add_repair(commands)
    _add_play(commands)


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
        'of the limits given. Needs no ROS, and the memory of one policy: methods share it.',
    )
    # '?' only for a better word than argparse has when an option before it took it.
    parser.add_argument(
        'bag', type=Path, nargs='?', help='rosbag2 folder, .mcap, .db3, or ROS 1 .bag'
    )
    _add_bag_arguments(parser)
    add_method_arguments(parser, "the policy file's", "the policy file's")
    _add_limits(parser)
    parser.add_argument('--no-video', action='store_true', help='write no overlay.mp4')
    parser.add_argument('--out', type=Path, default=Path('out/replay'), help='results folder')
    add_policy_arguments(parser)


def _replay(arguments: argparse.Namespace) -> int:
    if arguments.bag is None:
        raise UsageError(
            'which recording? Name it before --methods and --retention, which take every word '
            'that follows them'
        )
    at_least('--deadline-ms', arguments.deadline_ms, 0)
    plan = import_module('safe_pruner_ros.evaluation.plan')
    methods = import_module('safe_pruner_ros.evaluation.methods')
    settings = methods.parse_settings(arguments.settings)
    config, configured = read_config(arguments, arguments.robot_file)
    chosen = methods.split_methods(arguments.methods or [config.pruner.method])
    ratio = config.pruner.retention_ratio
    kept = methods.parse_ratios(arguments.retention) if arguments.retention else [ratio]
    causal = config.policy.name in import_module('safe_pruner_ros.policies.catalog').CAUSAL
    cells = plan.build_cells(chosen, kept, settings, configured, causal=causal)
    return int(import_module('safe_pruner_ros.ros.bags.replay').main(arguments, config, cells))


# ---- calibrate


def _add_calibrate(commands: Any) -> None:
    parser = add_command(
        commands,
        'calibrate',
        _calibrate,
        'the retention and tau that prune most on your recordings under a limit',
        'Writes calibration.json, calibration.html and curve.svg. With several recordings each is '
        'judged by the choice of the others. Exit code 1 when no setting keeps the limits, or '
        'the choice does not hold. Needs no ROS.',
    )
    parser.add_argument('bag', type=Path, nargs='+', help='as for replay; several are better')
    _add_bag_arguments(parser)
    parser.add_argument('--method', default='', help="pruning method; empty: the policy file's")
    parser.add_argument(
        '--retention', default='0.7,0.5,0.4,0.3,0.2,0.1', help='ratios to try, in (0, 1)'
    )
    parser.add_argument(
        '--thresholds', default='0.3,0.5,0.7,0.9', help='similarity_threshold to try, in [0, 1]'
    )
    _add_limits(parser)
    parser.add_argument('--out', type=Path, default=Path('out/calibrate'), help='results folder')
    add_policy_arguments(parser)


def _calibrate(arguments: argparse.Namespace) -> int:
    at_least('--deadline-ms', arguments.deadline_ms, 0)
    plan = import_module('safe_pruner_ros.evaluation.plan')
    config, configured = read_config(arguments, arguments.robot_file)
    method = arguments.method or config.pruner.method
    tried = ratios(arguments.retention)
    taus = ratios(arguments.thresholds, '--thresholds')
    parse_settings = import_module('safe_pruner_ros.evaluation.methods').parse_settings
    settings = parse_settings(arguments.settings)
    (cell,) = plan.build_cells([method], tried[:1], settings, configured)
    calibrate = import_module('safe_pruner_ros.ros.bags.calibrate')
    return int(calibrate.main(arguments, config, method, cell.settings, tried, taus))


# ---- record


def _add_record(commands: Any) -> None:
    parser = add_command(
        commands,
        'record',
        _record,
        'cameras, joints, commands and the status of our node, as an mcap bag',
        'What is recorded is what the robot file names, and every topic of the node. Ends with '
        'Ctrl-C. Exit code 1 when something was lost. "ros2 bag" and Foxglove read the result.',
    )
    parser.add_argument('--out', type=Path, help='new folder; default: out/record/<date>_<time>')
    parser.add_argument(
        '--robot-file', default='sim', help='topics: a name in config/robots, or a path'
    )
    parser.add_argument('--node', default='/safe_pruner', help='full name of the policy node')
    parser.add_argument('--topic', action='append', default=[], help='one more topic; repeatable')
    parser.add_argument('--overlays', action='store_true', help='the overlay pictures as well')
    parser.add_argument('--duration', type=float, default=0.0, help='end after, s; 0: never')
    parser.add_argument(
        '--compression', default='none', choices=('none', 'zstd'), help='of the chunks'
    )
    parser.add_argument(
        '--sim', action='store_true', help='start the simulated robot and the policy node as well'
    )
    parser.add_argument('--seed', type=int, default=800_000, help='scene of --sim')
    parser.add_argument('--task', default='pick_place', help='task of --sim')
    parser.add_argument('--policy-file', default='embedded', help='policy of --sim')


def _record(arguments: argparse.Namespace) -> int:
    at_least('--duration', arguments.duration, 0)
    for topic in arguments.topic:
        if not topic.startswith('/'):
            raise UsageError(f'--topic takes a full topic name like /imu, got {topic!r}')
    policy = None
    if arguments.sim:  # before anything starts
        at_least('--seed', arguments.seed, 0)
        import_module('safe_pruner_ros.sim.tasks.catalog').get_task(arguments.task)
        policy = arguments.policy_file
    robot = read_robot(arguments.robot_file, policy)
    return int(import_ros('bags.record').main(arguments, robot))


# ---- repair


def _add_repair(commands: Any) -> None:
    parser = add_command(
        commands,
        'repair',
        _repair,
        'finish an mcap recording whose recorder was killed',
        'In place: cuts a torn last record off, closes the file, writes metadata.yaml.',
    )
    parser.add_argument('bag', type=Path, help='rosbag2 folder, or .mcap file')


def _repair(arguments: argparse.Namespace) -> int:
    repaired = import_module('safe_pruner_ros.ros.bags.repair').repair(arguments.bag)
    done = 'was complete already' if repaired.was_complete else 'is complete now'
    cut = f'; {repaired.cut_bytes} bytes of a torn record were cut' if repaired.cut_bytes else ''
    print(f'{repaired.path}: {done}, {repaired.messages} messages{cut}')
    return 0


# ---- play


def _add_play(commands: Any) -> None:
    parser = add_command(
        commands,
        'play',
        _play,
        'play a bag into the live node, with /clock; commands in it are left out',
        'By "ros2 bag play" where it is installed, once the node listens; else by a player of our '
        'own, with the services /safe_pruner_play/pause and /safe_pruner_play/resume. The node '
        'needs use_sim_time.',
    )
    parser.add_argument('bag', type=Path, help='rosbag2 folder, .mcap, .db3, or ROS 1 .bag')
    parser.add_argument(
        '--robot-file', default='sim', help='topics: a name in config/robots, or a path'
    )
    _add_map(parser)
    _add_clock(parser)
    parser.add_argument('--topic', action='append', default=[], help='one more topic; repeatable')
    parser.add_argument('--rate', type=float, default=1.0, help='times real time')
    parser.add_argument(
        '--loop', action='store_true', help='again and again; the clock jumps back'
    )
    parser.add_argument('--start-offset', type=float, default=0.0, help='begin here, s')
    parser.add_argument('--start-paused', action='store_true', help='wait for ~/resume')
    parser.add_argument(
        '--player', default='auto', choices=('auto', 'own', 'ros2'), help='who plays it'
    )
    parser.add_argument(
        '--wait', type=float, default=10.0, help='for somebody to listen, at most, s'
    )


def _play(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.rate <= 1000:
        raise UsageError(f'--rate must be in (0, 1000], got {arguments.rate}')
    at_least('--wait', arguments.wait, 0)
    return int(import_ros('bags.play').main(arguments, read_robot(arguments.robot_file)))
