"""Saliency and retained tokens drawn on RGB. Pure numpy.

Retained patches stay clear with a warm tint by saliency, pruned ones turn dark and grey. The
colour scale goes from dark violet to yellow (like matplotlib's inferno): its lightness rises all
along, so it reads in greyscale and for colour-blind people. A key timestep has an orange frame
and a filled corner instead of a grey frame.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.types import FloatArray, UInt8Array

# Support points of the colour scale, lightness rising: RGB.
HEAT = np.array(
    [(20, 11, 52), (87, 16, 110), (147, 38, 103), (204, 66, 72), (243, 120, 25), (252, 255, 164)],
    np.float64,
)
KEY_COLOUR = np.array((255, 150, 0), np.float64)
PLAIN_COLOUR = np.array((128, 128, 128), np.float64)
DIM = 0.35  # brightness of pruned patches
TINT_RETAINED = 0.40  # opacity of the heat over a retained patch of highest saliency
TINT_PRUNED = 0.25


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

    ``saliency``: higher = keep, any scale, non-finite counts as lowest; None: no tint.
    ``k`` is the smallest integer with k * W >= ``min_width``. Raises ValueError for other shapes.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f'rgb must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}')
    n_tokens = rows * cols
    if rows < 1 or cols < 1 or retained.shape != (n_tokens,):
        raise ValueError(
            f'retained must be [{rows} * {cols}] = [{n_tokens}], got {list(retained.shape)}'
        )
    if saliency is not None and saliency.shape != (n_tokens,):
        raise ValueError(f'saliency must be [{n_tokens}], got {list(saliency.shape)}')
    factor = -(-min_width // rgb.shape[1]) if rgb.shape[1] < min_width else 1
    picture = rgb.repeat(factor, axis=0).repeat(factor, axis=1).astype(np.float64)
    height, width = picture.shape[:2]
    token_of_pixel = (np.arange(height) * rows // height)[:, None] * cols + (
        np.arange(width) * cols // width
    )[None, :]

    keep = retained[token_of_pixel][..., None]
    grey = picture.mean(axis=2, keepdims=True)
    picture = np.where(keep, picture, DIM * grey)
    if saliency is not None:
        level = _levels(saliency)
        opacity = level * np.where(retained, TINT_RETAINED, TINT_PRUNED)
        tint = opacity[token_of_pixel][..., None]
        picture = (1.0 - tint) * picture + tint * _heat(level)[token_of_pixel]
    _outline(picture, retained[token_of_pixel])
    _frame(picture, is_key_timestep)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _levels(saliency: npt.NDArray[np.floating]) -> FloatArray:
    """0..1 between the lowest and the 98th percentile: one hot token must not hide the others."""
    values = np.asarray(saliency, np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(len(values))
    low, high = float(finite.min()), float(np.percentile(finite, 98))
    if high <= low:
        high = float(finite.max())
    values = np.where(np.isfinite(values), values, low)
    if high <= low:
        return np.zeros(len(values))
    # Halved before subtracting: the range of two large floats may not be a float.
    return np.clip((values / 2 - low / 2) / (high / 2 - low / 2), 0.0, 1.0)


def _heat(level: FloatArray) -> FloatArray:
    """[n] in 0..1 -> RGB [n, 3]."""
    points = np.linspace(0.0, 1.0, len(HEAT))
    return np.stack([np.interp(level, points, HEAT[:, channel]) for channel in range(3)], axis=1)


def _outline(picture: FloatArray, keep: npt.NDArray[np.bool_]) -> None:
    """A thin light line around groups of retained patches."""
    edge = np.zeros(keep.shape, bool)
    edge[1:] |= keep[1:] & ~keep[:-1]
    edge[:-1] |= keep[:-1] & ~keep[1:]
    edge[:, 1:] |= keep[:, 1:] & ~keep[:, :-1]
    edge[:, :-1] |= keep[:, :-1] & ~keep[:, 1:]
    picture[edge] = 0.35 * picture[edge] + 0.65 * 255.0


def _frame(picture: FloatArray, is_key_timestep: bool) -> None:
    height, width = picture.shape[:2]
    thick = max(1, width // (80 if is_key_timestep else 160))
    colour = KEY_COLOUR if is_key_timestep else PLAIN_COLOUR
    picture[:thick] = picture[-thick:] = colour
    picture[:, :thick] = picture[:, -thick:] = colour
    if is_key_timestep:
        size = max(2, min(height, width) // 8)
        down, right = np.mgrid[:size, :size]
        picture[:size, :size][down + right < size] = KEY_COLOUR
