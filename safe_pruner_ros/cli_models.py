"""`safe-pruner` commands about models and checkpoints: flops and preflight."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from safe_pruner_ros.cli_common import add_command, at_least, names, ratios


def add_commands(commands: Any) -> None:
    _add_flops(commands)
    _add_preflight(commands)


# ---- flops


def _add_flops(commands: Any) -> None:
    parser = add_command(
        commands,
        'flops',
        _flops,
        "arithmetic of a policy step by stage, beside the paper's figures",
        'Counted from the published sizes of the models: no weights, no GPU, no run.',
    )
    parser.add_argument('--models', default='', help='comma separated; empty: all')
    parser.add_argument('--methods', default='', help='comma separated; empty: all')
    parser.add_argument('--retention', default='0.3,0.2,0.1', help='ratios in (0, 1]')
    parser.add_argument(
        '--keyframe-share', default='0,0.08', help='shares of key timesteps, comma separated'
    )
    parser.add_argument('--gpus', default='', help='for the roofline, comma separated; empty: all')
    parser.add_argument('--json', action='store_true', help='rows instead of tables')


def _flops(arguments: argparse.Namespace) -> int:
    for name in ('models', 'methods', 'gpus'):
        setattr(arguments, name, names(getattr(arguments, name)))
    retention = ratios(arguments.retention)
    shares = ratios(arguments.keyframe_share, '--keyframe-share')
    command = import_module('safe_pruner_ros.evaluation.flops.command')
    return int(command.main(arguments, retention, shares))


# ---- preflight


def _add_preflight(commands: Any) -> None:
    parser = add_command(
        commands,
        'preflight',
        _preflight,
        'whether robot file, policy file, checkpoint and live topics fit, and what to fix',
        'One line a finding. Loads no weights of a big policy unless asked to measure. Exit code '
        '1 when something stands in the way.',
    )
    parser.add_argument(
        '--robot-file', default='sim', help='robot: a name in config/robots, or a path'
    )
    parser.add_argument(
        '--policy-file', default='embedded', help='policy: a name in config/policies, or a path'
    )
    parser.add_argument('--checkpoint', default='', help="weights; empty: the policy file's")
    parser.add_argument('--device', default='', help="torch device; empty: the policy file's")
    parser.add_argument(
        '--topics',
        default='auto',
        choices=('auto', 'on', 'off'),
        help='look at live topics; auto: where other nodes are up',
    )
    parser.add_argument('--seconds', type=float, default=3.0, help='how long topics are watched')
    parser.add_argument(
        '--measure', action='store_true', help='load the weights and time a policy step on the '
        'device: do chunks arrive in time?'
    )  # fmt: skip
    parser.add_argument('--sim-time', action='store_true', help='stamps belong to /clock')
    parser.add_argument('--json', action='store_true', help='one JSON document instead of lines')


def _preflight(arguments: argparse.Namespace) -> int:
    at_least('--seconds', arguments.seconds, 0.5)
    return int(import_module('safe_pruner_ros.ros.preflight').main(arguments))
