"""One code per refusal, hold or warning of the runtime, for diagnostics, counters and tests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Code(str, Enum):
    """What is wrong. The value is what users see in diagnostics and search for in the docs."""

    # clock and stamps
    CLOCK_MISSING = 'CLOCK_MISSING'  # node clock still zero (use_sim_time without /clock)
    CLOCK_STOPPED = 'CLOCK_STOPPED'  # node clock stands still: simulator or bag paused
    CLOCK_JUMPED = 'CLOCK_JUMPED'  # node clock went back: bag loop, simulator reset
    CONTROL_GAP = 'CONTROL_GAP'  # no control tick for long: process stopped, machine asleep
    STAMP_ZERO = 'STAMP_ZERO'
    STAMP_IN_FUTURE = 'STAMP_IN_FUTURE'
    STAMP_OTHER_CLOCK = 'STAMP_OTHER_CLOCK'
    # cameras
    IMAGE_UNKNOWN_VIEW = 'IMAGE_UNKNOWN_VIEW'
    IMAGE_MISSING = 'IMAGE_MISSING'
    IMAGE_STALE = 'IMAGE_STALE'
    IMAGE_OLD = 'IMAGE_OLD'  # warning: older than max_image_age_warn_s
    IMAGE_REORDERED = 'IMAGE_REORDERED'
    IMAGE_SIZE = 'IMAGE_SIZE'
    IMAGE_FROZEN = 'IMAGE_FROZEN'
    IMAGE_UNIFORM = 'IMAGE_UNIFORM'
    IMAGE_SKEW = 'IMAGE_SKEW'
    IMAGE_RECOVERING = 'IMAGE_RECOVERING'  # fresh again, waiting for resume_frames in a row
    IMAGE_INVALID = 'IMAGE_INVALID'  # bad encoding, truncated, ...; refused by ros/conversions
    # joint states
    STATE_UNKNOWN_SOURCE = 'STATE_UNKNOWN_SOURCE'
    STATE_MISSING = 'STATE_MISSING'
    STATE_STALE = 'STATE_STALE'
    STATE_REORDERED = 'STATE_REORDERED'
    STATE_SKEW = 'STATE_SKEW'
    STATE_RECOVERING = 'STATE_RECOVERING'  # at the start or after a gap: not enough samples agree
    STATE_NAMES = 'STATE_NAMES'  # a needed name is missing or repeated
    STATE_SIZE = 'STATE_SIZE'  # name[] and position[] do not fit
    STATE_NONFINITE = 'STATE_NONFINITE'
    STATE_JUMP = 'STATE_JUMP'
    STATE_CONFLICT = 'STATE_CONFLICT'  # samples contradict each other: two publishers, or a cable
    STATE_OUTSIDE_LIMITS = 'STATE_OUTSIDE_LIMITS'
    # instruction
    INSTRUCTION_EMPTY = 'INSTRUCTION_EMPTY'
    INSTRUCTION_REFUSED = 'INSTRUCTION_REFUSED'
    # topics, seen by ros/graph_watch
    INPUT_DOUBLED = 'INPUT_DOUBLED'  # two nodes publish what one camera or one arm should
    COMMAND_RIVAL = 'COMMAND_RIVAL'  # another node commands the arms, or did: until ~/resume
    COMMAND_UNHEARD = 'COMMAND_UNHEARD'  # nobody listens on a command topic
    # sending, seen by ros/session
    COMMAND_UNSENT = 'COMMAND_UNSENT'  # publishing raised, perhaps for one arm of two: ~/resume
    # inference
    POLICY_ERROR = 'POLICY_ERROR'
    POLICY_OUTPUT = 'POLICY_OUTPUT'  # the policy itself refused what its network returned
    POLICY_FAILING = 'POLICY_FAILING'  # retry budget spent: FAULT
    INFERENCE_SLOW = 'INFERENCE_SLOW'  # the policy step in progress exceeds max_inference_s
    RESULT_DISCARDED = 'RESULT_DISCARDED'  # generation changed while the policy computed
    PAUSED = 'PAUSED'
    # actions
    ACTION_NONFINITE = 'ACTION_NONFINITE'
    ACTION_SHAPE = 'ACTION_SHAPE'
    ACTION_JOINTS = 'ACTION_JOINTS'
    ACTION_LATE = 'ACTION_LATE'
    ACTION_OUT_OF_ORDER = 'ACTION_OUT_OF_ORDER'
    NO_ACTION = 'NO_ACTION'  # no chunk yet, or the chunk ran out
    ACTION_OLD = 'ACTION_OLD'  # the chunk answers an observation older than max_action_age_s
    # command guard
    COMMAND_JOINTS = 'COMMAND_JOINTS'
    COMMAND_NONFINITE = 'COMMAND_NONFINITE'
    COMMAND_STALE = 'COMMAND_STALE'
    POSITION_LIMIT = 'POSITION_LIMIT'
    VELOCITY_LIMIT = 'VELOCITY_LIMIT'
    STEP_LIMIT = 'STEP_LIMIT'
    GRIPPER_RANGE = 'GRIPPER_RANGE'  # far outside 0..1: probably another unit
    OSCILLATION = 'OSCILLATION'
    START_ERROR = 'START_ERROR'  # first target too far from the measured pose
    SOFT_START = 'SOFT_START'
    TRACKING_LOST = 'TRACKING_LOST'  # the arm is not where it was sent: blocked, moved by hand
    TRACKING_FAILING = 'TRACKING_FAILING'  # lost again and again: FAULT
    CLAMPED_TOO_LONG = 'CLAMPED_TOO_LONG'  # FAULT


@dataclass(frozen=True)
class Reason:
    """A code and one sentence: what was wrong, what arrived, what to do next."""

    code: Code
    text: str

    def __str__(self) -> str:
        return f'{self.code.value}: {self.text}'
