"""Attention -> saliency of visual tokens, and its forecast for layers that have not run yet.

Equation numbers are SAFE-Pruner's (arXiv 2605.29662). Everything here is float32: bfloat16
attention produces many equal values, and ties would then decide what is kept.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float

from safe_pruner_ros.core.correspondence import Correspondence

Norm = Literal['none', 'l1', 'minmax', 'zscore']

# Lowest and highest value of a row this close, relative to the larger magnitude, are one number:
# float32 rounds a mean of equal values, and stretched to full range the rounding would rank.
FLAT_SPREAD = 1e-6


def attention_saliency(
    query: Float[torch.Tensor, 'H R d'],
    key: Float[torch.Tensor, 'H_kv S d'],
    visual: slice,
    scaling: float,
    visible: torch.Tensor | None = None,
    per_query: bool = False,
) -> Float[torch.Tensor, '*rows V']:
    """How much the R query rows attend to each visual token; higher = keep (Eq. 1 and 2).

    ``query`` and ``key`` carry their rotary embedding; H is a multiple of H_kv (grouped queries:
    head h reads key head h // (H / H_kv)). ``visual`` are the key columns of visual tokens.
    ``visible`` bool [R, S], default all, says which keys a row may see (causal models).
    ``per_query`` keeps the rows apart: [R, V] instead of [V].
    """
    # The heads that share a key head become rows of one product: no key is repeated.
    grouped = query.float().reshape(key.shape[0], -1, query.shape[2])  # [H_kv, H / H_kv * R, d]
    logits = torch.matmul(grouped * scaling, key.float().transpose(1, 2))
    logits = logits.view(*query.shape[:2], -1)
    if visible is not None:
        logits = logits.masked_fill(~visible, float('-inf'))
    # Eq. 1 over ALL keys, then the visual columns: text competes for the attention mass, and
    # that mass weighs the layers against each other in Eq. 4 and 5.
    attention = torch.softmax(logits, dim=-1)[..., visual]
    return attention.mean(dim=0) if per_query else attention.mean(dim=(0, 1))  # Eq. 2


def transfer(
    saliency: Float[torch.Tensor, 'layers V'], correspondence: Correspondence
) -> Float[torch.Tensor, 'layers V']:
    """Forecast saliency: each current token takes over the saliency of its keyframe token.

    shat^l_t[i] = s^l_ref[pi_t(i)]. Many current tokens may share one keyframe token.
    """
    return saliency.index_select(1, correspondence.keyframe_index)


def normalize(
    saliency: Float[torch.Tensor, '*layers V'], norm: Norm
) -> Float[torch.Tensor, '*layers V']:
    """Put layers on one scale, each over its last dim. 'none' is what the paper does.

    A row that is constant, or nearly so (`FLAT_SPREAD`), becomes zeros under 'minmax' and
    'zscore'; an all-zero row stays zero under 'l1'. A row that is not finite never becomes finite.
    Raises ValueError for an unknown norm.
    """
    if norm == 'none':
        return saliency
    if norm == 'l1':
        return saliency / _nonzero(saliency.abs().sum(dim=-1, keepdim=True))
    if norm not in ('minmax', 'zscore'):
        raise ValueError(f"norm must be 'none', 'l1', 'minmax' or 'zscore', got {norm!r}")
    low, high = saliency.amin(dim=-1, keepdim=True), saliency.amax(dim=-1, keepdim=True)
    if norm == 'minmax':
        scaled = (saliency - low) / _nonzero(high - low)
    else:
        centred = saliency - saliency.mean(dim=-1, keepdim=True)
        scaled = centred / _nonzero(saliency.std(dim=-1, keepdim=True, correction=0))
    is_flat = high - low <= FLAT_SPREAD * torch.maximum(high.abs(), low.abs())
    is_flat &= torch.isfinite(high - low)  # infinity is no more than a millionth of itself
    return torch.where(is_flat, torch.zeros_like(scaled), scaled)


def _nonzero(divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)


def mean_over_layers(
    forecasts: Float[torch.Tensor, 'layers V'], norm: Norm = 'none'
) -> Float[torch.Tensor, ' V']:
    """One forecast of what the deep layers S will look at (Eq. 4)."""
    return normalize(forecasts, norm).mean(dim=0)


def fuse(
    early: Float[torch.Tensor, ' V'],
    deep: Float[torch.Tensor, ' V'],
    early_weight: float,
    deep_weight: float,
    norm: Norm = 'none',
) -> Float[torch.Tensor, ' V']:
    """early_weight * early + deep_weight * deep (Eq. 5). ``deep`` comes from Eq. 4, so it is on
    the scale of ``norm`` already; ``early`` is brought there here."""
    return early_weight * normalize(early, norm) + deep_weight * deep


def attention_entropy(
    query: Float[torch.Tensor, 'H R d'],
    key: Float[torch.Tensor, 'H_kv S d'],
    scaling: float,
    visible: torch.Tensor | None = None,
) -> Float[torch.Tensor, '']:
    """How spread the attention of the R query rows is over all keys, in nats: heads averaged
    first, then the entropy of each row, then the mean over rows (VLA-Cache, arXiv 2502.02175).

    Arguments as of `attention_saliency`; float32.
    """
    everything = slice(0, key.shape[1])
    rows = attention_saliency(query, key, everything, scaling, visible, per_query=True)
    entropy: torch.Tensor = torch.special.entr(rows).sum(dim=-1).mean()
    return entropy
