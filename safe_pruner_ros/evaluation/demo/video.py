"""overlay.mp4 of a demo: the views side by side, the tokens kept, and what was going on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from safe_pruner_ros.evaluation.demo.record import DemoRecord, EpisodeRecord, StepRecord
from safe_pruner_ros.runtime.overlay import overlay
from safe_pruner_ros.types import UInt8Array

VIEW_PX = 384  # width of a view in the film
FPS = 10
CAPTION_PX = 84
LABEL_PX = 26
HOLD_S = 0.6  # the last picture of an episode stays this long
BACKGROUND, TEXT, QUIET = (22, 24, 28), (235, 235, 235), (150, 156, 165)
KEY, GOOD, BAD, KEPT = (255, 150, 0), (60, 200, 130), (235, 90, 70), (86, 180, 233)
FONT = cv2.FONT_HERSHEY_DUPLEX


def write_video(record: DemoRecord, path: Path) -> None:
    """H.264 in MP4, 4:2:0, index first: plays in browsers. Raises ValueError without pictures."""
    import av

    frames = _frames(record)
    first = next(frames, None)
    if first is None:
        raise ValueError('no pictures were recorded, so there is no film to write')
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w', options={'movflags': '+faststart'}) as container:
        stream = container.add_stream('libx264', rate=FPS)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = 'yuv420p'
        stream.options = {'crf': '25', 'preset': 'veryfast'}
        for frame in _chain(first, frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode())


def _chain(first: UInt8Array, rest: Iterator[UInt8Array]) -> Iterator[UInt8Array]:
    yield first
    yield from rest


def _frames(record: DemoRecord) -> Iterator[UInt8Array]:
    for episode in record.episodes:
        if not all(episode.pictures.get(view) for view in record.views):
            continue
        end_s = max(episode.duration_s, episode.recorded_s)
        for number in range(int(end_s * FPS) + 1):
            yield draw_frame(record, episode, number / FPS)
        last = draw_frame(record, episode, end_s)
        for _ in range(int(HOLD_S * FPS)):
            yield last


def draw_frame(record: DemoRecord, episode: EpisodeRecord, time_s: float) -> UInt8Array:
    """One frame, uint8 [H, W, 3], both sides even. The tokens are those of the newest policy step,
    drawn on the newest picture."""
    step = episode.step_at(time_s)
    views = [_labelled(episode, view, step, time_s) for view in record.views]
    row = np.concatenate(views, axis=1)
    caption: UInt8Array = np.full((CAPTION_PX, row.shape[1], 3), BACKGROUND, np.uint8)
    _caption(caption, record, episode, step, time_s)
    frame = np.concatenate([caption, row])
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


def draw_view(episode: EpisodeRecord, view: str, time_s: float) -> UInt8Array:
    """The newest picture of a view with the tokens of the newest policy step, uint8 [H, W, 3]."""
    picture = episode.picture_at(view, time_s)
    assert picture is not None
    rgb, step = picture.rgb(), episode.step_at(time_s)
    tokens = None if step is None else episode.tokens.get((step.step, view))
    if tokens is None or step is None:
        return rgb
    return overlay(
        rgb,
        tokens.rows,
        tokens.cols,
        tokens.saliency,
        tokens.retained,
        step.is_key_timestep,
        min_width=1,  # as large as it is; enlarging first would take five times as long
    )


def _labelled(
    episode: EpisodeRecord, view: str, step: StepRecord | None, time_s: float
) -> UInt8Array:
    rgb = draw_view(episode, view, time_s)
    height = round(rgb.shape[0] * VIEW_PX / rgb.shape[1])
    method = cv2.INTER_AREA if rgb.shape[1] > VIEW_PX else cv2.INTER_CUBIC
    rgb = cv2.resize(rgb, (VIEW_PX, height), interpolation=method)
    label: UInt8Array = np.full((LABEL_PX, VIEW_PX, 3), BACKGROUND, np.uint8)
    text = view.replace('_', ' ')
    tokens = None if step is None else episode.tokens.get((step.step, view))
    if tokens is not None:
        text += f': {int(tokens.retained.sum())} of {len(tokens.retained)} tokens'
    _write(label, text, (8, 18), 0.45, QUIET)
    return np.concatenate([rgb, label])


def _caption(
    canvas: UInt8Array,
    record: DemoRecord,
    episode: EpisodeRecord,
    step: StepRecord | None,
    time_s: float,
) -> None:
    width = canvas.shape[1]
    head = f'{episode.number}/{len(record.episodes)}'
    _write(canvas, head, (12, 32), 0.6, QUIET)
    _write(canvas, episode.instruction, (62, 32), 0.72, TEXT)
    stage, colour = episode.stage_at(time_s), TEXT
    if time_s >= episode.duration_s:
        stage, colour = ('solved', GOOD) if episode.success else ('not solved', BAD)
    _write(canvas, f'{time_s:4.1f} s   {stage}', (12, 66), 0.55, colour)
    if step is None:
        return
    share = step.n_retained / step.n_visual
    bar, x, y = 300, 250, 52
    cv2.rectangle(canvas, (x, y), (x + bar, y + 16), (58, 62, 70), -1)
    colour = KEY if step.is_key_timestep else KEPT
    cv2.rectangle(canvas, (x, y), (x + round(bar * share), y + 16), colour, -1)
    text = f'{step.n_retained} of {step.n_visual} tokens'
    _write(canvas, text, (x + bar + 12, 66), 0.5, TEXT)
    _write(canvas, f'{step.latency_ms.get("total", float("nan")):.0f} ms', (x + bar + 190, 66),
           0.5, QUIET)  # fmt: skip
    if step.is_key_timestep:
        _write_right(canvas, f'keyframe: {step.reason}', (width - 12, 66), 0.55, KEY)
    else:
        ratio = f'{record.method}, retention {record.retention_ratio:g}'
        _write_right(canvas, ratio, (width - 12, 66), 0.5, QUIET)


def _write(
    canvas: UInt8Array, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, at, FONT, size, colour, 1, cv2.LINE_AA)


def _write_right(
    canvas: UInt8Array, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int]
) -> None:
    (width, _), _ = cv2.getTextSize(text, FONT, size, 1)
    _write(canvas, text, (at[0] - width, at[1]), size, colour)
