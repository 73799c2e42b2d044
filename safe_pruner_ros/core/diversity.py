"""Farthest-point selection: tokens that resemble each other least (max-min diversity).

D(i, j) = 1 - cos(x_i, x_j). The first pick is the token whose nearest other token is farthest
away, unless some are picked already; each further pick is the token whose nearest picked token is
farthest away.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64

from safe_pruner_ros.core.correspondence import TIE_TOLERANCE, unit_rows
from safe_pruner_ros.core.selection import QuotaScope, quota_groups
from safe_pruner_ros.core.tokens import TokenLayout


def farthest_points(
    features: Float[torch.Tensor, 'V D'],
    count: int,
    candidates: Bool[torch.Tensor, ' V'],
    picked: Int64[torch.Tensor, ' P'] | None = None,
) -> Int64[torch.Tensor, ' count']:
    """``count`` different ``candidates``, in the order of the picks; at least so many must exist.

    ``picked`` are in already, P <= ``count`` of the candidates; they come first.
    Equal distances take the lower index. Cost: one V x V x D product, then ``count`` steps over V
    numbers, none of which waits for the device.
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=features.device)
    unit = unit_rows(features)
    distance = 1 - unit @ unit.T
    # The product rounds equal columns differently: identical tokens must stay at one distance.
    distance = distance.masked_fill(distance.abs() < TIE_TOLERANCE, 0.0)
    if picked is None or not len(picked):
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        gap = distance.masked_fill(itself | ~candidates, float('inf')).amin(dim=1)
        picked = gap.masked_fill(~candidates, float('-inf')).argmax().view(1)
    picks, gap = [picked], distance.index_select(0, picked).amin(dim=0)
    gap = gap.masked_fill(~candidates, float('-inf'))
    for _ in range(count - len(picked)):
        # A blank image is all zero distances: what was picked must not be picked again.
        gap = gap.index_fill(0, picks[-1], float('-inf'))
        picks.append(gap.argmax().view(1))
        gap = torch.minimum(gap, distance.index_select(0, picks[-1])[0])
    return torch.cat(picks)


def diversity_saliency(
    features: Float[torch.Tensor, 'V D'],
    layout: TokenLayout,
    retention_ratio: float,
    scope: QuotaScope,
    candidates: Bool[torch.Tensor, ' V'] | None = None,
) -> Float[torch.Tensor, ' V']:
    """Picks as a saliency: the first of n picks of a group has n, the last 1, the others 0.

    `select_retained` with the same ratio and scope then keeps the picks and nothing else. Each
    group must hold as many ``candidates`` (default: all tokens) as its quota.
    """
    if candidates is None:
        candidates = torch.ones(layout.n_visual, dtype=torch.bool, device=features.device)
    saliency = torch.zeros(layout.n_visual, device=features.device)
    for group, quota in quota_groups(layout, retention_ratio, scope):
        picks = farthest_points(features[group], quota, candidates[group]) + group.start
        value = torch.arange(quota, 0, -1, dtype=saliency.dtype, device=saliency.device)
        saliency = saliency.index_copy(0, picks, value)
    return saliency
