"""Numbers of a replay: how far a method is from unpruned, and both from the recorded commands.

Only targets that would be executed count (the first ``horizon`` of a chunk). Arm joints in rad,
grippers in closed fraction, hands in mm where the robot's kinematics are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.evaluation.replay.replay import Lane, Replay
from safe_pruner_ros.types import FloatArray, JointCommand, JointLayout

GRIPPER_CLOSED = 0.5  # closed fraction; crossing it is a flip
MAX_COMMAND_GAP_S = 0.25  # between two recorded commands that are interpolated
NO_VALUES = {'n': 0, 'p50': None, 'p99': None, 'max': None}


@dataclass(frozen=True)
class Limits:
    """What a release must keep; None: not asked for. Each method has to keep all of them."""

    max_deviation_rad: float | None = None
    max_deviation_p99_rad: float | None = None
    max_gripper_flips: int | None = None
    max_missed_deadlines: int | None = None
    max_latency_p99_ms: float | None = None


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Count, p50, p99 and max of the finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return dict(NO_VALUES)
    p50, p99 = np.percentile(finite, (50, 99))
    return {
        'n': int(finite.size),
        'p50': float(p50),
        'p99': float(p99),
        'max': float(finite.max()),
    }


def deviation(lane: Lane, record: Replay) -> FloatArray:
    """|lane - unpruned| of every executed target, [steps, horizon, n]; NaN where a step failed."""
    return np.abs(lane.targets(record.horizon) - record.baseline.targets(record.horizon))


def command_track(
    commands: Sequence[JointCommand], layout: JointLayout, due_ns: npt.NDArray[np.int64]
) -> FloatArray:
    """Recorded commands at ``due_ns`` [steps, horizon] -> [steps, horizon, n], linear in between;
    NaN outside the recording and in gaps of more than MAX_COMMAND_GAP_S."""
    track = np.full((*due_ns.shape, len(layout)), np.nan)
    for column, joint in enumerate(layout.names):
        pairs = [
            (c.stamp_ns, c.positions[c.joint_names.index(joint)])
            for c in commands
            if joint in c.joint_names
        ]
        if len(pairs) < 2:
            continue
        stamps = np.array([stamp for stamp, _ in pairs], np.int64)
        values = np.array([value for _, value in pairs])
        after = np.searchsorted(stamps, due_ns).clip(1, len(stamps) - 1)
        gap_s = (stamps[after] - stamps[after - 1]) * 1e-9
        inside = (due_ns >= stamps[0]) & (due_ns <= stamps[-1]) & (gap_s <= MAX_COMMAND_GAP_S)
        # Relative to the first: nanoseconds since 1970 do not fit a float64.
        found = np.interp((due_ns - stamps[0]) * 1e-9, (stamps - stamps[0]) * 1e-9, values)
        track[..., column] = np.where(inside, found, np.nan)
    return track


def evaluate_replay(
    record: Replay, commands: Sequence[JointCommand], deadline_ms: float, limits: Limits
) -> dict[str, Any]:
    """Everything report.json says about the methods. The first lane is the unpruned policy."""
    track = command_track(commands, record.layout, record.due_ns)
    has_commands = bool(np.isfinite(track).any())
    n_steps = len(record.stamps_ns)
    lost = sum(bool(step.error) for step in record.baseline.steps)
    lanes = []
    for lane in record.lanes:
        found = _lane(lane, record, deadline_ms)
        if has_commands:
            found['versus_commands'] = _versus_commands(lane, record, track)
        # Its latency is what pruning is asked to mend, and its distance to itself is 0.
        judged = _failures(found, limits) if lane is record.baseline else exceeded(found, limits)
        if lost and lane is not record.baseline and any_limit(limits):
            judged.append(
                f'no reference for {lost} of {n_steps} steps: the unpruned policy failed'
            )
        found['exceeded'] = judged
        lanes.append(found)
    return {
        'policy_steps': n_steps,
        'duration_s': float(record.times_s[-1]) if record.stamps_ns else 0.0,
        'instructions': list(dict.fromkeys(record.instructions)),
        'joints': list(record.layout.names),
        'execution_horizon': record.horizon,
        'period_s': record.period_ns * 1e-9,
        'deadline_ms': deadline_ms,
        'recorded_commands': len(commands),
        'limits': {name: value for name, value in vars(limits).items() if value is not None},
        'methods': lanes,
        'passed': not any(lane['exceeded'] for lane in lanes),
    }


def _lane(lane: Lane, record: Replay, deadline_ms: float) -> dict[str, Any]:
    is_gripper = record.layout.is_gripper
    apart = deviation(lane, record)
    targets, unpruned = (x.targets(record.horizon) for x in (lane, record.baseline))
    latency = np.array([step.total_ms for step in lane.steps])
    good = [step for step in lane.steps if not step.error]
    keys = [(number, step) for number, step in enumerate(lane.steps) if step.is_key_timestep]
    retained = np.array([step.n_retained for step in good], float)
    reference = np.array([step.total_ms for step in record.baseline.steps])
    both = np.isfinite(latency) & np.isfinite(reference)
    return {
        'name': lane.name,
        'method': lane.method,
        'retention_ratio': lane.retention_ratio,
        'compared_steps': sum(
            not (own.error or its.error)
            for own, its in zip(lane.steps, record.baseline.steps, strict=True)
        ),
        'deviation_rad': percentiles(apart[..., ~is_gripper]),
        'deviation_per_joint': {
            joint: percentiles(apart[..., column])
            for column, joint in enumerate(record.layout.names)
        },
        'end_effector_mm': _hands(targets, unpruned, record),
        'gripper_flips': _flips(targets, unpruned, is_gripper),
        'n_visual': max((step.n_visual for step in good), default=0),
        'retained_tokens_mean': float(retained.mean()) if good else None,
        'pruned_share_mean': (
            float(np.mean([1 - s.n_retained / s.n_visual for s in good])) if good else None
        ),
        'keyframes': len(keys),
        'keyframe_steps': [number for number, _ in keys],
        'keyframe_reasons': dict(Counter(step.reason for _, step in keys)),
        'latency_ms': percentiles(latency),
        'speedup': float(reference[both].mean() / latency[both].mean()) if both.any() else None,
        'missed_deadlines': int((latency > deadline_ms).sum()),
        'failed_steps': [
            {'step': number, 'error': step.error}
            for number, step in enumerate(lane.steps)
            if step.error
        ],
    }


def _flips(mine: FloatArray, its: FloatArray, is_gripper: npt.NDArray[np.bool_]) -> int:
    """Policy steps x grippers in which an executed target [steps, horizon, n] is closed in one and
    open in the other."""
    mine, its = mine[..., is_gripper], its[..., is_gripper]
    differs = (mine > GRIPPER_CLOSED) != (its > GRIPPER_CLOSED)
    differs &= np.isfinite(mine) & np.isfinite(its)
    return int(differs.any(axis=1).sum())


def _versus_commands(lane: Lane, record: Replay, track: FloatArray) -> dict[str, Any]:
    targets, is_gripper = lane.targets(record.horizon), record.layout.is_gripper
    apart = np.abs(targets - track)
    return {
        'deviation_rad': percentiles(apart[..., ~is_gripper]),
        'per_joint': {
            joint: percentiles(apart[..., column])
            for column, joint in enumerate(record.layout.names)
        },
        'end_effector_mm': _hands(targets, track, record),
        'gripper_flips': _flips(targets, track, is_gripper),
    }


def _hands(mine: FloatArray, its: FloatArray, record: Replay) -> dict[str, Any] | None:
    """Distance of the hands [mm] by name between targets [steps, horizon, n]; None where the
    robot's kinematics are not known."""
    if record.kinematics is None:
        return None
    n_joints = len(record.layout)
    apart = np.full((mine[..., 0].size, len(record.end_effectors)), np.nan)
    pairs = zip(mine.reshape(-1, n_joints), its.reshape(-1, n_joints), strict=True)
    for row, (a, b) in enumerate(pairs):
        if np.isfinite(a).all() and np.isfinite(b).all():
            difference = record.kinematics(a) - record.kinematics(b)
            apart[row] = 1e3 * np.linalg.norm(difference, axis=1)
    return {
        name: percentiles(apart[:, column]) for column, name in enumerate(record.end_effectors)
    }


def any_limit(limits: Limits) -> bool:
    return any(limit is not None for limit in vars(limits).values())


def exceeded(found: Mapping[str, Any], limits: Limits) -> list[str]:
    """One sentence for each limit that a method does not keep. A method without a single value
    to compare keeps none."""
    values = {
        'max_deviation_rad': found['deviation_rad']['max'],
        'max_deviation_p99_rad': found['deviation_rad']['p99'],
        'max_gripper_flips': found['gripper_flips'],
        'max_missed_deadlines': found['missed_deadlines'],
        'max_latency_p99_ms': found['latency_ms']['p99'],
    }
    problems = []
    for name, value in values.items():
        limit = getattr(limits, name)
        if limit is not None and not (value is not None and value <= limit):
            shown = 'no value' if value is None else f'{value:.4g}'
            problems.append(f'{name}: {shown}, limit {limit:g}')
    return problems + _failures(found, limits)


def _failures(found: Mapping[str, Any], limits: Limits) -> list[str]:
    failed = len(found['failed_steps'])
    if not failed or not any_limit(limits):
        return []
    return [f'{failed} policy steps failed; see failed_steps']
