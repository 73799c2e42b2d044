"""Does this checkpoint fit this robot file? Answered without ROS and without loading a weight.

One finding a question; each problem says its next move. Live topics: `ros/preflight.py`.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safe_pruner_ros.policies.catalog import CAUSAL, build_policy, open_checkpoint
from safe_pruner_ros.policies.checkpoint_check import CheckpointFiles, check_all
from safe_pruner_ros.runtime.config import (
    ActionDimensionConfig,
    Config,
    ConfigError,
    JointConfig,
    check_names_fit,
    check_policy_fits,
)
from safe_pruner_ros.runtime.config_runtime import check_action_age
from safe_pruner_ros.runtime.finding import Finding, ask, is_good
from safe_pruner_ros.runtime.policy_timing import ChunkTiming
from safe_pruner_ros.runtime.pruner_settings import effective_settings, stated_settings
from safe_pruner_ros.runtime.robot_notes import robot_notes

# How far an absolute action may reach beyond a joint's limits, in spans of the joint, before its
# unit is in doubt. The guard clamps overshoot; degrees, percent or a gripper from -1 to 1
# would be clamped all the time.
MAX_OVERSHOOT = {'arm': 1.0, 'gripper': 0.25}


def check_config(config: Config) -> Iterator[Finding]:
    """Robot file against policy file, checkpoint and device, in the order they are read."""
    robot, policy = config.robot, config.policy
    cameras = [camera.name for camera in robot.cameras]
    moves = 'commands move the simulated robot' if robot.simulated else 'commands MOVE THE ROBOT'
    if robot.dry_run:
        moves = 'commands go to ~/preview (dry_run)'
    text = f'{robot.name}, {len(robot.joints)} joints, cameras {cameras}, {moves}'
    yield Finding('ok', 'robot', text)
    for note in robot_notes(robot):
        yield Finding('note', 'robot', note)
    yield ask('pruner', lambda: _describe_pruner(config))
    if policy.name == 'embedded':
        yield ask('checkpoint', lambda: _check_embedded(config))
        return
    deployment = policy.deployment
    joints = [action.joint for action in deployment.actions]

    def fit() -> str:
        check_names_fit(policy.name, joints, deployment.views, robot)
        return f'{len(joints)} joints and the views {list(deployment.views)} are in both'

    yield ask('names', fit)
    timing = ask('timing', lambda: _check_deployment_timing(config))
    if timing.level == 'problem':  # what else is to be said of it, `timing_findings` says
        yield timing
    try:
        files = open_checkpoint(
            policy.name, policy.checkpoint, policy.device, policy.deployment_values()
        )
    except (ValueError, FileNotFoundError) as error:
        yield Finding('problem', 'checkpoint', str(error))
        return
    told: set[str] = set()
    for check in files.checks():
        finding = ask(check.subject, check.run)
        if check.is_note and finding.level == 'ok':
            if finding.text:
                yield Finding('note', finding.subject, finding.text)
            continue
        if finding.level == 'ok' or finding.text not in told:  # a missing file stops many of them
            yield finding
        told.add(finding.text)
    yield from check_units(files, deployment.actions, {j.name: j for j in robot.joints})


def refuse_misfits(config: Config) -> None:
    """For the node: what `check_config` would call a problem, before a big policy is loaded.

    Raises ConfigError, ValueError or FileNotFoundError with the first one.
    """
    policy, robot = config.policy, config.robot
    refuse_simulated_weights(config)
    if policy.name == 'embedded':
        return
    deployment = policy.deployment
    _check_deployment_timing(config)
    values = policy.deployment_values()
    files = open_checkpoint(policy.name, policy.checkpoint, policy.device, values)
    check_all(files)
    joints = [action.joint for action in deployment.actions]
    check_names_fit(policy.name, joints, deployment.views, robot)
    for finding in check_units(files, deployment.actions, {j.name: j for j in robot.joints}):
        if finding.level == 'problem':
            raise ConfigError(finding.text)


def refuse_simulated_weights(config: Config) -> None:
    """Raise ConfigError when the shipped weights would move a real robot: they have only ever
    seen the simulator. A checkpoint that somebody trained is that person's affair."""
    policy, robot = config.policy, config.robot
    if policy.name != 'embedded' or robot.simulated or robot.dry_run:
        return
    if policy.checkpoint and not _is_shipped(Path(policy.checkpoint)):
        return
    raise ConfigError(
        f'the shipped weights were trained in simulation only and must not move robot '
        f'{robot.name!r} (policies/weights/MODEL_CARD.md), got robot.dry_run: false. Set it to '
        'true to look at their commands, give weights trained for this robot (policy.checkpoint), '
        'or, where nothing real moves, say robot.simulated: true in its YAML'
    )


def _is_shipped(path: Path) -> bool:
    """The packaged file, or a copy of it under any name."""
    from safe_pruner_ros.policies.embedded import SHIPPED_WEIGHTS

    both_there = path.is_file() and SHIPPED_WEIGHTS.is_file()
    return both_there and filecmp.cmp(path, SHIPPED_WEIGHTS, shallow=False)


def _describe_pruner(config: Config) -> str:
    settings = effective_settings(config.pruner, causal=config.policy.name in CAUSAL)
    ratio = settings.pop('retention_ratio', None)
    share = '' if ratio is None else f', keeps {ratio:g} of the visual tokens'
    values = ', '.join(f'{name} {value}' for name, value in settings.items())
    return f'{config.pruner.method}{share} ({values})'


def _check_embedded(config: Config) -> str:
    policy, method = config.policy, config.pruner.method
    refuse_simulated_weights(config)
    settings = stated_settings(config.pruner)
    built = build_policy(policy.name, method, settings, policy.checkpoint, policy.device)
    check_policy_fits(built.spec, config.robot)
    _check_timing(config, built.spec.execution_horizon, built.spec.period_s)
    return f'{policy.checkpoint or "the shipped weights"}, {len(built.spec.views)} views'


def _check_deployment_timing(config: Config) -> str:
    deployment = config.policy.deployment
    horizon = deployment.execution_horizon or deployment.chunk_size
    return _check_timing(config, horizon, deployment.period_s)


def _check_timing(config: Config, horizon: int, period_s: float) -> str:
    """``horizon``, ``period_s``: as the policy says; 0 where only its checkpoint does."""
    horizon = config.policy.execution_horizon or horizon
    period_s = config.policy.period_s or period_s
    if not horizon or not period_s:
        return 'the checkpoint says how many actions are executed; checked once it is loaded'
    check_action_age(config.policy.name, horizon, period_s, config.runtime.actions)
    return f'{horizon} actions of {period_s:g} s are executed before the next chunk'


def check_units(
    files: CheckpointFiles,
    actions: tuple[ActionDimensionConfig, ...],
    joints: Mapping[str, JointConfig],
) -> Iterator[Finding]:
    """Do the statistics, mapped to the robot, reach where its joints can go? Degrees taken for
    radians, or percent for a closed fraction, do not."""
    try:
        low, high = files.action_span()
    except Exception:  # whatever an odd file raises, the question about statistics reports it
        return
    for action, ends in zip(actions, np.stack([low, high], axis=1), strict=False):
        joint = joints.get(action.joint)
        if joint is None or action.semantics != 'absolute':
            continue
        start, stop = sorted(float(action.scale * end + action.offset) for end in ends)
        beyond = max(joint.lower - start, stop - joint.upper)
        if beyond > MAX_OVERSHOOT[joint.kind] * (joint.upper - joint.lower):
            unit = 'closed fraction' if joint.kind == 'gripper' else 'rad'
            yield Finding(
                'problem',
                'units',
                f'the statistics take {action.joint!r} from {start:.4g} to {stop:.4g}, the robot '
                f'has {joint.lower:g} to {joint.upper:g} {unit}; correct scale and offset of this '
                'joint in deployment.actions, or its semantics if these are differences',
            )
        elif beyond > 0:
            yield Finding(
                'note',
                'units',
                f'{action.joint!r}: the statistics reach from {start:.4g} to {stop:.4g}, beyond '
                f'the limits {joint.lower:g} to {joint.upper:g}; such targets are clamped',
            )


def read_timing(config: Config) -> ChunkTiming | None:
    """How chunks will be executed, from headers only; None where the files do not say (another
    question has told why)."""
    policy = config.policy
    try:
        if policy.name == 'embedded':
            from safe_pruner_ros.policies.embedded import load_weights

            model = load_weights(Path(policy.checkpoint) if policy.checkpoint else None).config
            size, horizon, period_s = model.chunk_size, model.execution_horizon, model.period_s
        else:
            values = policy.deployment_values()
            files = open_checkpoint(policy.name, policy.checkpoint, policy.device, values)
            size, period_s = files.chunk_size, policy.deployment.period_s
            horizon = policy.deployment.execution_horizon or size
    except Exception:
        return None
    return ChunkTiming.of(config, size, horizon, period_s)


def as_values(
    findings: list[Finding], config: Config | None, topics_checked: bool
) -> dict[str, Any]:
    """For JSON."""
    names: dict[str, str] = {}
    if config is not None:
        checkpoint = config.policy.checkpoint
        names = {
            'robot': config.robot.name,
            'policy': config.policy.name,
            'checkpoint': str(Path(checkpoint).expanduser()) if checkpoint else '',
        }
    return {
        **names,
        'ok': is_good(findings),
        'topics_checked': topics_checked,
        'findings': [{'level': f.level, 'subject': f.subject, 'text': f.text} for f in findings],
    }
