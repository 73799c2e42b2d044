"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): keep tokens that differ from each other.

Rule: the max-min diversity problem over the projected visual tokens, solved greedily with
D(i, j) = 1 - cos(x_i, x_j); see `core/diversity.py`. Retained: exactly K. Neither text nor
attention is looked at.
Layer: before the first one (``pruning_layer`` 0). Queries: none. Kept between steps: nothing.
Cost: V^2 D multiply-accumulates, then K dependent steps over V numbers. On a GPU those K small
kernels are what it costs.

The released code (vbdi/divprune 799e2d9) numbers the kept tokens anew, so that they move together;
here they keep their original positions, as under every method. It can pick one token twice when
tokens are identical (a blank camera); here it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from safe_pruner_ros.core.diversity import diversity_saliency
from safe_pruner_ros.core.pruner import StepContext
from safe_pruner_ros.core.score_pruner import ScorePruner, ScorePrunerConfig
from safe_pruner_ros.core.selection import void_unless


@dataclass(frozen=True)
class DivPruneConfig(ScorePrunerConfig):
    pruning_layer: int = 0


class DivPrune(ScorePruner):
    def saliency(self, context: StepContext) -> Float[torch.Tensor, ' V']:
        """Earlier pick, higher value; 0 where not picked."""
        picked = diversity_saliency(
            context.features, context.layout, self.retention_ratio, self.quota_scope
        )
        return void_unless(torch.isfinite(context.features).all(), picked)
