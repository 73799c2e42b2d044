"""VLA-Pruner (MINT-SJTU): keep what the prompt looks at or what the last actions looked at.

Semantic: attention of the layer before ``pruning_layer``, mean over heads and all prefill rows.
Action:   Shat = sum_{i=1..w} g^i S_{t-i} / sum_{i=1..w} g^i, with S the attention of the action
          rows, mean over heads and over the later half of the layers; w = 3, g = 0.8.
Pool:     the K highest of either. Filter: the K most different tokens of the pool (greedy
          max-min diversity, `core/diversity.py`). Retained: exactly K.
Layer: one cut, at layer 3 by default. Kept between steps: w vectors of V numbers
(`StepHistory` also holds the features of those steps).
Cost: one attention map of the prefill rows (n^2, the dearest term), the action rows of the later
layers on every step, V^2 D and K dependent steps for the filter.

The first ``warm_up_steps`` of an episode run in full: the released code (fa5bfed,
modeling_prismatic.py:565-600) prunes nothing until w steps are remembered, and these steps made
its published numbers; the paper's text prunes them by the semantic term alone (0 does that). They
weigh more in short episodes: 3 of the embedded policy's 11 steps. Pruned tokens read 0 in S, so
they return through the semantic term only: the method's own bias.
The later half is the paper's; the release (same file, line 615) reads S at layer 15 of 32 alone,
the last of the earlier half (``deep_layers=(15,)``). It also weighs the OLDEST step most, against
the formula above, which is what runs here; its OFT variant (84d4b71) cuts one layer later and by
view (``quota_scope='per_view'``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float

from safe_pruner_ros.core.diversity import diversity_saliency
from safe_pruner_ros.core.pruner import (
    KeyframeReason,
    SaliencyRequest,
    StepAttention,
    StepContext,
    StepPlan,
)
from safe_pruner_ros.core.score_pruner import ScorePruner, ScorePrunerConfig
from safe_pruner_ros.core.selection import is_usable, quota_groups, ranks, void_unless
from safe_pruner_ros.core.settings import check_range, resolve_layers
from safe_pruner_ros.core.step_history import PastStep, StepHistory


@dataclass(frozen=True)
class VLAPrunerConfig(ScorePrunerConfig):
    """``history_steps`` w, ``history_decay`` g, ``warm_up_steps`` that run in full first;
    ``deep_layers`` where the action rows are read, None: the later half of the decoder."""

    history_steps: int = 3
    history_decay: float = 0.8
    warm_up_steps: int = 3
    deep_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('history_steps', self.history_steps, 1, math.inf, 'published: 3')
        check_range('history_decay', self.history_decay, 1e-3, 1, '1 weighs all steps alike')
        check_range('warm_up_steps', self.warm_up_steps, 0, math.inf, '0 prunes at once')


class VLAPruner(ScorePruner):
    first_pruning_layer = 1

    def __init__(self, config: VLAPrunerConfig, n_layers: int) -> None:
        super().__init__(config, n_layers)
        self._config = config
        self._semantic = SaliencyRequest(config.pruning_layer - 1, 'prefill')
        layers = resolve_layers(config.deep_layers, n_layers, range(n_layers // 2, n_layers))
        self.shallow_requests = (self._semantic,)
        self.deep_requests = tuple(
            SaliencyRequest(layer, 'action', on_pruned_steps=True) for layer in layers
        )
        self._history = StepHistory(config.history_steps)

    def plan(self, context: StepContext) -> StepPlan:
        plan = super().plan(context)
        if plan.retained is not None and context.step < self._config.warm_up_steps:
            return replace(plan, retained=None, keyframe=KeyframeReason.WARM_UP)
        return plan

    def saliency(self, context: StepContext) -> Float[torch.Tensor, ' V']:
        """The order in which the filter picks from the pool; 0 where not picked."""
        semantic, layout = context.shallow[self._semantic].float(), context.layout
        terms = [semantic]
        if past := self._history.before(context):
            terms.append(forecast(past, self._config.history_decay))
        pool = torch.zeros(layout.n_visual, dtype=torch.bool, device=semantic.device)
        for group, quota in quota_groups(layout, self.retention_ratio, self.quota_scope):
            for term in terms:
                pool[group] |= ranks(term[group]) < quota
        picked = diversity_saliency(
            context.features, layout, self.retention_ratio, self.quota_scope, pool
        )
        return void_unless(is_usable(semantic) & torch.isfinite(context.features).all(), picked)

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """Remember where the action rows looked; a step in doubt leaves nothing behind."""
        measured = torch.stack([attention.saliency[request] for request in self.deep_requests])
        saliency = measured.float().mean(dim=0)
        if not plan.fallback and bool(is_usable(saliency)):
            self._history.put(context, saliency)

    def reset(self) -> None:
        self._history.clear()


def forecast(past: list[PastStep], decay: float) -> Float[torch.Tensor, ' V']:
    """Shat from the steps before, most recent first; fewer than w steps share the weight."""
    weights = [decay**age for age in range(1, len(past) + 1)]
    total = sum(
        (weight * step.saliency for weight, step in zip(weights, past, strict=True)),
        start=torch.zeros_like(past[0].saliency),
    )
    return total / sum(weights)
