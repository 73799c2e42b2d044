"""Watches simulator and policy node over DDS and keeps what the demo's report needs."""

from __future__ import annotations

import json
import math
from collections import deque
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from safe_pruner_ros.evaluation.demo.record import (
    DemoRecord,
    EpisodeRecord,
    Picture,
    StepRecord,
    TokenRecord,
)
from safe_pruner_ros.evaluation.demo.screen import LiveState
from safe_pruner_ros.msg import KeyframeEvent, PruningStatus, SaliencyMap
from safe_pruner_ros.ros.command_sinks import make_sink
from safe_pruner_ros.ros.conversions import image_to_camera_image, stamp_to_ns
from safe_pruner_ros.runtime.config import RobotConfig

NODE = '/safe_pruner'
PICTURE_PERIOD_S = 0.09  # of the film; cameras may be faster
PREFIX = 'safe_pruner: '


class DemoRecorder(Node):
    """``begin`` and `end` an episode; in between, everything that arrives is kept.

    All callbacks run in the thread that spins.
    """

    def __init__(self, robot: RobotConfig, record: DemoRecord) -> None:
        super().__init__('safe_pruner_demo')
        self.record = record
        self.sim: dict[str, Any] = {}  # newest /sim/status
        self.node_state: dict[str, str] = {}  # values of the node's 'state' diagnostic
        self.node_text = ''  # 'RUN', or the state and why
        # Outside of episodes: of the first camera, and of policy steps. For whoever clears them.
        self.picture_stamps_s: list[float] = []
        self.ages_s: list[float] = []
        self._episode: EpisodeRecord | None = None
        self._start_s = self._newest_s = 0.0
        self._statuses: dict[int, PruningStatus] = {}
        self._reasons: dict[int, str] = {}
        self._last_command_ns: int | None = None
        self._guard: dict[str, int] = {}
        self._receive_counts = {camera.name: ReceiveCount() for camera in robot.cameras}
        self._latencies_ms: deque[float] = deque(maxlen=200)

        images = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._first_view = robot.cameras[0].name
        for camera in robot.cameras:
            topic = camera.topic.removesuffix('/compressed')
            self.create_subscription(Image, topic, partial(self._on_image, camera.name), images)
            topic = f'{NODE}/saliency/{camera.name}'
            self.create_subscription(SaliencyMap, topic, self._on_saliency, 20)
        self.create_subscription(PruningStatus, f'{NODE}/status', self._on_step, 50)
        self.create_subscription(KeyframeEvent, f'{NODE}/keyframe', self._on_keyframe, 50)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, '/sim/status', self._on_sim, latched)
        sink = make_sink(robot.sinks[0], 0.02, dry_run=False)
        self.create_subscription(sink.message_type, sink.topic, self._on_command, 10)

    # ---- episodes

    def begin(self, episode: EpisodeRecord) -> None:
        """From now on, everything belongs to ``episode``."""
        self._episode, self._start_s = episode, self._newest_s
        self._statuses.clear()
        self._reasons.clear()
        self._last_command_ns = None
        for count in self._receive_counts.values():
            count.interrupt()
        self.record.episodes.append(episode)

    def end(self) -> None:
        """Assemble the steps of the episode. Call it a moment late: messages are under way."""
        episode, self._episode = self._episode, None
        if episode is None:
            return
        episode.steps = [self._step(status) for _, status in sorted(self._statuses.items())]
        episode.finish()
        for name, count in self._guard.items():
            self.record.guard_ticks[name] = self.record.guard_ticks.get(name, 0) + count
        self.record.receive_ratios = {
            view: count.ratio() for view, count in self._receive_counts.items()
        }

    @property
    def time_s(self) -> float:
        """Time in the episode, on the robot's clock."""
        return self._newest_s - self._start_s

    def live(self) -> LiveState:
        """For the screen."""
        status = self._statuses[max(self._statuses)] if self._statuses else None
        latencies = list(self._latencies_ms)
        return LiveState(
            time_s=self.time_s,
            stage=str(self.sim.get('stage', '')),
            n_retained=status.n_retained if status else 0,
            n_visual=status.n_visual if status else 0,
            is_key_timestep=bool(status and status.is_key_timestep),
            similarity=status.attention_similarity if status else math.nan,
            threshold=status.similarity_threshold if status else math.nan,
            latency_ms=latencies[-1] if latencies else math.nan,
            latency_p50_ms=float(np.median(latencies)) if latencies else math.nan,
            policy_steps=len(self._statuses),
            keyframes=sum(s.is_key_timestep for s in self._statuses.values()),
            last_reason=self._reasons[max(self._reasons)] if self._reasons else '',
            node=self.node_text,
        )

    def _step(self, status: PruningStatus) -> StepRecord:
        number = int(status.policy_step)
        reason = self._reasons.get(number, 'reason not received')
        names = ('preprocess', 'vision', 'decoder', 'scoring', 'head', 'total')
        return StepRecord(
            time_s=self._since_start(status.observation_stamp),
            step=number,
            n_visual=int(status.n_visual),
            n_retained=int(status.n_retained),
            reason=reason if status.is_key_timestep else '',
            similarity=float(status.attention_similarity),
            threshold=float(status.similarity_threshold),
            latency_ms={name: float(getattr(status, f'latency_{name}_ms')) for name in names},
            age_s=float(status.observation_age_s),
        )

    def _since_start(self, stamp: Any) -> float:
        return stamp_to_ns(stamp) * 1e-9 - self._start_s

    # ---- callbacks

    def _on_image(self, view: str, msg: Image, info: dict[str, int]) -> None:
        self._receive_counts[view].sent = info['publication_sequence_number']
        image = image_to_camera_image(msg, view)
        self._newest_s = max(self._newest_s, image.stamp_ns * 1e-9)
        if self._episode is None:
            if view == self._first_view:
                self.picture_stamps_s.append(image.stamp_ns * 1e-9)
            return
        time_s = image.stamp_ns * 1e-9 - self._start_s
        pictures = self._episode.pictures.setdefault(view, [])
        if time_s >= 0 and (not pictures or time_s - pictures[-1].time_s >= PICTURE_PERIOD_S):
            pictures.append(Picture.of(time_s, image.rgb))

    def _on_step(self, msg: PruningStatus) -> None:
        episode = self._episode
        if episode is None:
            self.ages_s.append(float(msg.observation_age_s))
            return
        # Late news of the episode before has its instruction, or an earlier stamp.
        if msg.instruction != episode.instruction:
            return
        if self._since_start(msg.observation_stamp) > -0.2:
            self._statuses[int(msg.policy_step)] = msg
            self._latencies_ms.append(float(msg.latency_total_ms))

    def _on_keyframe(self, msg: KeyframeEvent) -> None:
        if self._episode is not None and self._since_start(msg.header.stamp) > -0.2:
            self._reasons[int(msg.policy_step)] = msg.reason_text.split(' (')[0]

    def _on_saliency(self, msg: SaliencyMap) -> None:
        if self._episode is None or self._since_start(msg.header.stamp) <= -0.2:
            return
        ranked = msg.fused_saliency or msg.early_saliency
        self._episode.tokens[int(msg.policy_step), msg.view] = TokenRecord(
            rows=int(msg.rows),
            cols=int(msg.cols),
            saliency=np.array(ranked, np.float32) if len(ranked) else None,
            retained=np.array(msg.retained, bool),
        )

    def _on_sim(self, msg: String) -> None:
        self.sim = json.loads(msg.data)
        if self._episode is None:
            self._newest_s = 0.0  # a simulator that was started again counts from the beginning
        self._newest_s = max(self._newest_s, float(self.sim['time_s']))
        episode = self._episode
        if episode is None:
            return
        stage = str(self.sim['stage'])
        if not episode.stages or episode.stages[-1][1] != stage:
            since_s = float(self.sim['time_s']) - self._start_s
            episode.stages.append((max(0.0, since_s) if episode.stages else 0.0, stage))

    def _on_command(self, msg: Any, info: dict[str, int]) -> None:
        """Periods between commands as they left the node: the writer's own time stamps."""
        sent_ns = info['source_timestamp']
        if self._episode is not None and self._last_command_ns is not None:
            self.record.command_periods_ms.append((sent_ns - self._last_command_ns) * 1e-6)
        self._last_command_ns = sent_ns if self._episode is not None else None

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if not status.name.startswith(PREFIX):
                continue
            values = {item.key: item.value for item in status.values}
            name = status.name.removeprefix(PREFIX)
            if name == 'state':
                self.node_state, self.node_text = values, _short(values)
            elif name.startswith('camera '):
                self._on_camera(name.removeprefix('camera '), values)
            elif name == 'guard':  # ticks by verdict and by reason since the last reset
                self._guard = {key: int(value) for key, value in values.items()}

    def _on_camera(self, view: str, values: dict[str, str]) -> None:
        if self._episode is not None:
            got = int(values.get('accepted', 0)) + int(values.get('refused', 0))
            self._receive_counts[view].node_has(got)


class ReceiveCount:
    """Pictures of one camera: numbered by the simulator, counted by the node.

    The two counts are compared from one diagnostics message of an episode to the next, so a few
    pictures under way blur each comparison, but not their sum.
    """

    def __init__(self) -> None:
        self.sent = 0  # number of the newest picture that was sent
        self.total = 0  # pictures sent while they were compared
        self._before: tuple[int, int] | None = None
        self._received = 0

    def interrupt(self) -> None:
        """The node starts counting anew."""
        self._before = None

    def node_has(self, received: int) -> None:
        if not self.sent:
            return  # their number is not known yet, and would count as zero
        now = (self.sent, received)
        if self._before is not None and received >= self._before[1]:
            self.total += now[0] - self._before[0]
            self._received += now[1] - self._before[1]
        self._before = now

    def ratio(self) -> float:
        """Received / sent; NaN if nothing was compared."""
        return min(1.0, round(self._received / self.total, 4)) if self.total else math.nan


def _short(state: dict[str, str]) -> str:
    """'RUN', 'HOLD IMAGE_STALE', 'unconfigured': the whole text is in /diagnostics."""
    if state.get('lifecycle') != 'active':
        return state.get('lifecycle', '')
    if state.get('state') == 'RUN':
        return 'RUN'
    codes = dict.fromkeys(state.get('codes', '').split())
    return ' '.join([state.get('state', ''), *codes])
