"""Did attention shift so far that another subtask has begun? (SAFE-Pruner Sec. 3.4)"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float


@dataclass(frozen=True)
class SubtaskDecision:
    """``similarity``: Eq. 6, NaN where undefined. ``is_boundary``: Eq. 7."""

    similarity: float
    is_boundary: bool


def attention_similarity(
    current: Float[torch.Tensor, ' V'], forecast: Float[torch.Tensor, ' V']
) -> Float[torch.Tensor, '']:
    """Cosine of measured and forecast saliency over all views, not centred (Eq. 6).

    In [0, 1] for saliency from attention. NaN when either is all zero or not finite.
    """
    current, forecast = current.float(), forecast.float()
    # Scaled by the largest value first: small attention would underflow when squared.
    current, forecast = current / current.abs().amax(), forecast / forecast.abs().amax()
    lengths: torch.Tensor = current.norm() * forecast.norm()
    return torch.dot(current, forecast) / lengths


def decide_subtask(similarity: float, similarity_threshold: float) -> SubtaskDecision:
    """A boundary when similarity < threshold (Eq. 7), or when there is no similarity.

    Written as `not >=`, so that NaN is a boundary: doubt keeps every token.
    """
    return SubtaskDecision(similarity, not similarity >= similarity_threshold)
