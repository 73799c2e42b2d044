"""The one schema: every setting with default, unit, bounds and meaning. Values: config/*.yaml.

Built once, frozen, passed down. Import every config class from here. `config_yaml.py` reads files
into it; `config_parameters.py` lists it flat, for ROS parameters and launch arguments.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from safe_pruner_ros.policies.policy import PolicySpec
from safe_pruner_ros.runtime.config_deployment import (
    ActionDimensionConfig,
    DeploymentConfig,
    DiffusionConfig,
    ImageChainConfig,
)
from safe_pruner_ros.runtime.config_robot import (
    CameraConfig,
    JointConfig,
    JointMapping,
    RobotConfig,
    SinkConfig,
    StateSourceConfig,
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
        """`DeploymentConfig.values` with the period that actions are executed in: a policy that
        joins chunks over time (CogACT) must know slow motion."""
        values = self.deployment.values()
        return {**values, 'period_s': self.period_s} if values and self.period_s else values


@dataclass(frozen=True)
class PrunerConfig:
    """Which pruning method, how much it keeps, and the settings of SAFE-Pruner.

    Field names are those of the pruners in core/; `settings` picks the ones a method takes.
    """

    method: str = setting('safe_pruner', 'pruning method; names in core/catalog.py')
    retention_ratio: float = setting(
        0.3, 'share of visual tokens kept from the pruning layer on', '', None, 1.0, 0.0
    )
    pruning_layer: int = setting(
        3, '0-based decoder layer whose input is already pruned', '', 0, 1000
    )
    variant: Literal['paper', 'code'] = setting(
        'paper', 'SAFE-Pruner as the paper says it, or as its authors released it'
    )
    similarity_threshold: float = setting(
        0.5, 'tau: an attention similarity below it makes a key timestep', '', 0.0, 1.0
    )
    alpha: float = setting(
        0.5, 'weight of the early saliency; the forecast gets 1 - alpha', '', 0.0, 1.0
    )
    deep_weight: float = setting(
        1.0, 'weight of the forecast in variant code, where the early saliency has 1', '', 0.0
    )
    deep_layers: tuple[int, ...] = setting(
        (), 'S: layers whose saliency is forecast, negative from the end; empty: the published'
    )
    norm: Literal['none', 'l1', 'minmax', 'zscore'] = setting(
        'l1', 'brings the saliency terms to one scale before they are added'
    )
    match_scope: Literal['joint', 'per_view'] = setting(
        'per_view', 'match a token to the keyframe tokens of all views, or of its own view'
    )
    quota_scope: Literal['joint', 'per_view'] = setting(
        'per_view', 'rank tokens over all views, or keep the same share of every view'
    )
    max_keyframe_age: int = setting(
        0, 'policy steps after which a keyframe is renewed; 0: never', '', 0, 100000
    )
    keyframe_interval: int = setting(
        0, 'every so many policy steps a key timestep, without tau; 0: tau decides', '', 0, 100000
    )
    forecast: bool = setting(
        True, 'off: the early saliency alone decides (ablation), no step is a key timestep'
    )
    certain: float = setting(
        0.25,
        'Diverse forecast: share of the kept tokens that saliency alone decides',
        '',
        0.0,
        1.0,
    )
    early_queries: Literal['prefill', 'action', 'text', 'last'] = setting(
        'prefill',
        'Diverse forecast: tokens whose attention is the early saliency and tells its shift',
    )
    full_first_step: bool = setting(
        False, 'Diverse forecast: the first policy step of an episode runs in full'
    )
    queries: Literal['last', 'action', 'text', 'prefill'] = setting(
        'prefill', 'FastV: tokens whose attention ranks the visual ones'
    )
    history_steps: int = setting(
        3, 'VLA-Pruner: policy steps whose action attention is remembered', '', 1, 1000
    )
    history_decay: float = setting(
        0.8, 'VLA-Pruner: weight of a remembered step relative to the one after it', '', 1e-3, 1.0
    )
    warm_up_steps: int = setting(
        3, 'VLA-Pruner: first policy steps of an episode that run in full', '', 0, 1000
    )
    change_threshold: float = setting(
        0.986, 'SpecPrune-VLA: a token with a cosine below it has changed', '', -1.0, 1.0
    )
    lookback_steps: int = setting(
        1, 'SpecPrune-VLA: policy steps between the images that are compared', '', 1, 1000
    )
    static_threshold: float = setting(
        0.996, 'VLA-Cache: a token with a cosine of at least this stands still', '', -1.0, 1.0
    )
    relevant_share: float = setting(
        100 / 256,
        'VLA-Cache: share of the tokens that is computed even if it is still',
        '',
        0.0,
        1.0,
    )
    schedule: Literal['paper', 'code', 'uniform'] = setting(
        'code', 'VLA-Cache: how attention entropy tells what each layer skips; uniform: all alike'
    )
    schedule_gain: float = setting(1.0, 'VLA-Cache: k of the schedule paper', '', 0.0)
    seed: int = setting(0, 'seed of random methods', '', 0, 2**31 - 1)

    def __post_init__(self) -> None:
        check_bounds(self)

    def settings(self, accepted: Collection[str]) -> dict[str, Any]:
        """What to pass to `build_pruner`, given `accepted_settings(method)`."""
        values = {name: getattr(self, name) for name in accepted if hasattr(self, name)}
        if 'deep_layers' in values:
            values['deep_layers'] = self.deep_layers or None
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
