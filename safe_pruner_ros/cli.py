"""`safe-pruner`: one command line for everything beside the node.

Sits on top of every room and imports each only when its command runs, so that `--help` is instant
and a missing ROS 2 is no obstacle to training or evaluation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from safe_pruner_ros import cli_bags, cli_evaluate, cli_models
from safe_pruner_ros.cli_common import (
    FAILED,
    PROGRAM,
    Command,
    UsageError,
    add_command,
    add_policy_arguments,
    at_least,
    import_ros,
    one_of,
    read_config,
    share,
    size,
)

# The package's word for wrong requests, and paths that are not what they should be.
WRONG_REQUESTS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return its exit code.

    0 done, 1 it ran and failed, 2 the request was wrong, 130 interrupted.
    """
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except KeyboardInterrupt:
        print(f'{PROGRAM} {parsed.name}: interrupted', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except WRONG_REQUESTS as error:
        if parsed.debug:
            raise
        print(f'{PROGRAM} {parsed.name}: error: {error}', file=sys.stderr)
        return USER_ERROR


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='SAFE-Pruner on a simulated dual-arm robot: watch it, train it, measure it.',
        epilog=f'"{PROGRAM} COMMAND --help" describes each command.',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of wrong requests')
    commands = parser.add_subparsers(metavar='COMMAND', required=True, dest='name')
    _add_demo(commands)
    _add_train(commands)
    cli_evaluate.add_commands(commands)
    _add_benchmark(commands)
    cli_models.add_commands(commands)
    cli_bags.add_commands(commands)
    return parser


# ---- demo


def _add_demo(commands: Any) -> None:
    parser = add_command(
        commands,
        'demo',
        _demo,
        'five episodes of the simulated robot under the real node, over DDS',
        'Writes summary.json, overlay.mp4 and timeline.png. Exit code 0 when at least '
        'four of five succeed.',
    )
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='where results go')
    parser.add_argument('--task', default='pick_place', help='task of the simulated robot')
    parser.add_argument('--seeds', default='', help='scenes, e.g. 800000:800005; empty: the usual')
    parser.add_argument(
        '--policy-file',
        default='embedded',
        help='settings of the pruning method: a name in config/policies, or a path',
    )
    parser.add_argument('--method', default='', help="pruning method; empty: the policy file's")
    parser.add_argument(
        '--retention', type=float, help="share of visual tokens kept; none: the policy file's"
    )
    parser.add_argument('--checkpoint', default='', help='weights file; empty: the shipped ones')
    parser.add_argument('--timeout', type=float, default=270.0, help='give up after, s')
    parser.add_argument(
        '--rate', type=float, default=0.0, help='simulated per wall time, up to 1; 0: as fast as '
        'this machine can show pictures'
    )  # fmt: skip
    parser.add_argument('--plain', action='store_true', help='plain lines instead of a live view')
    parser.add_argument(
        '--node-module', default='safe_pruner_ros.ros.node', help=argparse.SUPPRESS
    )  # another policy behind the same node, for tests


def _demo(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.rate <= 1:
        raise UsageError(f'--rate must be in [0, 1], got {arguments.rate}')
    at_least('--timeout', arguments.timeout, 60)
    return int(import_ros('demo.demo').main(arguments))


# ---- train


def _add_train(commands: Any) -> None:
    parser = add_command(
        commands,
        'train',
        _train,
        "train the embedded policy from nothing on the expert's demonstrations",
        'Made demonstrations and half-done training are found in --out and continued.',
    )
    parser.add_argument(
        '--recipe', default='all_tasks', help='all_tasks: one policy for every task; pick_place'
    )
    parser.add_argument('--out', type=Path, default=Path('runs/embedded'), help='run folder')
    parser.add_argument(
        '--processes',
        type=int,
        help='worker processes, which divide each batch; none: one a core, where that fits',
    )
    parser.add_argument('--device', default='cpu', help='torch device: cpu, cuda, cuda:0')
    parser.add_argument('--seed', type=int, default=0, help='scenes, initial weights and order')
    parser.add_argument(
        '--smoke', action='store_true', help='minutes long: every stage runs, nothing is learnt'
    )


def _train(arguments: argparse.Namespace) -> int:
    if arguments.processes is not None:
        at_least('--processes', arguments.processes, 1)
    at_least('--seed', arguments.seed, 0)
    return int(import_module('safe_pruner_ros.training.run').main(arguments))


# ---- benchmark

# What each of its three kinds reads, with defaults; an option of another kind is refused.
_MODEL = {'size': 'small', 'keyframe_share': 0.1, 'dtype': 'auto', 'graphs': False}
_STEPS = {'method': '', 'retention': None, 'threads': '2', 'rounds': 20, 'device': ''}
_SCENES = {'policy_file': 'embedded', 'settings': [], 'episodes': 4, 'task': 'pick_place'}
_NODE = {'seconds': 30.0, 'image_px': '256x256', 'camera_rate': 20.0}
_BENCHMARKS: dict[str, dict[str, Any]] = {
    '--model': {**_STEPS, **_MODEL},
    '--ros': {'checkpoint': '', **_NODE},
    'a policy file': {'checkpoint': '', **_STEPS, **_SCENES},
}


def _add_benchmark(commands: Any) -> None:
    parser = add_command(
        commands,
        'benchmark',
        _benchmark,
        'latency of a policy step, unpruned and pruned side by side in one run',
        'With --model: a big policy with random weights. With --ros: what the node adds, from '
        'camera to command, without a model. Else: the policy of a policy file.',
    )
    parser.add_argument(
        '--model', default='', help='openvla, openvla_oft, pi05 or embedded, with random weights'
    )
    parser.add_argument(
        '--size', help='of --model: full, small (full depth '
        'and token counts, about 100 M parameters) or tiny; none: small'
    )  # fmt: skip
    parser.add_argument(
        '--keyframe-share', type=float, help='of --model: share of key timesteps; none: 0.1'
    )
    parser.add_argument(
        '--dtype', help='of --model: float32, bfloat16, float16 or auto, bfloat16 on a GPU and '
        'float32 on a CPU; none: auto'
    )  # fmt: skip
    parser.add_argument(
        '--graphs', action='store_true', help='of --model: replay CUDA graphs; needs a GPU'
    )
    parser.add_argument(
        '--method', default='', help="pruning method to compare; empty: the policy file's, with "
        '--model safe_pruner as published'
    )  # fmt: skip
    parser.add_argument(
        '--retention', type=float, help="share of visual tokens kept; none: the policy file's, "
        'with --model 0.3'
    )  # fmt: skip
    parser.add_argument('--threads', help='torch threads, comma separated; none: 2')
    parser.add_argument('--episodes', type=int, help='recorded scenes to replay; none: 4')
    parser.add_argument('--rounds', type=int, help='replays of them; none: 20')
    parser.add_argument('--task', help='task of the scenes; none: pick_place')
    parser.add_argument('--ros', action='store_true', help='measure the node instead of a policy')
    parser.add_argument('--seconds', type=float, help='length of a --ros pass, s; none: 30')
    parser.add_argument('--image-px', help='pictures of --ros, width x height; none: 256x256')
    parser.add_argument('--camera-rate', type=float, help='pictures of --ros, Hz; none: 20')
    parser.add_argument('--out', type=Path, default=Path('out/benchmark'), help='results folder')
    add_policy_arguments(parser)
    # Not given is None, so that an option that would be ignored can be told from a default.
    parser.set_defaults(**dict.fromkeys(name for kind in _BENCHMARKS.values() for name in kind))


def _choose_benchmark(arguments: argparse.Namespace) -> None:
    """Fill in the defaults of the kind that was asked for; UsageError for another's option."""
    if arguments.ros and arguments.model:
        raise UsageError('--ros measures the node without a big policy; leave out --model')
    kind = '--model' if arguments.model else '--ros' if arguments.ros else 'a policy file'
    read = _BENCHMARKS[kind]
    for other, options in _BENCHMARKS.items():
        for name in options:
            if name not in read and getattr(arguments, name) is not None:
                option = '--set' if name == 'settings' else f'--{name.replace("_", "-")}'
                raise UsageError(
                    f'{option} is for a benchmark of {other} and would be ignored with {kind}; '
                    'leave it out'
                )
    for name, default in read.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)


def _benchmark(arguments: argparse.Namespace) -> int:
    _choose_benchmark(arguments)
    if arguments.ros:
        at_least('--seconds', arguments.seconds, 2)
        arguments.image_px = size(arguments.image_px)
        return int(import_ros('benchmark').main(arguments))
    at_least('--rounds', arguments.rounds, 1)
    if arguments.model:
        one_of('--dtype', arguments.dtype, ('auto', 'float32', 'bfloat16', 'float16'))
        share('--keyframe-share', arguments.keyframe_share)
        arguments.method = arguments.method or 'safe_pruner'
        arguments.retention = 0.3 if arguments.retention is None else arguments.retention
        return int(
            import_module('safe_pruner_ros.evaluation.model_benchmark.command').main(arguments)
        )
    at_least('--episodes', arguments.episodes, 1)
    config, configured = read_config(arguments, 'sim')
    arguments.method = arguments.method or config.pruner.method
    if arguments.retention is None:
        arguments.retention = config.pruner.retention_ratio
    benchmark = import_module('safe_pruner_ros.evaluation.benchmark')
    return int(benchmark.main(arguments, config.policy, configured))


def run() -> NoReturn:
    """Entry point of the installed command."""
    sys.exit(main())


if __name__ == '__main__':
    run()
