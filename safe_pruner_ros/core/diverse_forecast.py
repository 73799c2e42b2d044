"""Diverse forecast: SAFE-Pruner that does not keep two tokens where one tells as much.

Not from a paper: two ideas of others on SAFE-Pruner's seams (read `safe_pruner.py` first; equation
numbers are that paper's, arXiv 2605.29662). Measurements and reasons: docs/experiments.md.

    early    s^K is averaged over all rows before the action rows ('prefill'), as FastV's paper
             has it (arXiv 2403.06764, Sec. 4). In a small network the early action rows do not
             look at the target yet
    pool     the K * ``pool`` tokens with the highest fused saliency s_t (Eq. 5)
    filter   the K of them that resemble each other least: greedy max-min diversity over the
             visual features, as DivPrune (arXiv 2503.02175) does over all tokens and VLA-Pruner
             over its pool (`diversity.py`). Salient tokens lie side by side and repeat each other

Layer, deep layers S, matching, keyframes: SAFE-Pruner's. Retained: exactly K tokens. Between steps
it keeps what SAFE-Pruner keeps. Cost beyond SAFE-Pruner's: a row of attention for every prompt
token instead of the action rows, V^2 D for the distances and K dependent steps for the filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float

from safe_pruner_ros.core.correspondence import MatchScope
from safe_pruner_ros.core.diversity import diversity_saliency
from safe_pruner_ros.core.pruner import StepContext
from safe_pruner_ros.core.safe_pruner import SafePruner
from safe_pruner_ros.core.safe_pruner_config import Requests, SafePrunerConfig, requests_of
from safe_pruner_ros.core.saliency import Norm
from safe_pruner_ros.core.selection import (
    QuotaScope,
    RetainedTokens,
    quota_groups,
    ranks,
    select_retained,
)
from safe_pruner_ros.core.settings import check_choice, check_range
from safe_pruner_ros.core.tokens import QueryGroup


@dataclass(frozen=True)
class DiverseForecastConfig(SafePrunerConfig):
    """SAFE-Pruner's settings with other defaults, and two more. The defaults are those of the
    embedded policy; tau fits no other policy unseen (`safe-pruner calibrate`).

    Parameters
    ----------
    pool : candidates for each token that stays, >= 1; 1 switches the filter off.
    early_queries : the rows that Eq. 1 asks in the last full layer; Eq. 6 asks the action rows.
    """

    similarity_threshold: float = 0.5
    norm: Norm = 'l1'
    match_scope: MatchScope = 'per_view'
    quota_scope: QuotaScope = 'per_view'
    max_keyframe_age: int | None = 16
    pool: float = 2.0
    early_queries: QueryGroup = 'prefill'

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('pool', self.pool, 1, math.inf, '2 chooses one of two; 1 is no filter')
        check_choice('early_queries', self.early_queries, ('prefill', 'action', 'text', 'last'))
        if self.variant != 'paper':
            raise ValueError(
                f"diverse_forecast knows variant 'paper' only, got {self.variant!r}; the "
                "authors' release is safe_pruner with variant 'code'"
            )


class DiverseForecast(SafePruner):
    config: DiverseForecastConfig

    def __init__(self, config: DiverseForecastConfig, n_layers: int) -> None:
        super().__init__(config, n_layers)

    def _requests_of(self, n_layers: int) -> Requests:
        published = requests_of(self.config, n_layers)
        return replace(
            published, early=replace(published.early, queries=self.config.early_queries)
        )

    def _select(self, context: StepContext, saliency: Float[torch.Tensor, ' V']) -> RetainedTokens:
        config, layout = self.config, context.layout
        ratio, scope = config.retention_ratio, config.quota_scope
        pool = torch.zeros(layout.n_visual, dtype=torch.bool, device=saliency.device)
        for group, quota in quota_groups(layout, ratio, scope):
            pool[group] = ranks(saliency[group]) < round(quota * config.pool)
        picks = diversity_saliency(context.features, layout, ratio, scope, pool)
        return select_retained(picks, ratio, layout, scope)
