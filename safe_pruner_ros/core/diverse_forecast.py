"""Diverse forecast: SAFE-Pruner that gives most places to tokens unlike those already kept.

Not from a paper: two ideas of others on SAFE-Pruner's seams (read `safe_pruner.py` first; equation
numbers are that paper's, arXiv 2605.29662). Measurements and reasons: docs/experiments.md.

    early    s^K is averaged over all rows before the action rows ('prefill'), as FastV's paper
             has it (arXiv 2403.06764, Sec. 4). In a small network the early action rows do not
             look at the target yet
    certain  the highest ``certain`` * K of the fused saliency s_t (Eq. 5) stay
    diverse  the other places go, one by one, to the token that resembles what is kept least:
             greedy max-min diversity over the visual features, as DivPrune (arXiv 2503.02175)
             does without any saliency (`diversity.py`)

Salient tokens lie side by side and repeat each other, and saliency that is wrong is wrong at the
same place in every step while the policy stands still. Diversity shows a bit of everything. Alone
it depends on the picture only, so that what it leaves out, it would leave out for ever.

Layer, deep layers S, matching, keyframes, Eq. 6 (action rows) and what is kept between steps:
SAFE-Pruner's. Retained: exactly K tokens. Cost beyond SAFE-Pruner's: a row of attention for every
prompt token beside the action rows, V^2 D for the distances and K dependent steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64

from safe_pruner_ros.core.correspondence import MatchScope
from safe_pruner_ros.core.diversity import farthest_points
from safe_pruner_ros.core.pruner import StepContext
from safe_pruner_ros.core.safe_pruner import SafePruner
from safe_pruner_ros.core.safe_pruner_config import Requests, SafePrunerConfig, requests_of
from safe_pruner_ros.core.saliency import Norm
from safe_pruner_ros.core.selection import QuotaScope, RetainedTokens, quota_groups
from safe_pruner_ros.core.settings import check_choice, check_range
from safe_pruner_ros.core.tokens import QueryGroup


@dataclass(frozen=True)
class DiverseForecastConfig(SafePrunerConfig):
    """SAFE-Pruner's settings with other defaults, and two more. The defaults are those of the
    embedded policy; tau fits no other policy unseen (`safe-pruner calibrate`).

    Parameters
    ----------
    certain : share of the retained tokens that saliency alone decides, in [0, 1]; rounded up, in
        each view if ``quota_scope`` is 'per_view'.
    early_queries : the rows that Eq. 1 asks in the last full layer; Eq. 6 asks the action rows.
    """

    similarity_threshold: float = 0.3
    norm: Norm = 'l1'
    match_scope: MatchScope = 'per_view'
    quota_scope: QuotaScope = 'joint'
    max_keyframe_age: int | None = 16
    certain: float = 0.25
    early_queries: QueryGroup = 'prefill'

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('certain', self.certain, 0, 1, '0 is DivPrune, 1 no diversity')
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
        index = torch.cat(
            [
                self._chosen(context.features[group], saliency[group], quota) + group.start
                for group, quota in quota_groups(layout, ratio, scope)
            ]
        )
        return RetainedTokens(index.sort().values)

    def _chosen(
        self, features: Float[torch.Tensor, 'V D'], saliency: Float[torch.Tensor, ' V'], count: int
    ) -> Int64[torch.Tensor, ' count']:
        certain = saliency.float().sort(descending=True, stable=True).indices
        certain = certain[: math.ceil(count * self.config.certain)]
        everyone = torch.ones(len(saliency), dtype=torch.bool, device=saliency.device)
        return farthest_points(features, count, everyone, certain)
