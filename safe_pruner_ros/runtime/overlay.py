"""Saliency and retained tokens drawn on RGB. Pure numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.types import UInt8Array


def overlay(
    rgb: UInt8Array,
    rows: int,
    cols: int,
    saliency: npt.NDArray[np.floating] | None,
    retained: npt.NDArray[np.bool_],
    is_key_timestep: bool,
    min_width: int = 320,
) -> UInt8Array:
    """One view, rgb [H, W, 3], with its tokens [rows * cols] row-major -> uint8 [k*H, k*W, 3].

    Retained patches are clear with a heat tint by saliency (None: no tint), pruned ones dimmed;
    a key timestep has a coloured border and a marker in the corner. ``k`` is the smallest integer
    with k * W >= ``min_width``.
    """
    raise NotImplementedError
