"""The one schema: every setting with default, unit, bounds and meaning. Values: config/*.yaml.

Built once, frozen, passed down. Import every config class from here. `config_yaml.py` reads files
into it; `config_parameters.py` lists it flat, for ROS parameters and launch arguments.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from safe_pruner_ros.policies.policy import PolicySpec
from safe_pruner_ros.runtime.config_robot import (
    CameraConfig,
    JointConfig,
    JointMapping,
    RobotConfig,
    SinkConfig,
    StateSourceConfig,
)
from safe_pruner_ros.runtime.config_schema import ConfigError, check_bounds, setting

__all__ = [
    'ActionConfig',
    'BufferConfig',
    'CameraConfig',
    'Config',
    'ConfigError',
    'GuardConfig',
    'JointConfig',
    'JointMapping',
    'PolicyConfig',
    'PrunerConfig',
    'RobotConfig',
    'RuntimeConfig',
    'SinkConfig',
    'StateSourceConfig',
    'WorkerConfig',
    'check_policy_fits',
]


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy runs, from which weights."""

    name: str = setting('embedded', 'policy backend; names in policies/catalog.py')
    checkpoint: str = setting('', 'weights file or folder; empty: the shipped weights')
    device: str = setting('cpu', 'torch device: cpu, cuda, cuda:0')
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

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.name:
            raise ConfigError('policy.name must not be empty; use embedded')


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
    queries: Literal['last', 'action', 'text', 'prefill'] = setting(
        'last', 'FastV: tokens whose attention ranks the visual ones'
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
class BufferConfig:
    """When observations are fresh, consistent and believable."""

    max_image_age_warn_s: float = setting(0.15, 'age of a view that is reported', 's', above=0.0)
    max_image_age_s: float = setting(0.3, 'age of a view that holds the arms', 's', above=0.0)
    max_state_age_s: float = setting(
        0.1, 'age of the measured joints that holds the arms', 's', above=0.0
    )
    max_skew_warn_s: float = setting(0.04, 'skew between views that is reported', 's', above=0.0)
    max_skew_s: float = setting(
        0.1, 'skew between views, or between state sources, that holds the arms', 's', above=0.0
    )
    max_future_s: float = setting(
        0.05, 'a stamp this far ahead of the node clock is refused', 's', above=0.0
    )
    max_stamp_offset_s: float = setting(
        5.0, 'a stamp this far behind the node clock comes from another clock', 's', above=0.0
    )
    allow_zero_stamp: bool = setting(
        False, 'use the receive time of messages whose stamp is zero, instead of refusing them'
    )
    history: int = setting(
        16, 'images kept per view, to find the newest set that belongs together', '', 1, 64
    )
    resume_frames: int = setting(
        3, 'good frames in a row before a view that was stale counts again', '', 1, 100
    )
    frozen_frames: int = setting(
        10, 'identical frames in a row before a camera can count as frozen', '', 2, 1000
    )
    frozen_motion_rad: float = setting(
        0.05, 'joint motion without which identical frames are normal', 'rad', above=0.0
    )
    uniform_std: float = setting(
        2.0, 'a picture with less contrast than this is covered, black or white', 'grey level', 0.0
    )
    max_state_jump_rad: float = setting(
        0.5, 'change of an arm joint between two samples that is refused', 'rad', above=0.0
    )
    state_jump_samples: int = setting(
        25, 'consistent samples after a jump before the new pose is believed', '', 2, 10000
    )
    max_instruction_chars: int = setting(
        256, 'longer instructions are refused', 'characters', 1, 4096
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        for warn, hold in (
            ('max_image_age_warn_s', 'max_image_age_s'),
            ('max_skew_warn_s', 'max_skew_s'),
        ):
            if getattr(self, warn) > getattr(self, hold):
                raise ConfigError(
                    f'{warn} must not exceed {hold}, got {getattr(self, warn)} > '
                    f'{getattr(self, hold)}'
                )


@dataclass(frozen=True)
class ActionConfig:
    """How chunks become commands."""

    fade_s: float = setting(0.15, 'cross-fade at the seam between two chunks', 's', 0.0, 5.0)
    max_action_age_s: float = setting(
        1.5, 'commands from an observation older than this are not sent', 's', above=0.0
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class GuardConfig:
    """What a command must satisfy. Joint limits come from the robot."""

    max_state_age_s: float = setting(
        0.1, 'no command on measured joints older than this', 's', above=0.0
    )
    max_command_age_s: float = setting(0.1, 'a command older than this is refused', 's', above=0.0)
    soft_start_s: float = setting(
        1.0, 'the step limit grows from a tenth to full over this time', 's', 0.0, 60.0
    )
    max_start_error_rad: float = setting(
        1.0, 'first target further than this from the measured pose: refused', 'rad', above=0.0
    )
    max_tracking_error_rad: float = setting(
        0.5,
        'arm joint measured further than this from its command: sending ends',
        'rad',
        above=0.0,
    )
    max_start_outside_rad: float = setting(
        0.02, 'measured arm joint this far outside its limits may move back in', 'rad', 0.0, 0.5
    )
    max_start_outside_gripper: float = setting(
        0.1, 'measured gripper this far outside 0..1 may move back in', 'closed fraction', 0.0, 1.0
    )
    gripper_range_tolerance: float = setting(
        0.5, 'gripper target further than this outside 0..1: held, units differ', '', 0.0, 10.0
    )
    clamp_tolerance: float = setting(
        0.02,
        'clamps smaller than this do not count towards a FAULT',
        'rad or closed fraction',
        0.0,
    )
    max_clamps_in_row: int = setting(
        100, 'clamped commands in a row that latch a FAULT', '', 1, 1000000
    )
    max_sign_flips: int = setting(
        8, 'reversals at the step limit within a second that hold the arms', '', 2, 1000
    )
    hold_s: float = setting(
        10.0, 'a hold is streamed this long, then nothing is sent; 0: without end', 's', 0.0
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class WorkerConfig:
    """The inference thread, and the watchdogs of the control timer."""

    max_inference_s: float = setting(
        2.0, 'a policy step that takes longer holds the arms', 's', above=0.0
    )
    max_errors: int = setting(
        3, 'policy errors within error_window_s that latch a FAULT', '', 1, 1000
    )
    error_window_s: float = setting(10.0, 'window of max_errors', 's', above=0.0)
    max_clock_stop_s: float = setting(
        0.5,
        'a node clock that stands still this long (steady time) holds the arms',
        's',
        above=0.0,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class RuntimeConfig:
    """Everything between messages and policy."""

    control_rate_hz: float = setting(50.0, 'rate of commands', 'Hz', 1.0, 1000.0)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    actions: ActionConfig = field(default_factory=ActionConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def control_period_ns(self) -> int:
        return round(1e9 / self.control_rate_hz)


@dataclass(frozen=True)
class Config:
    """All settings of one node. Dotted names start here: ``pruner.retention_ratio``."""

    robot: RobotConfig
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def check_policy_fits(spec: PolicySpec, robot: RobotConfig) -> None:
    """Raise ConfigError unless robot and policy have the same joints and the policy its views."""
    wanted, present = set(spec.joint_names), set(robot.layout.names)
    if wanted != present:
        raise ConfigError(
            f'policy {spec.name!r} and robot {robot.name!r} differ in joints: the policy moves '
            f'{len(spec.joint_names)}, the robot has {len(present)}; only in the policy: '
            f'{sorted(wanted - present)}, only in the robot: {sorted(present - wanted)}. '
            f'Choose a checkpoint trained for this robot, or rename the joints in its YAML'
        )
    views = {camera.name for camera in robot.cameras}
    if missing := [view.name for view in spec.views if view.name not in views]:
        raise ConfigError(
            f'policy {spec.name!r} needs the views {missing}, robot {robot.name!r} has '
            f'{sorted(views)}; add them to cameras in its YAML'
        )
    if spec.chunk_size < 1 or not 1 <= spec.execution_horizon <= spec.chunk_size:
        raise ConfigError(
            f'policy {spec.name!r}: execution_horizon must be in [1, chunk_size], got '
            f'{spec.execution_horizon} of {spec.chunk_size}'
        )
