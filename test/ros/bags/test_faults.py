"""Bags with faults against the node's own loop, on the bag's clock: when it holds, for how long,
and that it never holds without a reason. In the manner of Nav2's collision monitor bag test.

Time is simulated (ticks of 20 ms of wall time), so nothing depends on the machine. That the live
node sees the same over DDS is test_play.py's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safe_pruner_ros import cli
from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec, PruningTrace, ViewSpec
from safe_pruner_ros.ros.bags.reader import Bag
from safe_pruner_ros.ros.conversions import InputError, image_to_camera_image, stamp_to_ns
from safe_pruner_ros.runtime.codes import Code
from safe_pruner_ros.runtime.control_loop import ControlLoop
from safe_pruner_ros.types import ActionChunk

MS = 1_000_000
TICK_NS = 20 * MS
VIEWS = ('head', 'left_wrist', 'right_wrist')


@dataclass(frozen=True)
class Tick:
    """``time_s`` since the first message; ``sends``: a command of the policy left."""

    time_s: float
    sends: bool
    codes: frozenset[Code]


class Slow:
    """Answers with the measured joints, ``wall_ms`` later; ``passes(ms)`` lets that time pass."""

    def __init__(self, robot: Any, wall_ms: int = 0) -> None:
        views = tuple(ViewSpec(name, 64, 64, 2, 2) for name in VIEWS)
        self.spec = PolicySpec('slow', views, robot.layout.names, 8, 0.1, 4)
        self.wall_ms, self.seen = wall_ms, []
        self.passes: Callable[[int], None] = lambda wall_ms: None

    def check_instruction(self, instruction: str) -> None: ...

    def forget_plans(self) -> None: ...

    def reset(self) -> None: ...

    def predict(self, observation: Any) -> PolicyOutput:
        self.seen.append(observation)
        self.passes(self.wall_ms)
        rows = np.tile(observation.state.positions, (8, 1))
        chunk = ActionChunk(rows, self.spec.joint_names, observation.stamp_ns, 100 * MS)
        trace = PruningTrace('x', 1.0, 12, np.arange(12), False, '', 0, 0, 0)
        return PolicyOutput(chunk, trace, {'total': float(self.wall_ms)})


class Bench:
    """Feeds bags to a ControlLoop at ``rate`` and ticks it as the node does."""

    def __init__(self, config: Any, wall_ms: int = 0, rate: float = 1.0) -> None:
        self.policy, self.rate = Slow(config.robot, wall_ms), rate
        self.now_ns = self.steady_ns = 0
        self._next_tick_ns = self._start_ns = 0
        self.policy.passes = self._let_pass
        self.loop = ControlLoop(
            config, self.policy, lambda: self.now_ns, steady=lambda: self.steady_ns
        )
        self._cameras = {camera.topic: camera for camera in config.robot.cameras}
        self.ticks: list[Tick] = []
        self._messages: list[Any] = []

    def play(self, path: Path) -> None:
        with Bag(path) as bag:
            self._messages = list(bag.messages(bag.types))
        self._next_tick_ns = self._start_ns = self._messages[0].log_ns
        while self._messages:
            self._until(self._messages[0].log_ns, look=True)
            self._take(self._messages.pop(0), look=True)

    def stand_still(self, wall_s: float) -> None:
        """The bag is paused: /clock says the same, again and again."""
        for _ in range(round(wall_s / 0.02)):
            self.steady_ns += TICK_NS
            self._tick()

    def _let_pass(self, wall_ms: int) -> None:
        end_ns = self.now_ns + round(wall_ms * MS * self.rate)
        while self._messages and self._messages[0].log_ns <= end_ns:
            self._until(self._messages[0].log_ns, look=False)
            self._take(self._messages.pop(0), look=False)
        self._until(end_ns, look=False)
        self._move(end_ns)

    def _until(self, end_ns: int, look: bool) -> None:
        while self._next_tick_ns <= end_ns:
            self._move(self._next_tick_ns)
            self._tick()
            self._next_tick_ns += round(TICK_NS * self.rate)
            if look:
                self.loop.worker.run_once()

    def _move(self, now_ns: int) -> None:
        self.steady_ns += max(0, round((now_ns - self.now_ns) / self.rate)) if self.now_ns else 0
        self.now_ns = now_ns

    def _tick(self) -> None:
        verdict = self.loop.tick(self.now_ns)
        codes = frozenset(reason.code for reason in verdict.reasons)
        time_s = (self.now_ns - self._start_ns) * 1e-9
        self.ticks.append(Tick(time_s, verdict.action != 'hold', codes))

    def _take(self, message: Any, look: bool) -> None:
        self._move(message.log_ns)
        data = message.data
        if camera := self._cameras.get(message.topic):
            try:
                image = image_to_camera_image(data, camera.name, camera.encodings)
            except InputError:
                return
            self.loop.store_image(image, self.now_ns)
        elif message.topic == '/joint_states':
            stamp_ns = stamp_to_ns(data.header.stamp)
            self.loop.store_joints('joint_states', data.name, data.position, stamp_ns, self.now_ns)
        elif message.topic == '/instruction':
            self.loop.set_instruction(data.data)
        if look:
            self.loop.worker.run_once()


@pytest.fixture
def bench(sim_config) -> Callable[..., Bench]:
    # Recorded arms follow nobody.
    guard = replace(sim_config.runtime.guard, max_tracking_error_rad=9.0)
    config = replace(sim_config, runtime=replace(sim_config.runtime, guard=guard))
    return lambda **more: Bench(config, **more)


def without(entries: list[Any], kit: Any, topic: str, begin_ms: int, end_ms: int) -> list[Any]:
    gap = range(kit.START_NS + begin_ms * MS, kit.START_NS + end_ms * MS)
    return [e for e in entries if not (e.topic == topic and e.stamp_ns in gap)]


# Limits of config.BufferConfig: 0.3 s for pictures (three good ones to come back), 0.1 s for
# joints (and as long that they agree to come back); a control tick of 0.02 s and the way into the
# recording are on top.
@pytest.mark.parametrize(
    ('topic', 'last_good_s', 'limit_s', 'resume_s', 'code'),
    [
        ('/camera/head/image_raw', 0.4, 0.3, 0.25, Code.IMAGE_STALE),
        ('/camera/left_wrist/image_raw', 0.4, 0.3, 0.25, Code.IMAGE_STALE),
        ('/camera/right_wrist/image_raw', 0.4, 0.3, 0.25, Code.IMAGE_STALE),
        ('/joint_states', 0.48, 0.1, 0.2, Code.STATE_STALE),
    ],
)
def test_a_dropout(
    topic, last_good_s, limit_s, resume_s, code, tmp_path, episode, kit, bench
) -> None:
    ended = 1.2
    entries = without(episode, kit, topic, 500, 1200)
    node = bench()
    node.play(kit.write_bag(tmp_path / 'bag', entries))
    first = next(t.time_s for t in node.ticks if t.sends)
    held = [t.time_s for t in node.ticks if t.time_s > first and not t.sends]
    resumed = next(t.time_s for t in node.ticks if t.time_s > held[0] and t.sends)
    time_to_hold_s, time_to_resume_s = held[0] - last_good_s, resumed - ended
    in_hold = [t for t in node.ticks if held[0] <= t.time_s < resumed]
    hold_share = sum(not t.sends for t in in_hold) / len(in_hold)
    false_holds = [s for s in held if not last_good_s + limit_s < s <= ended + resume_s]
    assert limit_s < time_to_hold_s <= limit_s + 0.04
    assert hold_share == 1.0
    assert 0 < time_to_resume_s <= resume_s
    assert false_holds == [] and held[-1] < resumed
    assert all(code in t.codes for t in in_hold if t.time_s < ended)
    # What was answered before the hold is void: the first command after it answers newer data.
    assert any(o.stamp_ns >= kit.START_NS + 1_200 * MS for o in node.policy.seen)


def test_no_fault_no_hold(recording, bench) -> None:
    node = bench()
    node.play(recording)
    first = next(number for number, tick in enumerate(node.ticks) if tick.sends)
    assert first <= 8 and all(tick.sends for tick in node.ticks[first:])


def test_a_loop_holds_once_and_goes_on(recording, bench) -> None:
    node = bench()
    node.play(recording)
    once = len(node.policy.seen)
    ticks = len(node.ticks)
    node.play(recording)
    again = node.ticks[ticks:]
    assert Code.CLOCK_JUMPED in again[0].codes and not again[0].sends
    first = next(number for number, tick in enumerate(again) if tick.sends)
    assert first <= 8 and all(tick.sends for tick in again[first:])
    stamps = [observation.stamp_ns for observation in node.policy.seen]
    assert stamps[once:] == stamps[:once]


def test_a_pause_holds_and_goes_on(recording, tmp_path, episode, kit, bench) -> None:
    cut = kit.START_NS + 1_000 * MS
    node = bench()
    node.play(kit.write_bag(tmp_path / 'first', [e for e in episode if e.log_ns < cut]))
    assert node.ticks[-1].sends
    before = len(node.ticks)
    node.stand_still(2.0)
    paused = node.ticks[before:]
    stopped = [number for number, tick in enumerate(paused) if Code.CLOCK_STOPPED in tick.codes]
    assert 25 <= stopped[0] <= 27  # half a second of wall time
    assert all(not tick.sends for tick in paused[stopped[0] :])
    rest = [e for e in episode if e.log_ns >= cut]
    before = len(node.ticks)
    node.play(kit.write_bag(tmp_path / 'rest', rest))
    assert node.ticks[-1].sends and any(not tick.sends for tick in node.ticks[before:][:1])


@pytest.mark.parametrize('wall_ms', [20, 60])
def test_ten_times_as_fast_uses_the_newest(wall_ms, recording, bench, kit) -> None:
    """A step of 20 ms then lasts 0.2 s of the recording: what was missed is never caught up."""
    node = bench(wall_ms=wall_ms, rate=10.0)
    node.play(recording)
    stamps = np.array([o.stamp_ns - kit.START_NS for o in node.policy.seen]) / MS
    assert len(stamps) >= 3 and (np.diff(stamps) > 0).all()
    # Due every 400 ms, taken when the worker is free: no older than a picture period before that.
    assert (np.diff(stamps) >= 300).all()
    assert any(tick.sends for tick in node.ticks)


def test_too_slow_for_the_rate_holds(recording, bench) -> None:
    """Answers that come after their actions are over move nothing."""
    node = bench(wall_ms=100, rate=10.0)
    node.play(recording)
    assert node.policy.seen and not any(tick.sends for tick in node.ticks)


def test_a_start_in_the_middle(tmp_path, episode, kit, bench) -> None:
    said = [e for e in episode if e.kind == kit.STRING]
    rest = [e for e in episode if e.log_ns > kit.START_NS + 700 * MS]
    late = [replace(e, log_ns=rest[0].log_ns - 1) for e in said]
    node = bench()
    node.play(kit.write_bag(tmp_path / 'bag', [*late, *rest]))
    first = next(number for number, tick in enumerate(node.ticks) if tick.sends)
    assert first <= 8 and all(tick.sends for tick in node.ticks[first:])


def zero(entry: Any, kit: Any) -> Any:
    return replace(entry, stamp_ns=0)


def other_clock(entry: Any, kit: Any) -> Any:
    """Since boot, as some camera drivers count."""
    return replace(entry, stamp_ns=entry.stamp_ns - kit.START_NS + 1_000_000_000_000)


def ahead(entry: Any, kit: Any) -> Any:
    return replace(entry, stamp_ns=entry.stamp_ns + 1_000 * MS)


def short(entry: Any, kit: Any) -> Any:
    return replace(entry, values={**entry.values, 'data': np.zeros(30, np.uint8)})


def bayer(entry: Any, kit: Any) -> Any:
    return replace(entry, values={**entry.values, 'encoding': 'bayer_bggr8'})


@pytest.mark.parametrize(
    ('fault', 'messages'),
    [
        (zero, ['header.stamp is zero', 'allow_zero_stamp']),
        (other_clock, ['another clock', 'stamped by different clocks']),
        (ahead, ['ahead of the node clock', 'stamped by different clocks']),
        (short, ['30 data bytes', 'truncated']),
        (bayer, ["encoding 'bayer_bggr8' is not accepted", 'robot file']),
    ],
)
def test_one_bad_camera(fault, messages, tmp_path, episode, kit, bench, capsys) -> None:
    """The live loop never moves; replay names file, camera and reason, with exit code 2."""
    entries = [fault(e, kit) if '/left_wrist/' in e.topic else e for e in episode]
    path = kit.write_bag(tmp_path / 'bag', entries)
    node = bench()
    node.play(path)
    assert not any(tick.sends for tick in node.ticks) and not node.policy.seen
    assert cli.main(['replay', str(path), '--out', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and str(path) in error and 'left_wrist' in error, error
    for message in messages:
        assert message in error, error
    assert not (tmp_path / 'out').exists()


def test_bags_without_what_is_needed(tmp_path, episode, kit, capsys) -> None:
    silent = kit.write_bag(tmp_path / 'silent', [])
    blind = kit.write_bag(tmp_path / 'blind', [e for e in episode if e.kind != kit.IMAGE])
    numb = kit.write_bag(tmp_path / 'numb', [e for e in episode if e.kind != kit.JOINTS])
    for command in ('replay', 'calibrate'):
        for path, message in (
            (silent, 'holds no messages'),
            (blind, "camera 'head' needs sensor_msgs/msg/Image on /camera/head/image_raw"),
            (numb, "state source 'joint_states' needs"),
            (tmp_path / 'nowhere', 'does not exist'),
        ):
            arguments = [command, str(path), '--max-deviation-rad', '1']
            assert cli.main([*arguments, '--out', str(tmp_path / 'out')]) == 2
            error = capsys.readouterr().err
            assert str(path) in error and message in error and error.count('\n') == 1, error
