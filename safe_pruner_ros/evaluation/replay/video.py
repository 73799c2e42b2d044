"""overlay.mp4 of a replay: the recorded views with the tokens one method kept, written as it
runs, so that no picture is held in memory."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from safe_pruner_ros.policies.policy import PolicyOutput, PolicySpec
from safe_pruner_ros.runtime.overlay import overlay
from safe_pruner_ros.types import Observation, UInt8Array

VIEW_PX = 384
LABEL_PX, CAPTION_PX = 26, 64
MIN_FPS, MAX_FPS = 1.0, 30.0
BACKGROUND, TEXT, QUIET, KEY = (22, 24, 28), (235, 235, 235), (150, 156, 165), (255, 150, 0)
FONT = cv2.FONT_HERSHEY_DUPLEX


class ReplayVideo:
    """Context manager; `add` one policy step after the other. ``step_period_s``: time between two
    of them, so that the film runs at the speed of the recording. The file exists only if a step
    was added."""

    def __init__(self, path: Path, spec: PolicySpec, title: str, step_period_s: float) -> None:
        self.path, self._spec, self._title = path, spec, title
        self._fps = min(max(1.0 / step_period_s, MIN_FPS), MAX_FPS)
        self._container: Any = None
        self._stream: Any = None
        self._first_ns: int | None = None

    def __enter__(self) -> ReplayVideo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()

    def add(self, observation: Observation, output: PolicyOutput | None) -> None:
        """One frame; without an output (a failed step) the plain views."""
        if self._first_ns is None:
            self._first_ns = observation.stamp_ns
        time_s = (observation.stamp_ns - self._first_ns) * 1e-9
        self._write(draw_step(self._spec, self._title, observation, output, time_s))

    def _write(self, frame: UInt8Array) -> None:
        import av

        if self._container is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            options = {'movflags': '+faststart'}
            self._container = av.open(str(self.path), 'w', options=options)
            rate = Fraction(self._fps).limit_denominator(1000)
            self._stream = self._container.add_stream('libx264', rate=rate)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = 'yuv420p'
            self._stream.options = {'crf': '25', 'preset': 'veryfast'}
        if frame.shape[:2] != (self._stream.height, self._stream.width):
            # A camera changed its size in the middle of the recording.
            frame = cv2.resize(frame, (self._stream.width, self._stream.height))  # type: ignore[assignment]
        image = av.VideoFrame.from_ndarray(frame, format='rgb24')
        self._container.mux(self._stream.encode(image))


def draw_step(
    spec: PolicySpec,
    title: str,
    observation: Observation,
    output: PolicyOutput | None,
    time_s: float,
) -> UInt8Array:
    """The policy's views side by side under a caption, uint8 [H, W, 3], both sides even."""
    columns, first = [], 0
    for view in spec.views:
        rgb = observation.images[view.name].rgb
        label = view.name.replace('_', ' ')
        if output is not None:
            trace, tokens = output.trace, slice(first, first + view.n_tokens)
            retained = np.zeros(trace.n_visual, bool)
            retained[trace.retained_index] = True
            saliency = trace.fused if trace.fused is not None else trace.early
            rgb = overlay(
                rgb,
                view.rows,
                view.cols,
                None if saliency is None else saliency[tokens],
                retained[tokens],
                trace.is_key_timestep,
            )
            label += f': {int(retained[tokens].sum())} of {view.n_tokens} tokens'
        first += view.n_tokens
        columns.append(_labelled(rgb, label))
    height = max(len(column) for column in columns)
    columns = [_padded(column, height) for column in columns]
    row = np.concatenate(columns, axis=1)
    caption: UInt8Array = np.full((CAPTION_PX, row.shape[1], 3), BACKGROUND, np.uint8)
    _caption(caption, title, observation.instruction, output, time_s)
    frame = np.concatenate([caption, row])
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


def _padded(column: UInt8Array, height: int) -> UInt8Array:
    """Cameras may differ in shape."""
    below: UInt8Array = np.full((height - len(column), VIEW_PX, 3), BACKGROUND, np.uint8)
    return np.concatenate([column, below])


def _labelled(rgb: UInt8Array, text: str) -> UInt8Array:
    height = round(rgb.shape[0] * VIEW_PX / rgb.shape[1])
    method = cv2.INTER_AREA if rgb.shape[1] > VIEW_PX else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(rgb, (VIEW_PX, height), interpolation=method), np.uint8)
    label: UInt8Array = np.full((LABEL_PX, VIEW_PX, 3), BACKGROUND, np.uint8)
    _put(label, text, (8, 18), 0.45, QUIET)
    return np.concatenate([picture, label])


def _caption(
    canvas: UInt8Array, title: str, instruction: str, output: PolicyOutput | None, time_s: float
) -> None:
    _put(canvas, f'{time_s:5.1f} s   {_ascii(instruction)}', (12, 25), 0.6, TEXT)
    if output is None:
        _put(canvas, f'{title}: this policy step failed', (12, 51), 0.5, KEY)
        return
    trace = output.trace
    total_ms = float(output.latency_ms.get('total', math.nan))
    text = f'{title}   {trace.n_retained} of {trace.n_visual} tokens   {total_ms:.0f} ms'
    _put(canvas, text, (12, 51), 0.5, QUIET)
    if trace.is_key_timestep:
        words = f'keyframe: {trace.keyframe_reason}'
        (width, _), _ = cv2.getTextSize(words, FONT, 0.5, 1)
        _put(canvas, words, (canvas.shape[1] - width - 12, 51), 0.5, KEY)


def _ascii(text: str) -> str:
    """OpenCV's font has no other letters."""
    return text.encode('ascii', 'replace').decode()


def _put(
    canvas: UInt8Array, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, at, FONT, size, colour, 1, cv2.LINE_AA)
