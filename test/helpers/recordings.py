"""Small made-up recordings of attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safe_pruner_ros.core.tokens import ViewGrid
from safe_pruner_ros.evaluation.analysis.recording import QUERIES, Recording

V, D, LAYERS = 12, 6, 5


def recording(
    saliency: np.ndarray, features: np.ndarray, subtasks: Sequence[str], seed: int = 0
) -> Recording:
    """Two views of six tokens; ``saliency`` [T, L, V] for every query group."""
    views = (ViewGrid('head', 2, 3), ViewGrid('wrist', 2, 3))
    groups = {queries: saliency.astype(np.float32) for queries in QUERIES}
    return Recording(seed, True, views, features.astype(np.float32), groups, tuple(subtasks))


def shuffled_scene(n_steps: int, rng: np.random.Generator) -> Recording:
    """Each token keeps its feature and saliency but moves to another place at every step."""
    things, looks = rng.normal(size=(V, D)), rng.random((LAYERS, V)) + 0.01
    orders = [rng.permutation(V) for _ in range(n_steps)]
    return recording(
        np.stack([looks[:, order] for order in orders]),
        np.stack([things[order] for order in orders]),
        ['pick'] * n_steps,
    )
