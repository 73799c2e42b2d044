"""The line under an overlay: what the step was, how many tokens it kept, how long it took."""

from __future__ import annotations

import math

import cv2
import numpy as np

from safe_pruner_ros.policies.policy import PruningTrace
from safe_pruner_ros.types import UInt8Array

FONT = cv2.FONT_HERSHEY_SIMPLEX
BAR_SHARE = 0.075  # of the width: 24 px at 320
TEXT_PX = 22.0  # height of the font at scale 1
BACKGROUND, TEXT, KEY_TEXT = (18, 20, 24), (235, 235, 235), (255, 170, 40)


def with_caption(picture: UInt8Array, trace: PruningTrace, latency_ms: float) -> UInt8Array:
    """``picture`` [H, W, 3] with a bar below it, [H + bar, W, 3]; it is not covered."""
    height, width = picture.shape[:2]
    bar = max(12, round(BAR_SHARE * width))
    captioned = np.empty((height + bar, width, 3), np.uint8)
    captioned[:height], captioned[height:] = picture, BACKGROUND
    left = f'KEY {trace.keyframe_reason}' if trace.is_key_timestep else 'pruned'
    right = f'{trace.n_retained}/{trace.n_visual}'
    if math.isfinite(latency_ms):
        right += f'  {latency_ms:.0f} ms'
    scale = 0.62 * bar / TEXT_PX
    (right_px, _), _ = cv2.getTextSize(right, FONT, scale, 1)
    margin = bar // 4
    row = height + round(0.72 * bar)
    room = width - right_px - 3 * margin
    while left and cv2.getTextSize(left, FONT, scale, 1)[0][0] > room:
        left = left[:-1]
    colour = KEY_TEXT if trace.is_key_timestep else TEXT
    cv2.putText(captioned, left, (margin, row), FONT, scale, colour, 1, cv2.LINE_AA)
    place = (width - right_px - margin, row)
    cv2.putText(captioned, right, place, FONT, scale, TEXT, 1, cv2.LINE_AA)
    return captioned
