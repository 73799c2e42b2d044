"""Which message stamps can be believed. Readings of the node clock are passed in."""

from __future__ import annotations

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig

NS_PER_S = 1_000_000_000
# Callbacks and timers read the node clock slightly out of order; only more than this is a jump.
CLOCK_JUMP_NS = 100_000_000


def seconds(duration_ns: int) -> float:
    return duration_ns * 1e-9


def usable_stamp(
    stamp_ns: int, receive_ns: int, config: BufferConfig, source: str
) -> int | Reason:
    """The capture time to use for a message from ``source``, or why it must be refused."""
    if receive_ns <= 0:
        return Reason(
            Code.CLOCK_MISSING,
            f'{source}: the node clock is still zero; with use_sim_time, start what sends /clock',
        )
    if stamp_ns == 0:
        if config.allow_zero_stamp:
            return receive_ns
        return Reason(
            Code.STAMP_ZERO,
            f'{source}: header.stamp is zero; fix the driver, or set '
            f'runtime.buffer.allow_zero_stamp to use the receive time',
        )
    offset_s = seconds(receive_ns - stamp_ns)
    if offset_s < -config.max_future_s:
        return Reason(
            Code.STAMP_IN_FUTURE,
            f'{source}: stamp is {-offset_s:.3f} s ahead of the node clock (limit '
            f'{config.max_future_s} s); synchronise the clocks of the two machines (chrony)',
        )
    if offset_s > config.max_stamp_offset_s:
        return Reason(
            Code.STAMP_OTHER_CLOCK,
            f'{source}: stamp is {offset_s:.1f} s behind the node clock (limit '
            f'{config.max_stamp_offset_s} s), so it comes from another clock; check use_sim_time '
            f'on both sides',
        )
    return stamp_ns
