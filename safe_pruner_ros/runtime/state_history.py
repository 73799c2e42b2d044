"""Measured joints of one state source over the last moments.

A pose is believed once samples in a row agree on it: at the start, after a gap and after a jump. A
driver that begins anew may begin with zeros, and commands start from the measured pose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig, StateSourceConfig
from safe_pruner_ros.runtime.joint_mapping import StateError, state_values
from safe_pruner_ros.runtime.source_statistics import SourceCounter
from safe_pruner_ros.runtime.stamps import NS_PER_S, seconds, usable_stamp

KEPT_SAMPLES = 256  # a second at the 250 Hz of an Astribot S1
# An encoder that glitches contradicts itself now and then; a joint_state_publisher that was
# forgotten beside the driver does it 10 times a second.
MAX_CONTRADICTIONS = 5
CONTRADICTION_WINDOW_NS = 2 * NS_PER_S


@dataclass(frozen=True)
class StoredState:
    values: Mapping[str, float]
    stamp_ns: int
    receive_ns: int


class StateHistory:
    """Not thread safe: the ObservationBuffer locks. ``arm_joints``: joints measured in rad."""

    def __init__(
        self, source: StateSourceConfig, config: BufferConfig, arm_joints: frozenset[str]
    ) -> None:
        self.source = source
        self.counter = SourceCounter(source.name)
        self._config = config
        self._arm_joints = arm_joints
        self.clear()

    def clear(self) -> None:
        self._samples: deque[StoredState] = deque(maxlen=KEPT_SAMPLES)  # believed
        self._before_gap: StoredState | None = None
        self._recovers_from = 'at the start'
        # When a sample contradicted the one before it; an arm that was moved does so once.
        self._contradictions_ns: deque[int] = deque(maxlen=KEPT_SAMPLES)
        self._forget_doubted()
        self.counter.clear()

    def _forget_doubted(self) -> None:
        """The samples since the last believed one; each agrees with the one before it."""
        self._doubted: deque[StoredState] = deque(maxlen=KEPT_SAMPLES)
        self._doubted_count = 0
        self._doubted_since_ns = 0

    @property
    def newest(self) -> StoredState | None:
        """The measured pose; None while there is none that can be believed."""
        return self._samples[-1] if self._samples else None

    @property
    def last_seen(self) -> StoredState | None:
        """The newest sample that agreed with the one before it, believed or not."""
        return self._doubted[-1] if self._doubted else self.newest

    def nearest(self, stamp_ns: int) -> StoredState:
        """The sample closest to ``stamp_ns``; there must be a `newest`."""
        return min(self._samples, key=lambda stored: abs(stored.stamp_ns - stamp_ns))

    def store(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, receive_ns: int
    ) -> Reason | None:
        source = f'state source {self.source.name!r}'
        stamp = usable_stamp(stamp_ns, receive_ns, self._config, source)
        if isinstance(stamp, Reason):
            return self.counter.refuse(stamp)
        try:
            values = state_values(self.source, names, positions)
        except StateError as error:
            return self.counter.refuse(error.reason)
        sample = StoredState(values, stamp, receive_ns)
        self._watch_gap(sample)
        # A refused pose may be stamped by another clock: it must not make the believed ones late.
        last = self.newest or self.last_seen
        if last is not None and stamp < last.stamp_ns:
            if self._jumps(last, sample):  # a second publisher whose stamps lag
                self._contradictions_ns.append(receive_ns)
            return self.counter.refuse(
                Reason(
                    Code.STATE_REORDERED,
                    f'{source}: a sample {seconds(last.stamp_ns - stamp):.3f} s older than '
                    f'the last one; check for two publishers on {self.source.topic}',
                )
            )
        if self.newest is not None and not self._jumps(self.newest, sample):
            self._forget_doubted()
            self._samples.append(sample)
        elif reason := self._doubt(sample):
            return self.counter.refuse(reason)
        self.counter.accept(receive_ns)
        return None

    def _watch_gap(self, sample: StoredState) -> None:
        """After a silence the pose is unknown: whoever starts to speak again must prove it."""
        last = self.last_seen
        if last is None:
            return
        gap_ns = max(sample.stamp_ns - last.stamp_ns, sample.receive_ns - last.receive_ns)
        limit_s = self._config.max_state_age_s
        if seconds(gap_ns) > limit_s:
            self._before_gap = self.newest or self._before_gap
            self._samples.clear()
            self._forget_doubted()
            self._recovers_from = f'after a gap of {seconds(gap_ns):.3f} s (limit {limit_s} s)'

    def _doubt(self, sample: StoredState) -> Reason | None:
        """Keep a sample that no believed one vouches for; a Reason if it contradicts one."""
        last = self.last_seen
        jumps = self._jumps(last, sample) if last else []
        if jumps:
            self._contradictions_ns.append(sample.receive_ns)
        if jumps or not self._doubted:
            self._forget_doubted()
            self._doubted_since_ns = sample.stamp_ns
        self._doubted.append(sample)
        self._doubted_count += 1
        if self._are_believed():
            self._samples.extend(self._doubted)
            self._forget_doubted()
            return None
        if self.newest is not None:
            jumps = self._jumps(self.newest, sample)
        if not jumps:
            return None
        return Reason(
            Code.STATE_JUMP,
            f'state source {self.source.name!r}: {jumps} changed by more than '
            f'{self._config.max_state_jump_rad} rad in one sample; '
            f'check the encoder and its cable',
        )

    def _jumps(self, before: StoredState, after: StoredState) -> list[str]:
        limit = self._config.max_state_jump_rad
        return [
            joint
            for joint, value in after.values.items()
            if joint in self._arm_joints and abs(value - before.values[joint]) > limit
        ]

    def _are_believed(self) -> bool:
        """Whether the doubted samples tell where the joints are.

        They must have agreed for longer than a silence may last, which takes at least three. If
        they contradict the pose known before, somebody moved the arm or the driver is wrong: then
        it takes ``state_jump_samples``.
        """
        newest = self._doubted[-1]
        if seconds(newest.stamp_ns - self._doubted_since_ns) <= self._config.max_state_age_s:
            return False
        return (
            not self._contradicts(newest) or self._doubted_count >= self._config.state_jump_samples
        )

    def _contradicts(self, sample: StoredState) -> bool:
        known = self.newest or self._before_gap
        return known is not None and bool(self._jumps(known, sample))

    # ---- judging

    def age_s(self, now_ns: int) -> float:
        """Seconds since the newest sample was measured or received, whichever is longer ago."""
        stored = self.newest or self.last_seen
        if stored is None:
            return float('nan')
        return seconds(now_ns - min(stored.stamp_ns, stored.receive_ns))

    def problem(self, now_ns: int) -> Reason | None:
        """Why these joints cannot be used now."""
        last = self.counter.last_refusal
        why = f'; last refusal: {last}' if last else ''
        where = f'state source {self.source.name!r} ({self.source.topic})'
        if self.last_seen is None:
            return Reason(Code.STATE_MISSING, f'{where}: no joint states yet{why}')
        if (count := self._contradictions(now_ns)) >= MAX_CONTRADICTIONS:
            return Reason(
                Code.STATE_CONFLICT,
                f'{where}: {count} times in {seconds(CONTRADICTION_WINDOW_NS):g} s a sample was '
                f'more than {self._config.max_state_jump_rad} rad from the one before it; '
                f'probably two publishers, see `ros2 topic info -v {self.source.topic}` and end '
                f'one. If there is only one, check the encoders and their cables{why}',
            )
        age_s = self.age_s(now_ns)
        if age_s > self._config.max_state_age_s:
            return Reason(
                Code.STATE_STALE,
                f'{where}: newest joint states are {age_s:.2f} s old (limit '
                f'{self._config.max_state_age_s} s); check the driver of this arm{why}',
            )
        if self.newest is None:
            return Reason(Code.STATE_RECOVERING, f'{where}: {self._recovering()}{why}')
        return None

    def _contradictions(self, now_ns: int) -> int:
        begin_ns = now_ns - CONTRADICTION_WINDOW_NS
        return sum(stamp_ns > begin_ns for stamp_ns in self._contradictions_ns)

    def _recovering(self) -> str:
        newest, config = self._doubted[-1], self._config
        agreed_s = seconds(newest.stamp_ns - self._doubted_since_ns)
        waiting = (
            f'more than {config.max_state_age_s} s of samples that agree, so far {agreed_s:.3f} s'
        )
        if self._contradicts(newest):
            waiting += (
                f' and {self._doubted_count} of the {config.state_jump_samples} samples that a '
                f'pose other than before needs'
            )
        return f'{self._recovers_from} it takes {waiting}'
