"""Saliency and retention ratio -> the retained visual tokens. Count fixed by the ratio alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64

from safe_pruner_ros.core.tokens import TokenLayout

QuotaScope = Literal['joint', 'per_view']


@dataclass(frozen=True)
class RetainedTokens:
    """``visual_index`` int64 [K]: ascending, unique visual indices that stay."""

    visual_index: Int64[torch.Tensor, ' K']

    def __len__(self) -> int:
        return self.visual_index.shape[0]


def n_retained(n_visual: int, retention_ratio: float) -> int:
    """K = max(1, round(n_visual * retention_ratio)); Python's round, so halves go to even."""
    return max(1, round(n_visual * retention_ratio))


def view_quotas(layout: TokenLayout, retention_ratio: float) -> tuple[int, ...]:
    """Retained tokens of each view, proportional to its size; the sum is the joint K exactly.

    Largest remainder: every view gets floor(K * V_view / V), what is left over goes one each to
    the views with the largest fraction, earlier views first.
    """
    total, n_visual = n_retained(layout.n_visual, retention_ratio), layout.n_visual
    shares = [divmod(total * view.n_tokens, n_visual) for view in layout.views]
    quotas = [whole for whole, _ in shares]
    by_fraction = sorted(range(len(shares)), key=lambda view: -shares[view][1])
    for view in by_fraction[: total - sum(quotas)]:
        quotas[view] += 1
    return tuple(quotas)


def is_usable(saliency: Float[torch.Tensor, '*rows V']) -> torch.Tensor:
    """0-d bool tensor: every value finite and no row all zero. Otherwise nothing can be ranked."""
    return torch.isfinite(saliency).all() & (saliency != 0).any(dim=-1).all()


def select_retained(
    saliency: Float[torch.Tensor, ' V'],
    retention_ratio: float,
    layout: TokenLayout,
    scope: QuotaScope = 'joint',
) -> RetainedTokens:
    """The K most salient visual tokens; saliency [V], higher = keep.

    ``scope='joint'`` ranks all views together, so a view can lose every token; ``'per_view'``
    ranks inside each view with the quotas of `view_quotas`. Equal saliency keeps the lower
    visual index. Compared in float32. No host sync: K is known before the saliency is.
    """
    if saliency.shape != (layout.n_visual,):
        raise ValueError(
            f'saliency must be [{layout.n_visual}], one value per visual token, '
            f'got {list(saliency.shape)}'
        )
    ranked = saliency.float()
    index = torch.cat(
        [
            _descending(ranked[group])[:quota] + group.start
            for group, quota in quota_groups(layout, retention_ratio, scope)
        ]
    )
    return RetainedTokens(index.sort().values)


def quota_groups(
    layout: TokenLayout, retention_ratio: float, scope: QuotaScope
) -> list[tuple[slice, int]]:
    """(visual indices that compete with each other, how many of them stay)."""
    if scope == 'joint':
        everything = slice(0, layout.n_visual)
        return [(everything, n_retained(layout.n_visual, retention_ratio))]
    quotas = view_quotas(layout, retention_ratio)
    return list(zip(layout.view_slices().values(), quotas, strict=True))


def ranks(saliency: Float[torch.Tensor, ' V']) -> Int64[torch.Tensor, ' V']:
    """0 for the most salient token, V - 1 for the least; equal saliency in index order."""
    order = _descending(saliency)
    place = torch.arange(len(saliency), device=saliency.device)
    return torch.empty_like(order).scatter_(0, order, place)


def void_unless(
    usable: torch.Tensor, saliency: Float[torch.Tensor, ' V']
) -> Float[torch.Tensor, ' V']:
    """``saliency``, or NaN everywhere when the 0-d bool ``usable`` is False. Ranks and distances
    hide a NaN of their inputs; this hands it on without a host sync."""
    return torch.where(usable, saliency, torch.full_like(saliency, float('nan')))


def _descending(saliency: torch.Tensor) -> torch.Tensor:
    """Indices from the largest value down; a stable sort, as torch.topk leaves ties open."""
    return torch.sort(saliency, descending=True, stable=True).indices
