"""Summary, timeline and film of a made-up demonstration."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from safe_pruner_ros.evaluation.demo.record import (
    DemoRecord,
    EpisodeRecord,
    Picture,
    StepRecord,
    TokenRecord,
)
from safe_pruner_ros.evaluation.demo.screen import LiveScreen, LiveState, PlainScreen
from safe_pruner_ros.evaluation.demo.summary import write_summary
from safe_pruner_ros.evaluation.demo.timeline import draw_timeline
from safe_pruner_ros.evaluation.demo.video import draw_frame, write_video

VIEWS = ('head', 'left_wrist')
SIDE = 32


def step(time_s: float, number: int, n_retained: int, reason: str = '') -> StepRecord:
    latency = {'vision': 4.0, 'decoder': 10.0, 'scoring': 1.0, 'total': 16.0 + number}
    similarity = 0.8 if number else math.nan
    return StepRecord(time_s, number, 32, n_retained, reason, similarity, 0.5, latency, 0.05)


def episode(number: int, success: bool) -> EpisodeRecord:
    rng = np.random.default_rng(number)
    made = EpisodeRecord(number, 800_000 + number, f'put object {number} in the tray', success)
    made.duration_s, made.note = 1.0, '' if success else 'time is up'
    made.stages = [(0.0, 'reach'), (0.5, 'grasp'), (1.0, 'done')]
    made.steps = [step(0.0, 0, 32, 'first step'), step(0.4, 1, 10), step(1.05, 2, 10)]
    for view in VIEWS:
        made.pictures[view] = [
            Picture.of(k / 10, rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            for k in range(14)
        ]
        for number in range(2):
            retained = np.arange(16) < (16 if number == 0 else 5)
            saliency = rng.random(16, dtype=np.float32)
            made.tokens[number, view] = TokenRecord(4, 4, saliency, retained)
    made.finish()
    return made


@pytest.fixture
def record() -> DemoRecord:
    made = DemoRecord('safe_pruner', 0.3, VIEWS, [episode(1, True), episode(2, False)])
    made.command_periods_ms = [20.0] * 99 + [30.0]
    made.receive_ratios = {'head': 1.0, 'left_wrist': 0.98}
    return made


def test_summary_has_what_was_promised(record: DemoRecord, tmp_path: Path) -> None:
    write_summary(record, tmp_path / 'deep' / 'summary.json', wall_s=12.0)
    found = json.loads((tmp_path / 'deep' / 'summary.json').read_text())
    assert (found['episodes'], found['successes']) == (2, 1)
    assert (found['method'], found['retention_ratio']) == ('safe_pruner', 0.3)
    assert found['pruning_ratio_mean'] == pytest.approx((0 + 22 / 32) / 2, abs=1e-4)
    assert found['keyframes'] == 2 and found['keyframe_reasons'] == {'first step': 2}
    assert found['policy_step_ms'] == {'p50': 16.5, 'p99': 17.0}
    assert found['command_period_ms']['p50'] == 20.0
    assert 20.0 < found['command_period_ms']['p99'] < 30.0
    assert found['image_receive_ratio'] == 0.98
    assert found['wall_s'] == 12.0
    first, second = found['per_episode']
    assert first['policy_steps'] == 2  # what came after the end does not count
    assert first['stages'] == [[0.0, 'reach'], [0.5, 'grasp']]
    assert second['note'] == 'time is up' and not second['success']


def test_summary_of_nothing_is_still_json(tmp_path: Path) -> None:
    write_summary(DemoRecord('unpruned', 1.0, VIEWS), tmp_path / 'summary.json')
    found = json.loads((tmp_path / 'summary.json').read_text())
    assert found['episodes'] == 0 and found['policy_step_ms'] == {'p50': None, 'p99': None}


def test_record_answers_by_time() -> None:
    made = episode(1, True)
    assert made.step_at(-1.0) is None and made.step_at(0.39).step == 0
    assert made.step_at(0.4).step == 1
    assert made.stage_at(0.6) == 'grasp'
    assert made.picture_at('head', 0.25).time_s == 0.2
    assert made.picture_at('head', -1.0).time_s == 0.0
    assert made.picture_at('nothing', 0.0) is None
    assert made.recorded_s == 1.3


def test_timeline_is_drawn(record: DemoRecord, tmp_path: Path) -> None:
    import cv2

    draw_timeline(record, tmp_path / 'timeline.png')
    assert cv2.imread(str(tmp_path / 'timeline.png')).shape[1] > 1000


def test_timeline_of_an_unpruned_demo_without_steps(tmp_path: Path) -> None:
    empty = EpisodeRecord(1, 800_000, 'put it in the tray', duration_s=2.0)
    draw_timeline(DemoRecord('unpruned', 1.0, VIEWS, [empty]), tmp_path / 'timeline.png')
    assert (tmp_path / 'timeline.png').stat().st_size > 0


def test_film_is_h264_and_marks_keyframes(record: DemoRecord, tmp_path: Path) -> None:
    import av

    path = tmp_path / 'overlay.mp4'
    write_video(record, path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == 'h264' and stream.pix_fmt == 'yuv420p'
        assert stream.frames == 2 * (14 + 6)  # until the last picture, and held
    data = path.read_bytes()
    assert data.find(b'moov') < data.find(b'mdat')  # the index comes first: browsers start at once

    key = draw_frame(record, record.episodes[0], 0.0)
    pruned = draw_frame(record, record.episodes[0], 0.5)
    orange = (key[..., 0] > 230) & (abs(key[..., 1].astype(int) - 150) < 20) & (key[..., 2] < 40)
    assert orange.sum() > 1000
    orange = (pruned[..., 0] > 230) & (abs(pruned[..., 1].astype(int) - 150) < 20)
    assert (orange & (pruned[..., 2] < 40)).sum() < 100


def test_film_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no pictures'):
        write_video(DemoRecord('unpruned', 1.0, VIEWS), tmp_path / 'overlay.mp4')


STATE = LiveState(0.6, 'grasp', 10, 32, False, 0.7, 0.5, 17.0, 16.0, 2, 1, 'first step', 'RUN')


def test_live_view_names_everything() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    made = episode(1, True)
    with LiveScreen('demo', console) as screen:
        screen.begin(made, 5)
        screen.update(STATE)
        shown = Console(file=io.StringIO(), width=120)
        shown.print(screen._draw())
        screen.end(made)
    text = shown.file.getvalue()
    for part in ('put object 1', 'grasp', '10 of 32', '17 ms', 'first step', 'RUN'):
        assert part in text


def test_plain_view_says_changes_once(capsys: pytest.CaptureFixture[str]) -> None:
    made = episode(1, False)
    with PlainScreen() as screen:
        screen.begin(made, 5)
        screen.update(STATE)
        screen.update(STATE)
        screen.end(made)
    lines = capsys.readouterr().out.splitlines()
    assert sum('grasp' in line for line in lines) == 1
    assert 'NOT SOLVED after 1.0 s, 2 policy steps, 1 keyframes, 21 of 32 tokens' in lines[-1]
