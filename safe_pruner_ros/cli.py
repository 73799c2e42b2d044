"""`safe-pruner`: one command line for everything beside the node.

Sits on top of every room and imports each only when its command runs, so that `--help` is instant
and a missing ROS 2 is no obstacle to training or evaluation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = 'safe-pruner'
USER_ERROR = 2
FAILED = 1
INTERRUPTED = 130

Command = Callable[[argparse.Namespace], int]


class UsageError(ValueError):
    """What the user asked for cannot be done; the message says why and what to do."""


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
    except (ValueError, FileNotFoundError) as error:  # the package's word for wrong requests
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
    _add_evaluate(commands)
    _add_benchmark(commands)
    _add_flops(commands)
    _add_replay(commands)
    _add_preflight(commands)
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in ('', None, False, []):
            return action.help
        return super()._get_help_string(action)


def _add(
    commands: Any, name: str, command: Command, summary: str, details: str = ''
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f'{summary[0].upper()}{summary[1:]}. {details}',
        formatter_class=_HelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--policy-file',
        default='embedded',
        help='policy and the settings of its pruning method, as the node reads them: a name in '
        'config/policies, or a path; other methods run as published',
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


def _read_policy_file(arguments: argparse.Namespace) -> tuple[Any, dict[str, dict[str, Any]]]:
    """(PolicyConfig with the command line's changes, settings of the method the file is about)."""
    config, configured = _read_config(arguments, 'sim')
    return config.policy, configured


def _read_config(
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
    accepted = import_module('safe_pruner_ros.core.catalog').accepted_settings
    method = config.pruner.method
    settings = config.pruner.settings(accepted(method))
    settings.pop('retention_ratio', None)  # the command line's
    return replace(config, policy=policy), {method: settings}


# ---- demo


def _add_demo(commands: Any) -> None:
    parser = _add(
        commands,
        'demo',
        _demo,
        'five episodes of the simulated robot under the real node, over DDS',
        'Writes summary.json, overlay.mp4 and timeline.png. Exit code 0 when at least '
        'four of five succeed.',
    )
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='where results go')
    parser.add_argument('--seeds', default='', help='scenes, e.g. 800000:800005; empty: the usual')
    parser.add_argument('--method', default='safe_pruner', help='pruning method')
    parser.add_argument('--retention', type=float, default=0.3, help='share of visual tokens kept')
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
    _at_least('--timeout', arguments.timeout, 60)
    return int(_import_ros('demo').main(arguments))


def _import_ros(name: str) -> Any:
    """A module of the ros room; UsageError where ROS 2 is not set up."""
    try:
        return import_module(f'safe_pruner_ros.ros.{name}')
    except ImportError as error:
        raise UsageError(
            f'this needs ROS 2 and the built package ({error}); run "make setup" once, then '
            f'"scripts/with_env {PROGRAM} ..."'
        ) from error


# ---- train


def _add_train(commands: Any) -> None:
    parser = _add(
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
        '--processes', type=int, default=os.cpu_count() or 1, help='worker processes; one a core'
    )
    parser.add_argument('--device', default='cpu', help='torch device: cpu, cuda, cuda:0')
    parser.add_argument('--seed', type=int, default=0, help='scenes, initial weights and order')
    parser.add_argument(
        '--smoke', action='store_true', help='minutes long: every stage runs, nothing is learnt'
    )


def _train(arguments: argparse.Namespace) -> int:
    _at_least('--processes', arguments.processes, 1)
    _at_least('--seed', arguments.seed, 0)
    return int(import_module('safe_pruner_ros.training.run').main(arguments))


# ---- evaluate


def _add_evaluate(commands: Any) -> None:
    parser = _add(
        commands,
        'evaluate',
        _evaluate,
        'closed-loop success of pruning methods on the same scenes, with confidence',
        'A run that was stopped goes on where it was when the command is repeated; a run with '
        'more methods, ratios or seeds adds to the same folder.',
    )
    parser.add_argument('--task', default='pick_place', help='task')
    parser.add_argument(
        '--methods', default='unpruned,safe_pruner,random,fastv', help='comma separated'
    )
    parser.add_argument('--retention', default='0.3', help='ratios in (0, 1], comma separated')
    parser.add_argument(
        '--seeds', default='', help='scenes: 900000:900200 (end excluded) or 900000,900007; '
        'empty: the first 200 of the split'
    )  # fmt: skip
    parser.add_argument(
        '--split', default='', help='validation (for choices) or test (for reported numbers '
        'only); empty: as the seeds say, else validation'
    )  # fmt: skip
    parser.add_argument(
        '--each-object', action='store_true', help='name each object of each scene in turn'
    )
    parser.add_argument('--baseline', default='unpruned', help='what differences are taken to')
    parser.add_argument(
        '--max-policy-steps', type=int, default=None, help='give up after; empty: as the task says'
    )
    parser.add_argument(
        '--execution-horizon', type=int, default=0, help="actions of a chunk used; 0: the policy's"
    )
    parser.add_argument(
        '--latency-ticks', type=int, default=0, help='control ticks from picture to first action'
    )
    parser.add_argument('--jobs', type=int, default=0, help='worker processes; 0: one a core')
    parser.add_argument('--out', type=Path, default=Path('out/evaluate'), help='results folder')
    _add_policy_arguments(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    _at_least('--jobs', arguments.jobs, 0)
    plan_module = import_module('safe_pruner_ros.evaluation.plan')
    recipe = import_module('safe_pruner_ros.training.recipe')
    splits = {'validation': recipe.VALIDATION_SEEDS, 'test': recipe.TEST_SEEDS}
    seeds, split = plan_module.choose_seeds(arguments.seeds, arguments.split, splits)
    methods, settings = _names(arguments.methods), plan_module.parse_settings(arguments.settings)
    policy, configured = _read_policy_file(arguments)
    cells = plan_module.build_cells(methods, _ratios(arguments.retention), settings, configured)
    if arguments.baseline not in methods and arguments.baseline != 'unpruned':
        raise UsageError(f'--baseline {arguments.baseline} is not among --methods {methods}')
    import_module('safe_pruner_ros.sim.tasks.catalog').get_task(arguments.task)

    rollout = import_module('safe_pruner_ros.evaluation.rollout')
    evaluate = import_module('safe_pruner_ros.evaluation.evaluate')
    asked: tuple[int | None, ...] = (None,)
    if arguments.each_object:
        asked = tuple(range(evaluate.count_objects(arguments.task, seeds[0])))
    plan = plan_module.EvaluationPlan(
        task=arguments.task,
        cells=cells,
        seeds=seeds,
        split=split,
        asked_objects=asked,
        policy=policy.name,
        checkpoint=policy.checkpoint,
        device=policy.device,
        rollout=rollout.RolloutSettings(
            arguments.max_policy_steps,
            arguments.execution_horizon or policy.execution_horizon,
            arguments.latency_ticks,
        ),
        settings=settings,
        configured=configured,
    )
    evaluate.check_plan(plan)
    try:
        evaluate.evaluate(plan, arguments.out, arguments.jobs, arguments.baseline)
    except evaluate.WorkerDied as error:
        print(f'{PROGRAM} evaluate: {error}', file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f'\nfinished episodes are in {arguments.out}; repeat the command to go on')
        raise
    print((arguments.out / 'summary.md').read_text())
    return 0


# ---- benchmark


def _add_benchmark(commands: Any) -> None:
    parser = _add(
        commands,
        'benchmark',
        _benchmark,
        'latency of a policy step, unpruned and pruned side by side in one run',
        'With --model: a big policy with random weights. With --ros: what the node adds, from '
        'camera to command, without a model.',
    )
    parser.add_argument(
        '--model', default='', help='openvla, openvla_oft, pi05 or embedded, with random weights'
    )
    parser.add_argument(
        '--size', default='small', help='of --model: full, small (full depth and token counts, '
        'about 100 M parameters) or tiny'
    )  # fmt: skip
    parser.add_argument(
        '--keyframe-share', type=float, default=0.1, help='of --model: share of key timesteps'
    )
    parser.add_argument(
        '--dtype', default='', help='of --model; empty: bfloat16 on a GPU, float32 on a CPU'
    )
    parser.add_argument(
        '--graphs', action='store_true', help='of --model: replay CUDA graphs; needs a GPU'
    )
    parser.add_argument('--method', default='safe_pruner', help='pruning method to compare')
    parser.add_argument('--retention', type=float, default=0.3, help='share of visual tokens kept')
    parser.add_argument('--threads', default='2', help='torch threads, comma separated')
    parser.add_argument('--episodes', type=int, default=4, help='recorded scenes to replay')
    parser.add_argument('--rounds', type=int, default=20, help='replays of them')
    parser.add_argument('--task', default='pick_place', help='task')
    parser.add_argument('--ros', action='store_true', help='measure the node instead of a policy')
    parser.add_argument('--seconds', type=float, default=30.0, help='length of a --ros pass, s')
    parser.add_argument('--image-px', default='256x256', help='pictures of --ros, width x height')
    parser.add_argument('--camera-rate', type=float, default=20.0, help='pictures of --ros, Hz')
    parser.add_argument('--out', type=Path, default=Path('out/benchmark'), help='results folder')
    _add_policy_arguments(parser)


def _benchmark(arguments: argparse.Namespace) -> int:
    if arguments.ros:
        _at_least('--seconds', arguments.seconds, 2)
        arguments.image_px = _size(arguments.image_px)
        return int(_import_ros('benchmark').main(arguments))
    for name in ('rounds', 'episodes'):
        _at_least(f'--{name}', getattr(arguments, name), 1)
    if arguments.model:
        _share('--keyframe-share', arguments.keyframe_share)
        return int(
            import_module('safe_pruner_ros.evaluation.model_benchmark.command').main(arguments)
        )
    policy, configured = _read_policy_file(arguments)
    benchmark = import_module('safe_pruner_ros.evaluation.benchmark')
    return int(benchmark.main(arguments, policy, configured))


# ---- flops


def _add_flops(commands: Any) -> None:
    parser = _add(
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
        setattr(arguments, name, _names(getattr(arguments, name)))
    ratios = _ratios(arguments.retention)
    shares = _ratios(arguments.keyframe_share, '--keyframe-share')
    command = import_module('safe_pruner_ros.evaluation.flops.command')
    return int(command.main(arguments, ratios, shares))


# ---- replay


def _add_replay(commands: Any) -> None:
    parser = _add(
        commands,
        'replay',
        _replay,
        'what pruning would have changed on a recording of your robot',
        'Writes report.json, report.html and overlay.mp4. Exit code 1 when a method exceeds one '
        'of the limits given. Needs no ROS.',
    )
    parser.add_argument('bag', type=Path, help='rosbag2 folder, .mcap, .db3, or ROS 1 .bag')
    parser.add_argument(
        '--robot-file', default='sim', help='topics and joints: a name in config/robots, or a path'
    )
    parser.add_argument(
        '--map',
        action='append',
        default=[],
        metavar='NAME=TOPIC',
        help='another topic for a view, state source, sink or "instruction" of the robot file; '
        'joint.NAME=OTHER renames a joint of the messages; repeatable',
    )
    parser.add_argument('--instruction', default='', help="instead of the bag's own")
    parser.add_argument(
        '--clock',
        default='auto',
        choices=('auto', 'record', 'header', 'topic'),
        help="the node's clock: record times, header stamps, or the bag's /clock; auto: /clock "
        'where it was recorded, else record times',
    )
    parser.add_argument('--methods', default='safe_pruner', help='comma separated')
    parser.add_argument('--retention', default='0.3', help='ratios in (0, 1], comma separated')
    parser.add_argument(
        '--deadline-ms', type=float, default=0.0, help='of a policy step; 0: as long as the '
        'executed actions of a chunk take'
    )  # fmt: skip
    for name, kind, what in (
        ('--max-deviation-rad', float, 'of any arm joint from unpruned'),
        ('--max-deviation-p99-rad', float, 'the same, 99th percentile'),
        ('--max-gripper-flips', int, 'targets closed in one, open in the other'),
        ('--max-missed-deadlines', int, 'policy steps slower than the deadline'),
        ('--max-latency-p99-ms', float, 'of a policy step'),
    ):
        parser.add_argument(name, type=kind, help=f'limit: {what}')
    parser.add_argument('--no-video', action='store_true', help='write no overlay.mp4')
    parser.add_argument('--out', type=Path, default=Path('out/replay'), help='results folder')
    _add_policy_arguments(parser)


def _replay(arguments: argparse.Namespace) -> int:
    _at_least('--deadline-ms', arguments.deadline_ms, 0)
    plan = import_module('safe_pruner_ros.evaluation.plan')
    settings = plan.parse_settings(arguments.settings)
    config, configured = _read_config(arguments, arguments.robot_file)
    methods, ratios = _names(arguments.methods), _ratios(arguments.retention)
    cells = plan.build_cells(methods, ratios, settings, configured)
    return int(import_module('safe_pruner_ros.ros.replay').main(arguments, config, cells))


# ---- preflight


def _add_preflight(commands: Any) -> None:
    parser = _add(
        commands,
        'preflight',
        _preflight,
        'whether robot file, policy file, checkpoint and live topics fit, and what to fix',
        'One line a finding. Loads no weights. Exit code 1 when something stands in the way.',
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
    parser.add_argument('--sim-time', action='store_true', help='stamps belong to /clock')
    parser.add_argument('--json', action='store_true', help='one JSON document instead of lines')


def _preflight(arguments: argparse.Namespace) -> int:
    _at_least('--seconds', arguments.seconds, 0.5)
    return int(import_module('safe_pruner_ros.ros.preflight').main(arguments))


# ---- values


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(',') if name.strip()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f'given twice: {repeated}')
    return names


def _ratios(text: str, option: str = '--retention') -> list[float]:
    try:
        return [float(ratio) for ratio in _names(text)]
    except ValueError as error:
        raise UsageError(f'{option} takes numbers like 0.3,0.1, got {text!r}') from error


def _share(option: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f'{option} must be in [0, 1], got {value}')


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f'--image-px takes a size like 640x480, got {text!r}')
    return int(width), int(height)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise UsageError(f'{name} must be at least {least}, got {value}')


def run() -> NoReturn:
    """Entry point of the installed command."""
    sys.exit(main())


if __name__ == '__main__':
    run()
