"""The short way to write a pruner: rank the visual tokens of each step by themselves.

    class MyPruner(ScorePruner):
        def saliency(self, context): ...   # [V], higher = keep

is enough; selection, the fallback and the bookkeeping are here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from safe_pruner_ros.core.pruner import SaliencyRequest, StepAttention, StepContext, StepPlan
from safe_pruner_ros.core.selection import QuotaScope, is_usable, select_retained
from safe_pruner_ros.core.settings import (
    check_choice,
    check_pruning_layer,
    check_retention_ratio,
)

UNUSABLE = 'saliency is all zero or not finite: every token kept'


@dataclass(frozen=True)
class ScorePrunerConfig:
    """``retention_ratio`` K / V in (0, 1]; ``pruning_layer`` 0-based, its input is pruned;
    ``quota_scope``: rank all views together ('joint') or each with its share ('per_view')."""

    retention_ratio: float = 0.3
    pruning_layer: int = 3
    quota_scope: QuotaScope = 'joint'

    def __post_init__(self) -> None:
        check_retention_ratio(self.retention_ratio)
        check_choice('quota_scope', self.quota_scope, ('joint', 'per_view'))


class ScorePruner:
    """A pruner without memory of earlier steps. Fill ``shallow_requests`` when ``saliency``
    reads attention."""

    first_pruning_layer = 0

    def __init__(self, config: ScorePrunerConfig, n_layers: int) -> None:
        check_pruning_layer(config.pruning_layer, n_layers, self.first_pruning_layer)
        self.method = type(self).__name__
        self.retention_ratio = config.retention_ratio
        self.similarity_threshold = float('nan')
        self.pruning_layer = config.pruning_layer
        self.quota_scope: QuotaScope = config.quota_scope
        self.shallow_requests: tuple[SaliencyRequest, ...] = ()
        self.deep_requests: tuple[SaliencyRequest, ...] = ()

    def saliency(self, context: StepContext) -> Float[torch.Tensor, ' V']:
        """One value per visual token, higher = keep."""
        raise NotImplementedError(f'{type(self).__name__} must define saliency(context)')

    def plan(self, context: StepContext) -> StepPlan:
        saliency = self.saliency(context).float()
        if not bool(is_usable(saliency)):  # checked first: NaN would sort as most salient
            return StepPlan(retained=None, early=saliency, fallback=UNUSABLE)
        retained = select_retained(
            saliency, self.retention_ratio, context.layout, self.quota_scope
        )
        return StepPlan(retained, early=saliency, fused=saliency)

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """Nothing to learn: each step stands for itself."""

    def force_keyframe(self) -> None:
        """Nothing that a step in full could renew."""

    def reset(self) -> None:
        """Nothing to forget."""
