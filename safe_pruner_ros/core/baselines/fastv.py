"""FastV (Chen et al., ECCV 2024): keep what the layer before the pruning layer attends to.

Score: attention received, mean over heads and over all rows of the prompt (the paper's;
VLA-Pruner's release compares with this on OpenVLA-OFT). Drop on entry to layer K, original
position ids.
The released code (pkunlp-icler/FastV d165972) takes the last row alone, ``queries='last'``: right
where that row predicts the answer (OpenVLA; its published rows), and the default on causal
decoders, where all rows together keep the top of the picture (`settings.LAST_IF_CAUSAL`). On
OpenVLA-OFT and the embedded policy the last row is an end token that nobody reads, and ranks far
worse than chance (docs/experiments.md). ``queries='action'`` is SAFE-Pruner's "w/o forecast" arm.
Layer: one cut, at layer 3 by default (published: 2 or 3). Retained: the K highest. Kept between
steps: nothing. Cost: the query rows of one attention map, 'prefill' all of them (n^2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float

from safe_pruner_ros.core.pruner import SaliencyRequest, StepContext
from safe_pruner_ros.core.score_pruner import ScorePruner, ScorePrunerConfig
from safe_pruner_ros.core.settings import LAST_IF_CAUSAL, check_choice
from safe_pruner_ros.core.tokens import QueryGroup


@dataclass(frozen=True)
class FastVConfig(ScorePrunerConfig):
    """``queries``: whose attention ranks the tokens; 'last' on causal decoders."""

    queries: QueryGroup = field(default='prefill', metadata=LAST_IF_CAUSAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice('queries', self.queries, ('last', 'action', 'text', 'prefill'))


class FastV(ScorePruner):
    first_pruning_layer = 1

    def __init__(self, config: FastVConfig, n_layers: int) -> None:
        super().__init__(config, n_layers)
        self._request = SaliencyRequest(config.pruning_layer - 1, config.queries)
        self.shallow_requests = (self._request,)

    def saliency(self, context: StepContext) -> Float[torch.Tensor, ' V']:
        return context.shallow[self._request]
