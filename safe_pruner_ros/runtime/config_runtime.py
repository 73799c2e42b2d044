"""Settings of everything between messages and policy. Import them from `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from safe_pruner_ros.runtime.config_schema import ConfigError, check_bounds, setting


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
        25,
        'consistent samples before a pose that contradicts the last known one is believed',
        '',
        2,
        10000,
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
        1.5,
        'commands from an observation older than this are not sent; more than the executed part '
        'of a chunk and the policy step after it take',
        's',
        above=0.0,
    )

    def __post_init__(self) -> None:
        check_bounds(self)


def check_action_age(policy: str, horizon: int, period_s: float, config: ActionConfig) -> None:
    """Raise ConfigError unless ``horizon`` actions of ``period_s``, and at least the time of one
    more for the policy step that follows, are young enough to be sent.

    Otherwise the arms would stop and go, once a chunk.
    """
    needed_s = (horizon + 1) * period_s
    if needed_s <= config.max_action_age_s + 1e-9:
        return
    fitting = int(config.max_action_age_s / period_s + 1e-9) - 1
    lower = f', or lower policy.execution_horizon (or that of policy.deployment) to {fitting}'
    raise ConfigError(
        f'policy {policy!r} executes {horizon} actions of {period_s:g} s before the next chunk; '
        f'with the policy step after them that takes {needed_s:g} s or more, but '
        f'runtime.actions.max_action_age_s is {config.max_action_age_s:g}: the arms would stop '
        f'once a chunk. Raise runtime.actions.max_action_age_s' + (lower if fitting > 0 else '')
    )


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
        1.0,
        'first action further than this from the measured pose: refused',
        'rad',
        above=0.0,
    )
    max_tracking_error_rad: float = setting(
        0.5,
        'arm joint measured further than this from its command: sending ends',
        'rad',
        above=0.0,
    )
    max_stall_error_rad: float = setting(
        0.15,
        'arm joint standing still further than this from its command for stall_s: sending ends',
        'rad',
        above=0.0,
    )
    stall_s: float = setting(
        1.0,
        'how long such an arm joint may stand still; an emergency stop looks so',
        's',
        above=0.0,
    )
    tracking_hold_s: float = setting(
        1.5, 'nothing is sent for this long after an arm was not where it was sent', 's', 0.0, 60.0
    )
    max_tracking_losses: int = setting(
        3, 'such losses within tracking_window_s that latch a FAULT', '', 1, 1000
    )
    tracking_window_s: float = setting(
        30.0, 'window of max_tracking_losses; a slow arm takes seconds a loss', 's', above=0.0
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
class AuditConfig:
    """The shadow audit: what the unpruned policy would have done, asked in idle time."""

    every_steps: int = setting(
        50, 'policy steps between two audits; 0: never', 'policy steps', 0, 1000000
    )
    max_deviation_rad: float = setting(
        0.0, 'a larger difference raises the retention ratio; 0: only report', 'rad', 0.0
    )
    clean_audits: int = setting(
        10, 'audits in a row below the limit after which the ratio falls again', '', 1, 10000
    )
    first_ms: float = setting(
        500.0, 'idle time the first audit waits for, before an unpruned step was seen', 'ms', 0.0
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class RetentionConfig:
    """Retention that follows a latency budget. Ratios: BUCKETS in runtime/retention_control.py."""

    latency_budget_ms: float = setting(
        0.0,
        'time a pruned policy step may take (p95); 0: the ratio stays as configured',
        'ms',
        0.0,
    )
    min_ratio: float = setting(0.1, 'the budget never lowers the ratio below this', '', 0.0, 1.0)
    headroom: float = setting(
        0.85,
        'more tokens only if expected to take less than this share of the budget',
        '',
        0.1,
        1.0,
    )
    window_steps: int = setting(
        40, 'pruned steps whose latency decides; more tokens only after so many', '', 10, 10000
    )

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class RuntimeConfig:
    """Everything between messages and policy."""

    control_rate_hz: float = setting(
        50.0,
        'rate of commands; not below 5, as half a second without one starts everything anew',
        'Hz',
        5.0,
        1000.0,
    )
    buffer: BufferConfig = field(default_factory=BufferConfig)
    actions: ActionConfig = field(default_factory=ActionConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def control_period_ns(self) -> int:
        return round(1e9 / self.control_rate_hz)
