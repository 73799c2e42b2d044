"""What a key timestep leaves behind for the steps after it: get, put, clear, nothing else."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Float

from safe_pruner_ros.core.correspondence import ReferenceTokens
from safe_pruner_ros.core.tokens import ViewGrid


@dataclass(frozen=True)
class Keyframe:
    """One unpruned policy step, or what later ones made of it (`diverse_forecast.py`).

    ``reference``: its visual tokens, ready for matching. ``saliency`` [layers, V]: one row per
    remembered layer, in the order of the pruner that stored it; finite. ``views`` and
    ``instruction_key`` say for which inputs it is valid; ``step`` is its policy step.
    """

    reference: ReferenceTokens
    saliency: Float[torch.Tensor, 'layers V']
    views: tuple[ViewGrid, ...]
    instruction_key: Hashable
    step: int


class KeyframeCache:
    """Holds the latest keyframe, t_ref(t) = max{k in the key set, k <= t} (Eq. 3)."""

    def __init__(self) -> None:
        self._keyframe: Keyframe | None = None

    def get(self) -> Keyframe | None:
        return self._keyframe

    def put(self, keyframe: Keyframe) -> None:
        self._keyframe = keyframe

    def clear(self) -> None:
        self._keyframe = None
