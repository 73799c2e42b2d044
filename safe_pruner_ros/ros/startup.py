"""What configure does besides wiring: build the policy, warm it up, apply live settings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np

from safe_pruner_ros.policies.policy import InstructionError, NoActionError, Policy, PolicySpec
from safe_pruner_ros.ros.resources import urdf_file
from safe_pruner_ros.runtime.config import Config, ConfigError
from safe_pruner_ros.runtime.policy_timing import ChunkTiming, timing_findings
from safe_pruner_ros.runtime.shadow_audit import ForwardKinematics
from safe_pruner_ros.sim.urdf_kinematics import urdf_kinematics
from safe_pruner_ros.types import ArmState, CameraImage, JointLayout, Observation

# A full step and two pruned ones: every shape that will occur has then been allocated once.
WARM_UP_STEPS = 3
WARM_UP_INSTRUCTION = 'pick up the red block and place it in the tray'

PolicyFactory = Callable[[Config], Policy]


def build_configured_policy(config: Config) -> Policy:
    """The policy that ``config`` names, under its pruner. Its backend is imported here.

    Raises ConfigError with the next move for whatever does not fit: method, checkpoint, device.
    """
    from safe_pruner_ros.policies.catalog import build_policy
    from safe_pruner_ros.runtime.preflight import refuse_misfits
    from safe_pruner_ros.runtime.pruner_settings import stated_settings

    policy = config.policy
    build_kinematics(config)  # a wrong urdf is told before gigabytes are loaded
    try:
        settings = stated_settings(config.pruner)
        refuse_misfits(config)
        return build_policy(
            policy.name,
            config.pruner.method,
            settings,
            policy.checkpoint,
            policy.device,
            policy.deployment_values(),
        )
    except (ValueError, FileNotFoundError) as error:  # the package's word for wrong requests
        raise ConfigError(str(error)) from error


def build_kinematics(config: Config) -> ForwardKinematics | None:
    """Forward kinematics of the robot's URDF; None without one. Raises ConfigError."""
    robot = config.robot
    if not robot.urdf:
        return None
    try:
        return urdf_kinematics(urdf_file(robot.urdf), robot.layout.names, robot.end_effectors)
    except (ValueError, OSError) as error:
        raise ConfigError(f'robot.urdf: {error}') from error


def warm_up(policy: Policy, layout: JointLayout, instruction: str) -> float:
    """A few policy steps on an invented observation; ms of the last one. The policy is reset.

    Raises what the policy raises: weights that cannot compute must not get as far as activation.
    NaN is returned if the policy accepts no instruction that is known here.
    """
    for text in (instruction, WARM_UP_INSTRUCTION):
        try:
            policy.check_instruction(text)
        except InstructionError:
            continue
        break
    else:
        return float('nan')
    grey = np.random.default_rng(0)
    images = {
        view.name: CameraImage(
            grey.integers(0, 256, (view.height, view.width, 3), dtype=np.uint8), view.name, 1
        )
        for view in policy.spec.views
    }
    middle = {joint.name: 0.5 * (joint.lower + joint.upper) for joint in layout.joints}
    names = policy.spec.joint_names
    state = ArmState(np.array([middle[name] for name in names]), names, 1)
    elapsed_ms = float('nan')
    for _ in range(WARM_UP_STEPS):
        begin = time.perf_counter()
        with suppress(NoActionError):  # the pictures are noise; what counts is that it computes
            policy.predict(Observation(images, state, text, 1))
        elapsed_ms = (time.perf_counter() - begin) * 1e3
    policy.reset()
    return elapsed_ms


def describe_timing(config: Config, spec: PolicySpec, step_ms: float) -> list[str]:
    """What is to be said about chunks and the time of a policy step; NaN: not measured."""
    chunk = ChunkTiming.of(config, spec.chunk_size, spec.execution_horizon, spec.period_s)
    step_s = None if math.isnan(step_ms) else 1e-3 * step_ms
    return [f.text for f in timing_findings(chunk, None, step_s) if f.level != 'ok']


def update_pruner(policy: Policy, changes: Mapping[str, float]) -> None:
    """Apply live pruner settings, by field of PrunerConfig, from the next policy step on.

    Raises ValueError where the policy cannot: then only a new configure changes them.
    """

    update = getattr(policy, 'update_pruner', None)
    if update is None:
        raise ValueError(
            f'policy {policy.spec.name!r} cannot change its pruner while it is loaded; deactivate '
            'and clean up, set the parameter, then configure again'
        )
    update(**changes)
