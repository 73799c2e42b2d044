"""Patch labels from segmentation images: what each visual token shows and where it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.sim.cameras import LID, RECEPTACLE, ROBOT

FIXTURES = (RECEPTACLE, LID)  # what has a place of its own besides the objects
MIN_COVERAGE = 0.01  # of a patch; below it the patch does not "show" the thing


@dataclass(frozen=True)
class PatchLabels:
    """For the G x G patches of one view; channel order: objects 0..n-1, receptacle, lid, robot.

    ``coverage`` float32 [G*G, n + 3]: share of the patch's pixels. ``offset`` float32
    [G*G, n + 2, 2]: (row, column) from the patch centre to the whole thing's pixel centroid in
    patch widths, 0 where the patch does not show it (robot has none).
    """

    coverage: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]


def patch_labels(segmentation: npt.NDArray[np.int_], n_objects: int, grid: int) -> PatchLabels:
    """``segmentation`` int [H, W], as `DualArmEnv.segmentation` gives it, with H and W multiples
    of ``grid``."""
    height, width = segmentation.shape
    rows, cols = height // grid, width // grid
    n_placed = n_objects + len(FIXTURES)
    coverage = np.zeros((grid * grid, n_placed + 1), np.float32)
    offset = np.zeros((grid * grid, n_placed, 2), np.float32)
    centres = np.stack(np.mgrid[0:grid, 0:grid], axis=-1).reshape(-1, 2) + 0.5
    for channel, identity in enumerate([*range(n_objects), *FIXTURES, ROBOT]):
        mask = segmentation == identity
        if not mask.any():
            continue
        share = mask.reshape(grid, rows, grid, cols).mean(axis=(1, 3)).reshape(-1)
        coverage[:, channel] = share
        if channel < n_placed:
            total = mask.sum()
            y = (mask.sum(axis=1) @ np.arange(height)) / total
            x = (mask.sum(axis=0) @ np.arange(width)) / total
            centroid = np.array([(y + 0.5) / rows, (x + 0.5) / cols])
            shown = share >= MIN_COVERAGE
            offset[shown, channel] = (centroid - centres)[shown]
    return PatchLabels(coverage, offset)
