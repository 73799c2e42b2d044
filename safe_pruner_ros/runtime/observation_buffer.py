"""Latest images, measured joints and instruction -> Observation, or NotReady with reasons.

Callbacks store, the worker takes snapshots, the control timer asks `readiness`; all thread safe.
Knows no policy and no clock: ``receive_ns`` and ``now_ns`` are readings of the node clock.

Cameras run free, so the newest images of all views need not belong together. A snapshot takes the
latest moment that *every* view has reached, and from each view the image closest to it; a few
images per view are kept for that. (No ApproximateTimeSynchronizer: after a clock jump its full
queue throws away the new images, not the old.)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig, RobotConfig
from safe_pruner_ros.runtime.instruction_text import clean_instruction
from safe_pruner_ros.runtime.joint_samples import JointSamples
from safe_pruner_ros.runtime.source_statistics import SourceStatistics
from safe_pruner_ros.runtime.stamps import CLOCK_JUMP_NS, seconds
from safe_pruner_ros.runtime.state_history import StateHistory, StoredState
from safe_pruner_ros.runtime.view_history import StoredImage, ViewHistory
from safe_pruner_ros.types import ArmState, CameraImage, FloatArray, Observation

__all__ = ['NotReady', 'ObservationBuffer', 'Snapshot', 'SourceStatistics']


@dataclass(frozen=True)
class NotReady:
    """Why there is no Observation; at least one reason, each naming its camera or joint source."""

    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return '; '.join(str(reason) for reason in self.reasons)


@dataclass(frozen=True)
class Snapshot:
    """An Observation, the generation it belongs to, and warnings (old view, skew, ...).

    ``received_ns``: node clock when the last of its images arrived.
    """

    observation: Observation
    generation: int
    warnings: tuple[Reason, ...] = ()
    received_ns: int = 0


class ObservationBuffer:
    """See the module. ``robot`` says which views and state sources there are."""

    def __init__(self, robot: RobotConfig, config: BufferConfig) -> None:
        self._config = config
        self._layout = robot.layout
        self._lock = threading.RLock()
        names = self._names = self._layout.names
        arms = frozenset(joint.name for joint in robot.joints if joint.kind == 'arm')
        self._views = {}
        for camera in robot.cameras:
            moving = set(camera.moving_joints) & arms if camera.moving_joints else arms
            mask = np.array([float(name in moving) for name in names])
            self._views[camera.name] = ViewHistory(camera, config, mask)
        self._required = {n: v for n, v in self._views.items() if v.camera.required}
        self._states = {s.name: StateHistory(s, config, arms) for s in robot.state_sources}
        self._topic = robot.instruction_topic
        self._instruction: str | Reason = Reason(
            Code.INSTRUCTION_EMPTY, f'no instruction yet; publish one on {self._topic}'
        )
        self._latest: ArmState | None = None  # what `state` last merged; None: merge anew
        self._generation = 0
        self._last_receive_ns = 0

    # ---- callbacks

    def store_image(self, image: CameraImage, receive_ns: int) -> Reason | None:
        """Keep an image, or return why it was refused (counted, never raised)."""
        with self._lock:
            view = self._views.get(image.view)
            if view is None:
                return Reason(
                    Code.IMAGE_UNKNOWN_VIEW,
                    f'no camera {image.view!r}; configured: {sorted(self._views)}',
                )
            self._watch_clock(receive_ns)
            return view.store(image, receive_ns, self._joints())

    def store_joints(
        self,
        source: str,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        receive_ns: int,
    ) -> Reason | None:
        """Keep a message of the state source ``source`` (its config name), or return why not."""
        with self._lock:
            state = self._states.get(source)
            if state is None:
                return Reason(
                    Code.STATE_UNKNOWN_SOURCE,
                    f'no state source {source!r}; configured: {sorted(self._states)}',
                )
            self._watch_clock(receive_ns)
            self._latest = None
            return state.store(names, positions, stamp_ns, receive_ns)

    def refuse(self, source: str, reason: Reason) -> None:
        """Count a message that conversion already refused (encoding, truncated, ...)."""
        with self._lock:
            entry = self._views.get(source) or self._states.get(source)
            if entry is not None:
                entry.counter.refuse(reason)

    def set_instruction(self, text: str) -> Reason | None:
        """Set the instruction; a change bumps the generation.

        An empty, too long or unprintable text is refused *and* leaves no instruction: the arms
        hold instead of going on with the last one.
        """
        cleaned = clean_instruction(text, self._config.max_instruction_chars)
        with self._lock:
            if cleaned != self._instruction:
                self._instruction = cleaned
                self._generation += 1
        return cleaned if isinstance(cleaned, Reason) else None

    def _watch_clock(self, receive_ns: int) -> None:
        """A node clock that goes back (bag loop, simulator reset) makes all stored data wrong."""
        if receive_ns < self._last_receive_ns - CLOCK_JUMP_NS:
            self.clear()
        self._last_receive_ns = receive_ns

    # ---- readers

    def snapshot(self, now_ns: int) -> Snapshot | NotReady:
        """The newest set of images and joints that belongs together."""
        with self._lock:
            reasons = self._reasons(now_ns)
            if reasons:
                return NotReady(reasons)
            images = self._matched()
            assert isinstance(self._instruction, str)  # otherwise there was a reason
            moment_ns = min(stored.stamp_ns for stored in images.values())
            state = self._merged([s.nearest(moment_ns) for s in self._states.values()])
            observation = Observation(
                images={name: stored.image for name, stored in images.items()},
                state=state,
                instruction=self._instruction,
                stamp_ns=min(moment_ns, state.stamp_ns),
            )
            received_ns = max(stored.receive_ns for stored in images.values())
            return Snapshot(observation, self._generation, self._warnings(now_ns), received_ns)

    def readiness(self, now_ns: int) -> NotReady | None:
        """As `snapshot`, without building one; None means ready. Cheap: for the control timer."""
        with self._lock:
            reasons = self._reasons(now_ns)
        return NotReady(reasons) if reasons else None

    def warnings(self, now_ns: int) -> tuple[Reason, ...]:
        """What is reported but does not hold the arms."""
        with self._lock:
            return self._warnings(now_ns)

    def state(self) -> ArmState | None:
        """Latest joints of all sources in layout order, stamped with the oldest; None: missing."""
        with self._lock:
            newest = [state.newest for state in self._states.values()]
            present = [stored for stored in newest if stored is not None]
            if self._latest is None and len(present) == len(newest):
                self._latest = self._merged(present)
            return self._latest

    def believed_joints(self) -> JointSamples:
        """The latest joints of every source that is believed, whatever the others say."""
        with self._lock:
            return self._samples([state.newest for state in self._states.values()])

    def doubted_joints(self) -> JointSamples:
        """What the sources say that are not believed now (`STATE_RECOVERING`). Not to start from,
        only to stop for."""
        with self._lock:
            states = self._states.values()
            return self._samples([None if s.newest else s.last_seen for s in states])

    @property
    def instruction(self) -> str:
        """The instruction in force; '' if there is none."""
        text = self._instruction
        return text if isinstance(text, str) else ''

    @property
    def generation(self) -> int:
        """Changes when pending results must not be used any more."""
        return self._generation

    def bump_generation(self) -> int:
        """Make every result of an earlier snapshot void; returns the new generation."""
        with self._lock:
            self._generation += 1
            return self._generation

    def clear(self) -> None:
        """Forget images and joints (time jump, reset), keep the instruction, bump generation."""
        with self._lock:
            for entry in self._sources():
                entry.clear()
            self._latest = None
            self._last_receive_ns = 0
            self._generation += 1

    def statistics(self, now_ns: int) -> tuple[SourceStatistics, ...]:
        """One entry per camera, then one per state source."""
        with self._lock:
            return tuple(
                source.counter.statistics(now_ns, source.age_s(now_ns))
                for source in self._sources()
            )

    # ---- under the lock

    def _sources(self) -> list[ViewHistory | StateHistory]:
        return [*self._views.values(), *self._states.values()]

    def _joints(self) -> FloatArray | None:
        state = self.state()
        return None if state is None else state.positions

    def _merged(self, samples: Sequence[StoredState]) -> ArmState:
        values = {joint: value for sample in samples for joint, value in sample.values.items()}
        oldest_ns = min(s.stamp_ns for s in samples)
        return ArmState(self._layout.ordered(values), self._names, oldest_ns)

    def _samples(self, stored: Sequence[StoredState | None]) -> JointSamples:
        return JointSamples.merged(
            self._names, [(sample.values, sample.stamp_ns) for sample in stored if sample]
        )

    def _reasons(self, now_ns: int) -> tuple[Reason, ...]:
        if now_ns <= 0:
            text = 'the node clock is still zero; with use_sim_time, start what sends /clock'
            return (Reason(Code.CLOCK_MISSING, text),)
        reasons: list[Reason | None] = []
        joints = self._joints()
        reasons += [view.problem(now_ns, joints) for view in self._required.values()]
        reasons += [state.problem(now_ns) for state in self._states.values()]
        if not any(reasons):
            reasons += [self._image_skew(self._config.max_skew_s), self._state_skew()]
        if isinstance(self._instruction, Reason):
            reasons.append(self._instruction)
        return tuple(reason for reason in reasons if reason is not None)

    def _warnings(self, now_ns: int) -> tuple[Reason, ...]:
        reasons = [view.warning(now_ns) for view in self._views.values()]
        for view in self._views.values():
            if not view.camera.required:
                reasons.append(view.problem(now_ns, self._joints()))
        if all(view.newest for view in self._required.values()):
            reasons.append(self._image_skew(self._config.max_skew_warn_s))
        return tuple(reason for reason in reasons if reason is not None)

    def _matched(self) -> dict[str, StoredImage]:
        """From each view the image closest to the latest moment that all required ones reached."""
        newest = [view.newest for view in self._required.values()]
        moment_ns = min(stored.stamp_ns for stored in newest if stored is not None)
        found = {}
        for name, view in self._views.items():
            if view.newest is None:
                continue
            stored = view.nearest(moment_ns)
            distance_s = abs(seconds(stored.stamp_ns - moment_ns))
            if name in self._required or distance_s <= self._config.max_skew_s:
                found[name] = stored
        return found

    def _image_skew(self, limit_s: float) -> Reason | None:
        stamps = {n: s.stamp_ns for n, s in self._matched().items() if n in self._required}
        first, last = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        skew_s = seconds(stamps[last] - stamps[first])
        if skew_s <= limit_s:
            return None
        return Reason(
            Code.IMAGE_SKEW,
            f'camera {first!r} is {skew_s:.3f} s behind camera {last!r} (limit {limit_s} s); '
            f'check the load of its driver and its clock',
        )

    def _state_skew(self) -> Reason | None:
        stamps = {name: s.newest.stamp_ns for name, s in self._states.items() if s.newest}
        first, last = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        skew_s = seconds(stamps[last] - stamps[first])
        if skew_s <= self._config.max_skew_s:
            return None
        return Reason(
            Code.STATE_SKEW,
            f'state source {first!r} is {skew_s:.3f} s behind {last!r} (limit '
            f'{self._config.max_skew_s} s); check the driver of this arm',
        )
