"""The one schema: every setting with default, unit, bounds and meaning. Values: config/*.yaml.

Built once, frozen, passed down. Import every config class from here. `config_yaml.py` reads files
into it; `config_parameters.py` lists it flat, for ROS parameters and launch arguments.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from safe_pruner_ros.policies.policy import PolicySpec
from safe_pruner_ros.runtime.config_deployment import (
    ActionDimensionConfig,
    DeploymentConfig,
    DiffusionConfig,
    ImageChainConfig,
)
from safe_pruner_ros.runtime.config_pruner import PrunerConfig
from safe_pruner_ros.runtime.config_robot import (
    CameraConfig,
    JointConfig,
    JointMapping,
    RobotConfig,
    SinkConfig,
    StateSourceConfig,
    check_topics_apart,
)
from safe_pruner_ros.runtime.config_runtime import (
    ActionConfig,
    AuditConfig,
    BufferConfig,
    GuardConfig,
    RetentionConfig,
    RuntimeConfig,
    WorkerConfig,
)
from safe_pruner_ros.runtime.config_schema import ConfigError, check_bounds, setting

__all__ = [
    'ActionConfig',
    'ActionDimensionConfig',
    'AuditConfig',
    'BufferConfig',
    'CameraConfig',
    'Config',
    'ConfigError',
    'DeploymentConfig',
    'DiffusionConfig',
    'GuardConfig',
    'ImageChainConfig',
    'JointConfig',
    'JointMapping',
    'PolicyConfig',
    'PrunerConfig',
    'RetentionConfig',
    'RobotConfig',
    'RuntimeConfig',
    'SinkConfig',
    'StateSourceConfig',
    'WorkerConfig',
    'check_names_fit',
    'check_policy_fits',
    'check_topics_apart',
]


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy runs, from which weights."""

    name: str = setting('embedded', 'policy backend; names in policies/catalog.py')
    checkpoint: str = setting('', 'weights file or folder; empty: the shipped weights')
    device: str = setting('cpu', 'torch device: cpu, cuda, cuda:0; auto: a GPU if there is one')
    execution_horizon: int = setting(
        0, 'actions used before the next policy step starts; 0: as the policy says', '', 0, 1000
    )
    period_s: float = setting(
        0.0,
        'time between two actions of a chunk; 0: as the policy says, longer: slow motion',
        's',
        0.0,
        10.0,
    )
    deployment: DeploymentConfig = field(default_factory=DeploymentConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.name:
            raise ConfigError('policy.name must not be empty; use embedded')

    def deployment_values(self) -> dict[str, Any]:
        """`DeploymentConfig.values` with the period that actions are executed in and how many of
        them: a policy that joins chunks over time (CogACT) must know both."""
        values = self.deployment.values()
        for name in ('period_s', 'execution_horizon'):
            if values and getattr(self, name):
                values[name] = getattr(self, name)
        return values


@dataclass(frozen=True)
class Config:
    """All settings of one node. Dotted names start here: ``pruner.retention_ratio``."""

    robot: RobotConfig
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def check_names_fit(
    policy: str, joints: Collection[str], views: Collection[str], robot: RobotConfig
) -> None:
    """Raise ConfigError unless robot and policy have the same joints (in any order) and the robot
    has the policy's views, as required ones."""
    wanted, present = set(joints), set(robot.layout.names)
    if wanted != present:
        raise ConfigError(
            f'policy {policy!r} and robot {robot.name!r} differ in joints: the policy moves '
            f'{len(wanted)}, the robot has {len(present)}; only in the policy: '
            f'{sorted(wanted - present)}, only in the robot: {sorted(present - wanted)}. '
            f'Choose a checkpoint trained for this robot, or rename the joints in its YAML'
        )
    cameras = {camera.name for camera in robot.cameras}
    if missing := [view for view in views if view not in cameras]:
        raise ConfigError(
            f'policy {policy!r} needs the views {missing}, robot {robot.name!r} has '
            f'{sorted(cameras)}; add them to cameras in its YAML'
        )
    optional = {camera.name for camera in robot.cameras if not camera.required}
    if unwatched := [view for view in views if view in optional]:
        raise ConfigError(
            f'policy {policy!r} looks through {unwatched}, which robot {robot.name!r} has with '
            'required: false: a frozen or covered picture would not hold the arms. Set required: '
            'true in its YAML'
        )


def check_policy_fits(spec: PolicySpec, robot: RobotConfig) -> None:
    """`check_names_fit`, and a horizon inside the chunk."""
    check_names_fit(spec.name, spec.joint_names, [view.name for view in spec.views], robot)
    if spec.chunk_size < 1 or not 1 <= spec.execution_horizon <= spec.chunk_size:
        raise ConfigError(
            f'policy {spec.name!r}: execution_horizon must be in [1, chunk_size], got '
            f'{spec.execution_horizon} of {spec.chunk_size}'
        )
