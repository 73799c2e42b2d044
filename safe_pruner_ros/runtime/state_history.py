"""Measured joints of one state source over the last moments."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig, StateSourceConfig
from safe_pruner_ros.runtime.joint_mapping import StateError, state_values
from safe_pruner_ros.runtime.source_statistics import SourceCounter
from safe_pruner_ros.runtime.stamps import seconds, usable_stamp

KEPT_SAMPLES = 256  # a second at the 250 Hz of an Astribot S1


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
        self._samples: deque[StoredState] = deque(maxlen=KEPT_SAMPLES)
        self._jumped: list[StoredState] = []
        self.counter.clear()

    @property
    def newest(self) -> StoredState | None:
        return self._samples[-1] if self._samples else None

    def nearest(self, stamp_ns: int) -> StoredState:
        """The sample closest to ``stamp_ns``; the history must not be empty."""
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
        newest = self.newest
        if newest is not None:
            last_seen = self._jumped[-1] if self._jumped else newest
            if self._age_s(last_seen, receive_ns) > self._config.max_state_age_s:
                # The stream had stopped and the arms are held: where the joints are now counts.
                self._samples.clear()
                self._jumped.clear()
            elif stamp < newest.stamp_ns:
                return self.counter.refuse(
                    Reason(
                        Code.STATE_REORDERED,
                        f'{source}: a sample {seconds(newest.stamp_ns - stamp):.3f} s older than '
                        f'the last one; check for two publishers on {self.source.topic}',
                    )
                )
            elif (jumps := self._jumps(newest, sample)) and not self._believe_jump(sample):
                return self.counter.refuse(
                    Reason(
                        Code.STATE_JUMP,
                        f'{source}: {jumps} changed by more than '
                        f'{self._config.max_state_jump_rad} rad in one sample; '
                        f'check the encoder and its cable',
                    )
                )
        self._jumped.clear()
        self._samples.append(sample)
        self.counter.accept(receive_ns)
        return None

    def _jumps(self, before: StoredState, after: StoredState) -> list[str]:
        limit = self._config.max_state_jump_rad
        return [
            joint
            for joint, value in after.values.items()
            if joint in self._arm_joints and abs(value - before.values[joint]) > limit
        ]

    def _believe_jump(self, sample: StoredState) -> bool:
        """True once enough samples in a row agree on the new pose: somebody did move the arm."""
        if self._jumped and self._jumps(self._jumped[-1], sample):
            self._jumped.clear()
        self._jumped.append(sample)
        return len(self._jumped) >= self._config.state_jump_samples

    # ---- judging

    @staticmethod
    def _age_s(stored: StoredState, now_ns: int) -> float:
        return seconds(now_ns - min(stored.stamp_ns, stored.receive_ns))

    def age_s(self, now_ns: int) -> float:
        """Seconds since the newest sample was measured or received, whichever is longer ago."""
        return self._age_s(self._samples[-1], now_ns) if self._samples else float('nan')

    def problem(self, now_ns: int) -> Reason | None:
        """Why these joints cannot be used now."""
        last = self.counter.last_refusal
        why = f'; last refusal: {last}' if last else ''
        where = f'state source {self.source.name!r} ({self.source.topic})'
        if not self._samples:
            return Reason(Code.STATE_MISSING, f'{where}: no joint states yet{why}')
        age_s = self.age_s(now_ns)
        if age_s > self._config.max_state_age_s:
            return Reason(
                Code.STATE_STALE,
                f'{where}: newest joint states are {age_s:.2f} s old (limit '
                f'{self._config.max_state_age_s} s); check the driver of this arm{why}',
            )
        return None
