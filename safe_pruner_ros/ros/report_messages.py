"""StepReport -> the package's messages. Pure functions; field meanings are in msg/*.msg."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.msg import (
    ActionChunk,
    KeyframeEvent,
    PruningStatus,
    SaliencyMap,
    ShadowAudit,
)
from safe_pruner_ros.policies.policy import PruningTrace, ViewSpec
from safe_pruner_ros.ros.conversions import NS_PER_S, ns_to_stamp
from safe_pruner_ros.runtime.shadow_audit import Audit, AuditCounts
from safe_pruner_ros.runtime.step_report import StepReport

_KEYFRAME_REASONS = {
    'first step': KeyframeEvent.FIRST_STEP,
    'subtask boundary': KeyframeEvent.SUBTASK_BOUNDARY,
    'instruction changed': KeyframeEvent.INSTRUCTION_CHANGED,
    'layout changed': KeyframeEvent.LAYOUT_CHANGED,
    'stale': KeyframeEvent.STALE,
    'forced': KeyframeEvent.FORCED,
    'fixed interval': KeyframeEvent.FORCED,
    'warm-up': KeyframeEvent.FORCED,
    'saliency invalid': KeyframeEvent.SALIENCY_INVALID,
}


def view_slices(views: Sequence[ViewSpec]) -> dict[str, slice]:
    """View -> its visual indices; views are in the order of the policy."""
    slices, start = {}, 0
    for view in views:
        slices[view.name] = slice(start, start + view.n_tokens)
        start += view.n_tokens
    return slices


def retained_mask(trace: PruningTrace) -> npt.NDArray[np.bool_]:
    """[V], true where the token stayed."""
    mask = np.zeros(trace.n_visual, dtype=bool)
    mask[trace.retained_index] = True
    return mask


def status_message(report: StepReport, policy: str, now_ns: int) -> PruningStatus | None:
    """``policy`` by name. None when it failed before it could say what it pruned."""
    trace = report.trace
    if trace is None:
        return None
    latency = report.latency_ms
    msg = PruningStatus()
    msg.header.stamp = ns_to_stamp(now_ns)
    msg.policy, msg.method = policy, trace.method
    msg.policy_step = report.step
    msg.instruction = report.instruction
    msg.is_key_timestep = bool(trace.is_key_timestep)
    msg.n_visual = int(trace.n_visual)
    msg.n_retained = int(trace.n_retained)
    msg.retention_ratio = trace.n_retained / trace.n_visual
    msg.pruning_ratio = float(trace.pruning_ratio)
    msg.attention_similarity = float(trace.attention_similarity)
    msg.similarity_threshold = float(trace.similarity_threshold)
    msg.steps_since_keyframe = int(trace.steps_since_keyframe)
    msg.latency_preprocess_ms = _stage(latency, 'preprocess')
    msg.latency_vision_ms = _stage(latency, 'vision')
    msg.latency_decoder_ms = _stage(latency, 'shallow', 'deep')
    msg.latency_scoring_ms = _stage(latency, 'scoring') + latency.get('observe', 0.0)
    msg.latency_head_ms = _stage(latency, 'head')
    msg.latency_total_ms = _stage(latency, 'total')
    msg.observation_stamp = ns_to_stamp(report.observation_stamp_ns)
    msg.observation_age_s = (now_ns - report.observation_stamp_ns) / NS_PER_S
    _fill_age(msg, report)
    msg.pruning_fallback = bool(trace.fallback)
    msg.pruning_fallback_reason = trace.fallback
    return msg


def _fill_age(msg: PruningStatus, report: StepReport) -> None:
    timing, seam, retention = report.timing, report.seam, report.retention
    if timing is not None:
        msg.image_received_stamp = ns_to_stamp(timing.received_ns)
        msg.assembled_stamp = ns_to_stamp(timing.assembled_ns)
        msg.policy_start_stamp = ns_to_stamp(timing.started_ns)
        msg.policy_end_stamp = ns_to_stamp(timing.finished_ns)
    msg.seam_action_age_s = msg.seam_position_jump_rad = msg.seam_velocity_jump_rad_s = math.nan
    if seam is not None:
        msg.seam_observation_stamp = ns_to_stamp(seam.observation_stamp_ns)
        msg.seam_first_command_stamp = ns_to_stamp(seam.first_command_ns)
        msg.seam_action_age_s = seam.action_age_s
        msg.seam_position_jump_rad = seam.position_jump_rad
        msg.seam_velocity_jump_rad_s = seam.velocity_jump_rad_s
    msg.starved_ticks = report.starved_ticks
    msg.target_retention_ratio = math.nan if retention is None else retention.ratio
    msg.retention_reason = '' if retention is None else retention.reason


def audit_message(audit: Audit, counts: AuditCounts) -> ShadowAudit:
    msg = ShadowAudit()
    msg.header.stamp = ns_to_stamp(audit.observation_stamp_ns)
    msg.policy_step = audit.step
    msg.n_visual, msg.n_retained = audit.n_visual, audit.n_retained
    msg.arms_deviation_rad = audit.deviation.arms_rad
    msg.grippers_deviation = audit.deviation.grippers
    msg.gripper_flips = audit.deviation.gripper_flips
    msg.end_effectors_deviation_mm = audit.deviation.end_effectors_mm
    msg.latency_ms = audit.latency_ms
    msg.overran = audit.overran
    msg.audits, msg.above_limit = counts.done, counts.above_limit
    return msg


def keyframe_message(report: StepReport) -> KeyframeEvent | None:
    """None for a pruned step."""
    trace = report.trace
    if trace is None or not trace.keyframe_reason:
        return None
    msg = KeyframeEvent()
    msg.header.stamp = ns_to_stamp(report.observation_stamp_ns)
    msg.reason = _KEYFRAME_REASONS.get(trace.keyframe_reason, KeyframeEvent.FORCED)
    msg.reason_text = trace.keyframe_reason
    if math.isfinite(trace.attention_similarity):
        msg.reason_text += (
            f' (similarity {trace.attention_similarity:.3f}, '
            f'threshold {trace.similarity_threshold:.3f})'
        )
    msg.attention_similarity = float(trace.attention_similarity)
    msg.similarity_threshold = float(trace.similarity_threshold)
    msg.steps_since_keyframe = int(trace.steps_since_keyframe)
    msg.policy_step = report.step
    return msg


def saliency_message(
    report: StepReport, view: ViewSpec, tokens: slice, frame_id: str = ''
) -> SaliencyMap | None:
    """Saliency of one view, whose visual indices are ``tokens``."""
    trace = report.trace
    if trace is None:
        return None
    msg = SaliencyMap()
    msg.header.stamp = ns_to_stamp(report.observation.images[view.name].stamp_ns)
    msg.header.frame_id = frame_id
    msg.view = view.name
    msg.policy_step = report.step
    msg.rows, msg.cols = view.rows, view.cols
    msg.early_saliency = _floats(trace.early, tokens)
    msg.forecast_saliency = _floats(trace.forecast, tokens)
    msg.fused_saliency = _floats(trace.fused, tokens)
    msg.retained = retained_mask(trace)[tokens].tolist()
    msg.is_key_timestep = bool(trace.is_key_timestep)
    msg.retention_ratio = trace.n_retained / trace.n_visual
    return msg


def chunk_message(report: StepReport) -> ActionChunk | None:
    """None when the step's actions were not accepted."""
    chunk = report.chunk
    if chunk is None:
        return None
    msg = ActionChunk()
    msg.header.stamp = ns_to_stamp(report.finished_ns)
    msg.observation_stamp = ns_to_stamp(chunk.start_ns)
    msg.period.sec = chunk.period_ns // NS_PER_S
    msg.period.nanosec = chunk.period_ns % NS_PER_S
    msg.joint_names = list(chunk.joint_names)
    msg.chunk_size = len(chunk.positions)
    msg.positions = np.asarray(chunk.positions, dtype=np.float64).ravel().tolist()
    msg.policy_step = report.step
    return msg


def _stage(latency_ms: Mapping[str, float], *names: str) -> float:
    """Sum of the stages; NaN when one was not measured."""
    return float(sum(latency_ms.get(name, math.nan) for name in names))


def _floats(values: Any, tokens: slice) -> list[float]:
    return [] if values is None else np.asarray(values, dtype=np.float32)[tokens].tolist()
