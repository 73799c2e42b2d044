"""What the commands of `safe-pruner` share: errors, arguments that several take, values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

PROGRAM = 'safe-pruner'
FAILED = 1
Command = Callable[[argparse.Namespace], int]


class UsageError(ValueError):
    """What the user asked for cannot be done; the message says why and what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in ('', None, False, []):
            return action.help
        return super()._get_help_string(action)


def add_command(
    commands: Any, name: str, command: Command, summary: str, details: str = ''
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f'{summary[0].upper()}{summary[1:]}. {details}',
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def add_method_arguments(
    parser: argparse.ArgumentParser, no_methods: str, no_retention: str
) -> None:
    """``--methods`` and ``--retention``, as `evaluation/methods.py` reads them."""
    parser.add_argument(
        '--methods', nargs='+', default=[], metavar='METHOD', help='names, with settings as '
        '"safe_pruner:tau=0.9,alpha=0.5", a ratio of its own as "fastv@0.25"; '
        f'"safe_pruner:published" leaves the policy file out; none: {no_methods}'
    )  # fmt: skip
    parser.add_argument(
        '--retention', nargs='+', default=[], metavar='RATIO', help=f'in (0, 1]; '
        f'none: {no_retention}'
    )  # fmt: skip


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--policy-file',
        default='embedded',
        help='policy and the settings of its pruning method, as the node reads them: a name in '
        'config/policies, or a path; methods that do not share them run as published',
    )
    parser.add_argument('--checkpoint', default='', help="weights file; empty: the policy file's")
    parser.add_argument('--device', default='', help="torch device; empty: the policy file's")
    parser.add_argument(
        '--set',
        dest='settings',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a setting of the pruning method, e.g. similarity_threshold=0.5; repeatable; '
        'METHOD.NAME=VALUE sets it for one method only',
    )


def read_policy_file(arguments: argparse.Namespace) -> tuple[Any, dict[str, dict[str, Any]]]:
    """(PolicyConfig with the command line's changes, method -> settings the file has for it)."""
    config, configured = read_config(arguments, 'sim')
    return config.policy, configured


def read_config(
    arguments: argparse.Namespace, robot: str
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The same with the whole Config, for the robot file ``robot``."""
    resources = import_module('safe_pruner_ros.ros.resources')  # no rclpy in there
    config = import_module('safe_pruner_ros.runtime.config_yaml').load_config(
        resources.config_file('robots', robot),
        resources.config_file('policies', arguments.policy_file),
    )
    changes = {'checkpoint': arguments.checkpoint, 'device': arguments.device}
    policy = replace(config.policy, **{name: text for name, text in changes.items() if text})
    settings = import_module('safe_pruner_ros.runtime.pruner_settings')
    configured = {}
    for method in import_module('safe_pruner_ros.core.catalog').alike(config.pruner.method):
        configured[method] = settings.stated_settings(config.pruner, method)
        configured[method].pop('retention_ratio', None)  # the command line's
    return replace(config, policy=policy), configured


def read_robot(robot: str, policy: str | None = None) -> Any:
    """The RobotConfig of a robot file, with a policy file checked beside it if one is given."""
    resources = import_module('safe_pruner_ros.ros.resources')
    load = import_module('safe_pruner_ros.runtime.config_yaml').load_config
    policies = () if policy is None else (resources.config_file('policies', policy),)
    return load(resources.config_file('robots', robot), *policies).robot


def import_ros(name: str) -> Any:
    """A module of the ros room; UsageError where ROS 2 is not set up, or our messages are not
    found: some modules import those only while they run, with children started already."""
    try:
        module = import_module(f'safe_pruner_ros.ros.{name}')
        if find_spec('safe_pruner_ros.msg') is None:
            raise ImportError('the messages of this package, safe_pruner_ros.msg, are not found')
    except ImportError as error:
        raise UsageError(
            f'this needs ROS 2 and the built package ({error}); run "make setup" once, then '
            f'"scripts/with_env {PROGRAM} ..."'
        ) from error
    return module


# ---- values


def names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(',') if name.strip()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f'given twice: {repeated}')
    return names


def ratios(text: str, option: str = '--retention') -> list[float]:
    try:
        return [float(ratio) for ratio in names(text)]
    except ValueError as error:
        raise UsageError(f'{option} takes numbers like 0.3,0.1, got {text!r}') from error


def one_of(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f'{option} must be one of {", ".join(choices)}, got {value!r}')


def share(option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f'{option} must be in [0, 1], got {value}')


def size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f'--image-px takes a size like 640x480, got {text!r}')
    return int(width), int(height)


def at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UsageError(f'{name} must be at least {least}, got {value}')
