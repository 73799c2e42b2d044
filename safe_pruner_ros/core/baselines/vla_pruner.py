"""VLA-Pruner (MINT-SJTU): keep what the prompt looks at or what the last actions looked at.

Semantic: attention of the layer before ``pruning_layer``, mean over heads and all rows of the
          prompt; on causal decoders its last row, which the author now advises there (issue #10),
          as all rows together keep the top of the picture (`settings.LAST_IF_CAUSAL`).
Action:   Shat = sum_{i=1..w} g^i S_{t-i} / sum_{i=1..w} g^i, with S the attention of the action
          rows, mean over heads and over the later half of the layers; w = 3, g = 0.8.
Pool:     the K highest of either. Filter: the K most different tokens of the pool (greedy
          max-min diversity, `core/diversity.py`). Retained: exactly K.
Layer: one cut, at layer 3 by default. Kept between steps: w vectors of V numbers.
Cost: one attention map of the prompt's rows (n^2, the dearest term) and the action rows of the
later layers on every step; V^2 D and K dependent steps for the filter on pruned ones.

Steps run in full until ``warm_up_steps`` of them are remembered, at the start of an episode and
whenever the memory is empty again (another instruction, other views): the released code (fa5bfed,
modeling_prismatic.py:565-600) prunes nothing until w steps are remembered, and these steps made
its published numbers; the paper's text prunes them by the semantic term alone (0 does that). They
weigh more in short episodes: 3 of the embedded policy's 11 steps. Pruned tokens read 0 in S, so
they return through the semantic term only: the method's own bias.
The later half is the paper's; the release (same file, line 615) reads S at layer 15 of 32 alone,
the last of the earlier half (``deep_layers=(15,)``). The formula above is what runs here: fa5bfed
weighs the OLDEST step most against it, c4adcf1 and the OFT variant do not. That variant (84d4b71)
cuts one layer later and by view (``quota_scope='per_view'``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float

from safe_pruner_ros.core.diversity import diversity_saliency
from safe_pruner_ros.core.history_pruner import HistoryPruner
from safe_pruner_ros.core.pruner import KeyframeReason, SaliencyRequest, StepContext
from safe_pruner_ros.core.score_pruner import ScorePrunerConfig
from safe_pruner_ros.core.selection import quota_groups, ranks, void_unless
from safe_pruner_ros.core.settings import (
    LAST_IF_CAUSAL,
    check_choice,
    check_range,
    resolve_layers,
)
from safe_pruner_ros.core.step_history import PastStep
from safe_pruner_ros.core.tokens import QueryGroup


@dataclass(frozen=True)
class VLAPrunerConfig(ScorePrunerConfig):
    """``semantic_queries``: whose attention is the semantic term, 'last' on causal decoders;
    ``history_steps`` w, ``history_decay`` g; ``warm_up_steps``: remembered steps before the
    first pruned one, w at most; ``deep_layers`` where the action rows are read, None: the later
    half of the decoder."""

    history_steps: int = 3
    history_decay: float = 0.8
    warm_up_steps: int = 3
    deep_layers: tuple[int, ...] | None = None
    semantic_queries: QueryGroup = field(default='prefill', metadata=LAST_IF_CAUSAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(
            'semantic_queries', self.semantic_queries, ('last', 'action', 'text', 'prefill')
        )
        check_range('history_steps', self.history_steps, 1, math.inf, 'published: 3')
        check_range('history_decay', self.history_decay, 1e-3, 1, '1 weighs all steps alike')
        check_range('warm_up_steps', self.warm_up_steps, 0, math.inf, '0 prunes at once')


class VLAPruner(HistoryPruner):
    def __init__(self, config: VLAPrunerConfig, n_layers: int) -> None:
        later_half = range(n_layers // 2, n_layers)
        deep = resolve_layers(config.deep_layers, n_layers, later_half)
        super().__init__(config, n_layers, 'action', deep, config.history_steps)
        self._config = config
        self._semantic = SaliencyRequest(config.pruning_layer - 1, config.semantic_queries)
        self.shallow_requests = (self._semantic,)

    def why_in_full(self, past: list[PastStep]) -> KeyframeReason | None:
        n_needed = min(self._config.warm_up_steps, self._config.history_steps)
        return KeyframeReason.WARM_UP if len(past) < n_needed else None

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
        return void_unless(self.can_be_judged(context), picked)


def forecast(past: list[PastStep], decay: float) -> Float[torch.Tensor, ' V']:
    """Shat from the steps before, most recent first; fewer than w steps share the weight."""
    weights = [decay**age for age in range(1, len(past) + 1)]
    total = sum(
        (weight * step.saliency for weight, step in zip(weights, past, strict=True)),
        start=torch.zeros_like(past[0].saliency),
    )
    return total / sum(weights)
