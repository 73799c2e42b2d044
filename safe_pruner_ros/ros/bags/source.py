"""A bag -> the observations that the live node would have made of it. No torch, no rclpy.

The node's own `ObservationBuffer` assembles them by header stamp, fed in recorded order with the
node clock that the recording implies. A new one is due when the actions of the last one that are
meant to be executed are over, or when something (stale camera, new instruction, clock gone back)
made them void: the rule of runtime/inference_worker.py, with a policy that takes no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from safe_pruner_ros.ros.bags.commands import commands_of, recorded_sinks
from safe_pruner_ros.ros.bags.mapping import check_topics
from safe_pruner_ros.ros.bags.reader import Bag, BagError, BagMessage
from safe_pruner_ros.ros.conversions import (
    InputError,
    compressed_to_camera_image,
    image_to_camera_image,
    stamp_to_ns,
)
from safe_pruner_ros.runtime.codes import Code, Reason
from safe_pruner_ros.runtime.config import BufferConfig, RobotConfig, StateSourceConfig
from safe_pruner_ros.runtime.joint_mapping import recipients
from safe_pruner_ros.runtime.observation_buffer import NotReady, ObservationBuffer
from safe_pruner_ros.types import CameraImage, JointCommand, Observation

CLOCK_TOPIC = '/clock'
ClockName = Literal['auto', 'record', 'header', 'topic']


@dataclass(frozen=True)
class HeldSpan:
    """Why the node would have held the arms, on the bag's clock. Empty reasons never occur."""

    start_ns: int
    end_ns: int
    reasons: tuple[Reason, ...]


class BagSource:
    """``policy_period_s``: time that the executed actions of a chunk take. ``clock``: what the
    node clock reads, the record time, the newest header stamp, or the bag's own /clock; 'auto'
    takes /clock where it was recorded, else the record time. ``instruction`` replaces those in the
    bag. Raises BagError when the bag lacks what the robot needs."""

    def __init__(
        self,
        bag: Bag,
        robot: RobotConfig,
        config: BufferConfig,
        policy_period_s: float,
        instruction: str = '',
        clock: ClockName = 'auto',
    ) -> None:
        check_topics(bag, robot, bool(instruction))
        has_clock = bool(bag.counts.get(CLOCK_TOPIC))
        if clock == 'topic' and not has_clock:
            raise BagError(f'{bag.path}: has no messages on {CLOCK_TOPIC}; use --clock record')
        self.clock = ('topic' if has_clock else 'record') if clock == 'auto' else clock
        self._bag, self._robot, self._config = bag, robot, config
        self._period_ns = round(policy_period_s * 1e9)
        self._instruction = instruction
        self._cameras: dict[str, list[Any]] = {}
        for camera in robot.cameras:
            self._cameras.setdefault(camera.topic, []).append(camera)
        self._states: dict[str, list[StateSourceConfig]] = {}
        for source in robot.state_sources:
            self._states.setdefault(source.topic, []).append(source)
        self.held: list[HeldSpan] = []
        self.observations = 0

    # ---- observations

    def __iter__(self) -> Iterator[Observation]:
        """Observations in order. Raises BagError at the end if there was none."""
        self._buffer = buffer = ObservationBuffer(self._robot, self._config)
        self.held, self.observations, self._now_ns = [], 0, 0
        if self._instruction and (reason := buffer.set_instruction(self._instruction)):
            raise ValueError(f'--instruction: {reason}')
        self._is_ready = False
        due_ns, used, generation = 0, (-1, -1), -1
        for message in self._bag.messages(self._topics()):
            now_ns = self._tick(message)
            # What the control timer would have found just before this message came.
            if self._is_ready and (problem := buffer.readiness(now_ns)) is not None:
                buffer.bump_generation()  # what went before is void, as in ControlLoop.tick
                self._note(now_ns, problem)
            is_image = self._store(message, now_ns)
            if buffer.generation != generation:
                generation, due_ns = buffer.generation, 0
            if not is_image or now_ns < due_ns:
                continue
            snapshot = buffer.snapshot(now_ns)
            if isinstance(snapshot, NotReady):
                due_ns = 0
                self._note(now_ns, snapshot)
                continue
            self._note(now_ns, None)
            observation = snapshot.observation
            if (snapshot.generation, observation.stamp_ns) == used:
                continue
            used = (snapshot.generation, observation.stamp_ns)
            due_ns = observation.stamp_ns + self._period_ns
            self.observations += 1
            yield observation
        if not self.observations:
            raise BagError(self._why_none())

    def _topics(self) -> set[str]:
        topics = {*self._cameras, *self._states}
        if not self._instruction:
            topics.add(self._robot.instruction_topic)
        return topics | ({CLOCK_TOPIC} if self.clock == 'topic' else set())

    def _note(self, now_ns: int, problem: NotReady | None) -> None:
        """Keep account of the spans in which nothing could be observed."""
        if problem is not None and (self._is_ready or not self.held):
            self.held.append(HeldSpan(now_ns, now_ns, problem.reasons))
        elif not self._is_ready and self.held:
            last = self.held[-1]
            self.held[-1] = HeldSpan(last.start_ns, now_ns, last.reasons)
        self._is_ready = problem is None

    def _tick(self, message: BagMessage) -> int:
        """The node clock when ``message`` arrived, ns; 0 until it is known."""
        if self.clock == 'record':
            self._now_ns = message.log_ns
        elif self.clock == 'topic':
            if message.topic == CLOCK_TOPIC and message.data is not None:
                self._now_ns = _ns(message.data.clock)
        elif message.data is not None and hasattr(message.data, 'header'):
            self._now_ns = max(self._now_ns, _ns(message.data.header.stamp))
        return self._now_ns

    def _store(self, message: BagMessage, now_ns: int) -> bool:
        """Hand a message to the buffer; True if it was an image that was kept."""
        if message.topic == CLOCK_TOPIC:
            return False
        if message.topic == self._robot.instruction_topic and message.data is not None:
            if not self._instruction:
                self._buffer.set_instruction(message.data.data)
            return False
        if sources := self._states.get(message.topic):
            names = () if message.data is None else message.data.name
            for source in recipients(sources, names):
                self._store_joints(source.name, message, now_ns)
        kept = [
            self._store_image(c, message, now_ns) for c in self._cameras.get(message.topic, ())
        ]
        return any(kept)

    def _store_image(self, camera: Any, message: BagMessage, now_ns: int) -> bool:
        convert = (
            compressed_to_camera_image
            if camera.transport == 'compressed'
            else image_to_camera_image
        )
        try:
            if message.data is None:
                raise InputError('IMAGE_DATA', f'camera {camera.name!r}: {message.error}')
            image: CameraImage = convert(message.data, camera.name, camera.encodings)
        except InputError as error:
            self._buffer.refuse(camera.name, Reason(Code.IMAGE_INVALID, str(error)))
            return False
        return self._buffer.store_image(image, now_ns) is None

    def _store_joints(self, name: str, message: BagMessage, now_ns: int) -> None:
        try:
            if message.data is None:
                raise InputError('STATE', f'joint states from {name!r}: {message.error}')
            stamp_ns = stamp_to_ns(message.data.header.stamp, f'joint states from {name!r}')
        except InputError as error:
            self._buffer.refuse(name, Reason(Code.STAMP_OTHER_CLOCK, str(error)))
            return
        data = message.data
        self._buffer.store_joints(name, data.name, data.position, stamp_ns, now_ns)

    def _why_none(self) -> str:
        problem = self._buffer.readiness(self._now_ns)
        reasons = list(problem.reasons) if problem else []
        for source in self._buffer.statistics(self._now_ns):
            if source.last_refusal is not None:
                reasons.append(source.last_refusal)
        sources = ', '.join(
            f'{s.name}: {s.accepted} used, {sum(s.refused.values())} refused'
            for s in self._buffer.statistics(self._now_ns)
        )
        text = '; '.join(dict.fromkeys(str(reason) for reason in reasons))
        clocks = {Code.STAMP_OTHER_CLOCK, Code.STAMP_IN_FUTURE, Code.CLOCK_MISSING}
        statistics = self._buffer.statistics(self._now_ns)
        strange = [s.name for s in statistics if clocks & set(s.refused)]
        hint = ''
        if strange and len(strange) < len(statistics):
            hint = f'. {strange} and the rest are stamped by different clocks: correct the driver'
        elif strange and self.clock != 'header':
            hint = f'. Its stamps do not fit the clock ({self.clock}): try --clock header'
        return f'{self._bag.path}: no observation could be made of it ({sources}): {text}{hint}'

    # ---- what else the bag says

    def commands(self) -> list[JointCommand]:
        """The recorded commands by due time, in model units; [] where none were recorded."""
        sinks = recorded_sinks(self._bag, self._robot)
        topics = {*sinks, *self._topics()} if self.clock != 'record' else set(sinks)
        waiting: dict[str, tuple[Any, int]] = {}
        found: list[JointCommand] = []
        self._now_ns = 0
        for message in self._bag.messages(topics) if sinks else ():
            now_ns = self._tick(message)
            if message.topic not in sinks or message.data is None or not now_ns:
                continue
            if message.topic in waiting:
                data, began_ns = waiting[message.topic]
                for sink in sinks[message.topic]:
                    found += commands_of(data, sink, began_ns, now_ns)
            waiting[message.topic] = (message.data, now_ns)
        for topic, (data, began_ns) in waiting.items():
            for sink in sinks[topic]:
                found += commands_of(data, sink, began_ns)
        return sorted(found, key=lambda command: command.stamp_ns)

    def summary(self) -> Mapping[str, Any]:
        """JSON-ready, after the observations were read: sources, refusals, holds."""
        sources = [
            {
                **asdict(source),
                'refused': {code.value: n for code, n in source.refused.items()},
                'last_refusal': str(source.last_refusal) if source.last_refusal else '',
            }
            for source in self._buffer.statistics(self._now_ns)
        ]
        held = [
            {
                'start_ns': span.start_ns,
                'duration_s': (span.end_ns - span.start_ns) * 1e-9,
                'reasons': [str(reason) for reason in span.reasons],
            }
            for span in self.held
        ]
        return {
            'bag': str(self._bag.path),
            'clock': self.clock,
            'observations': self.observations,
            'sources': sources,
            'held': held,
        }


def _ns(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
