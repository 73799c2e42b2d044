"""Diverse forecast: SAFE-Pruner that follows every policy step and keeps a bit of everything.

Not from a paper: ideas of three on SAFE-Pruner's seams (read `safe_pruner.py` first; equation
numbers are that paper's, arXiv 2605.29662). Measurements and reasons: docs/experiments.md.

    early    s^K is averaged over all rows of the prompt ('prefill'), as FastV's paper has it
             (arXiv 2403.06764, Sec. 4). In a small network the early action rows do not look at
             the target yet, and their shift (Eq. 6) does not tell where a subtask begins. On a
             causal decoder it is the last row alone (`settings.LAST_IF_CAUSAL`)
    renewed  a pruned step measures the deep layers S, too, on the tokens that it kept, and is
             what the next step is matched to: what was kept has its measured saliency, what was
             dropped keeps its forecast. VLA-Pruner (`baselines/vla_pruner.py`) reads 0 there.
             A layer of S below the cut (layer 0, by default) is measured on all V tokens in every
             step; there, too, only the kept ones are renewed, the others keep their forecast
    certain  the highest ``certain`` * K of the fused saliency s_t (Eq. 5) stay
    diverse  the other places go, one by one, to the token that resembles what is kept least:
             greedy max-min diversity over the visual features, as DivPrune (arXiv 2503.02175)
             does without any saliency (`diversity.py`)

Salient tokens lie side by side and repeat each other. Diversity shows a bit of everything, and the
deep layers then say what of it matters: that stays in the next step. Alone it depends on the
picture only, so that what it leaves out, it would leave out as long as the policy stands still.

An episode begins with early saliency and diversity. As the memory follows by itself, key timesteps
are few: attention that has shifted since the last one, or since the first step (Eq. 6 and 7 as
published), another instruction, ``max_keyframe_age``.

Layer, deep layers S, matching: SAFE-Pruner's. Retained: exactly K tokens. Cost beyond
SAFE-Pruner's: early attention of every prompt token beside the action rows; the deep rows and a
second matching in every pruned step; V^2 D for the distances and K dependent steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64

from safe_pruner_ros.core.correspondence import MatchScope, ReferenceTokens, match_tokens
from safe_pruner_ros.core.diversity import farthest_points
from safe_pruner_ros.core.keyframe_cache import Keyframe
from safe_pruner_ros.core.pruner import KeyframeReason, StepAttention, StepContext, StepPlan
from safe_pruner_ros.core.safe_pruner import SafePruner
from safe_pruner_ros.core.safe_pruner_config import Requests, SafePrunerConfig, requests_of
from safe_pruner_ros.core.saliency import Norm, transfer
from safe_pruner_ros.core.selection import QuotaScope, RetainedTokens, is_usable, quota_groups
from safe_pruner_ros.core.settings import LAST_IF_CAUSAL, check_choice, check_range
from safe_pruner_ros.core.tokens import QueryGroup


@dataclass(frozen=True)
class DiverseForecastConfig(SafePrunerConfig):
    """SAFE-Pruner's settings with other defaults, and three more. The defaults are those of the
    embedded policy; tau fits no other policy unseen (`safe-pruner calibrate`).

    Parameters
    ----------
    certain : share of the retained tokens that saliency alone decides, in [0, 1]; rounded up, in
        each view if ``quota_scope`` is 'per_view'.
    early_queries : the rows that Eq. 1 asks in the last full layer, for Eq. 5 and 6; 'last' on
        causal decoders.
    full_first_step : the first step of an episode is a key timestep. Off: it costs
        much of the mean in short episodes, and bought no success.
    """

    similarity_threshold: float = 0.75
    norm: Norm = 'l1'
    match_scope: MatchScope = 'per_view'
    quota_scope: QuotaScope = 'joint'
    max_keyframe_age: int | None = 32
    certain: float = 0.25
    early_queries: QueryGroup = field(default='prefill', metadata=LAST_IF_CAUSAL)
    full_first_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('certain', self.certain, 0, 1, '0 is DivPrune, 1 no diversity')
        check_choice('early_queries', self.early_queries, ('prefill', 'action', 'text', 'last'))
        check_choice('full_first_step', self.full_first_step, (True, False))
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
        early = replace(published.early, queries=self.config.early_queries)
        deep = tuple(replace(request, on_pruned_steps=True) for request in published.deep)
        return Requests(early, early, deep)  # as published, the early saliency tells the shift

    def plan(self, context: StepContext) -> StepPlan:
        may_start_pruned = not (self.config.full_first_step or self._keyframe_forced)
        reason = self._reason_without_attention(context, self._cache.get())
        if may_start_pruned and reason is KeyframeReason.FIRST_STEP:
            return self._plan_early(context)
        return super().plan(context)

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """A key timestep is stored as in SAFE-Pruner; a pruned step renews what it measured. A
        step whose attention cannot be used leaves that as it was; the next one runs in full."""
        if plan.retained is None or not self.config.forecast:
            super().observe(context, plan, attention)
            return
        kept = plan.retained.visual_index
        requests = (self._requests.shift, *self._requests.deep)
        measured = torch.stack([attention.saliency[request] for request in requests]).float()
        if not bool(is_usable(measured)):
            self.force_keyframe()
            return
        keyframe = self._cache.get()
        if keyframe is None or context.step <= keyframe.step:  # an episode that starts pruned
            keyframe = Keyframe(
                reference=ReferenceTokens.of(context.features, context.layout),
                saliency=torch.cat([measured[:1], torch.zeros_like(measured[1:])]),
                views=context.layout.views,
                instruction_key=context.instruction_key,
                step=context.step,
            )
        else:
            matched = match_tokens(context.features, keyframe.reference, self.config.match_scope)
            keyframe = replace(
                keyframe,
                reference=keyframe.reference.with_features(context.features),
                saliency=transfer(keyframe.saliency, matched),  # row 0: the keyframe's shift
            )
        keyframe.saliency[1:, kept] = measured[1:, kept]
        self._cache.put(keyframe)

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
