"""Which keyframe token shows what a current token shows: cosine matching of visual features.

Features are projector outputs, before positions are added, so a thing that moved is found where
it went (semantic attention consistency, SAFE-Pruner Sec. 3.3 and Algorithm 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int32, Int64

from safe_pruner_ros.core.tokens import TokenLayout

MatchScope = Literal['joint', 'per_view']

# Cosines this close are the same number: a float32 matrix product rounds equal columns
# differently by their place in a block, and blank image patches make equal columns common.
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Correspondence:
    """pi_t: current visual index -> ``keyframe_index`` [V]; ``similarity`` [V] its cosine."""

    keyframe_index: Int64[torch.Tensor, ' V']
    similarity: Float[torch.Tensor, ' V']


@dataclass(frozen=True)
class ReferenceTokens:
    """The keyframe's side of the matching, prepared once per keyframe. Visual tokens only.

    ``unit_features`` [V, D] float32, rows of length 1 (rows of zeros stay zero).
    ``preference`` [V, V]: among equally similar keyframe tokens j the lowest value wins for
    current token i: same view first, then the nearest grid place, then the lower index.
    """

    unit_features: Float[torch.Tensor, 'V D']
    preference: Int32[torch.Tensor, 'V V']
    other_view: Bool[torch.Tensor, 'V V']

    @classmethod
    def of(cls, features: Float[torch.Tensor, 'V D'], layout: TokenLayout) -> ReferenceTokens:
        if features.shape[0] != layout.n_visual:
            raise ValueError(
                f'features must have one row per visual token ({layout.n_visual}), '
                f'got {features.shape[0]}'
            )
        place = layout.grid_positions(features.device)
        apart = (place[:, None] - place[None, :]).abs()  # [V, V, 3]
        other_view = apart[..., 0] > 0
        distance = apart[..., 1].square() + apart[..., 2].square()
        farthest = max(view.rows for view in layout.views) ** 2
        farthest += max(view.cols for view in layout.views) ** 2
        index = torch.arange(layout.n_visual, device=features.device)
        preference = (other_view * farthest + distance) * layout.n_visual + index
        return cls(unit_rows(features), preference.to(torch.int32), other_view)

    def with_features(self, features: Float[torch.Tensor, 'V D']) -> ReferenceTokens:
        """The tokens of another step in the same layout."""
        return replace(self, unit_features=unit_rows(features))


def unit_rows(features: Float[torch.Tensor, 'V D']) -> Float[torch.Tensor, 'V D']:
    """float32 rows of length 1. A row of zeros stays zero: its cosine with anything is 0."""
    rows = features.float()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(length == 0, torch.ones_like(length), length)


def match_tokens(
    features: Float[torch.Tensor, 'V D'],
    reference: ReferenceTokens,
    scope: MatchScope = 'joint',
) -> Correspondence:
    """pi_t(i) = argmax_j cos(features[i], reference[j]).

    ``scope='joint'`` searches all views (the paper); ``'per_view'`` only the token's own view.
    Ties within `TIE_TOLERANCE` go by ``ReferenceTokens.preference``; so a token without features
    is matched to its own place. Features must be finite: the caller checks.
    """
    cosine = unit_rows(features) @ reference.unit_features.T
    if scope == 'per_view':
        cosine = cosine.masked_fill(reference.other_view, float('-inf'))
    best = cosine.amax(dim=1, keepdim=True)
    tied = cosine >= best - TIE_TOLERANCE
    worst = torch.iinfo(torch.int32).max
    index = reference.preference.masked_fill(~tied, worst).argmin(dim=1)
    return Correspondence(index, cosine.gather(1, index[:, None])[:, 0])
