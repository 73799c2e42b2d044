"""FastV (Chen et al., ECCV 2024): keep what the layer before the pruning layer attends to.

As in its released code (pkunlp-icler/FastV d165972): heads averaged, last token row, visual
columns, drop on entry to layer K, original position ids. Its paper averages over all rows
instead: ``queries='prefill'``. ``queries='action'`` averages the action rows; on OpenVLA-OFT that
is SAFE-Pruner's "w/o forecast" arm, where the last row is the end token's.
Layer: one cut, at layer 3 by default (published: 2 or 3). Retained: the K highest. Kept between
steps: nothing. Cost: the query rows of one attention map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from safe_pruner_ros.core.pruner import SaliencyRequest, StepContext
from safe_pruner_ros.core.score_pruner import ScorePruner, ScorePrunerConfig
from safe_pruner_ros.core.settings import check_choice
from safe_pruner_ros.core.tokens import QueryGroup


@dataclass(frozen=True)
class FastVConfig(ScorePrunerConfig):
    """``queries``: whose attention ranks the tokens."""

    queries: QueryGroup = 'last'

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
