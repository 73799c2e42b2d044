"""SAFE-Pruner: keep the visual tokens that this layer AND the layers to come will look at.

Read this file first. Equation numbers are the paper's (arXiv 2605.29662).

Pruning early saves most, but early layers do not yet attend to what late layers need. Late
attention is only known after a full run; over a robot's policy steps, however, it stays on the
same *things*. So run one step in full (a key timestep), remember what each layer attended to,
and let the following steps inherit it, token by token, wherever those things have moved:

    early     s^K        what the last full layer attends to now               Eq. 1, 2
    match     pi_t       which keyframe token shows what token i shows         Sec. 3.3
    forecast  shat^l_t   saliency of layer l, taken over through pi_t
    deep      sdeep_t    mean of the forecasts over the deep layers S           Eq. 4
    fused     s_t        alpha * early + (1 - alpha) * deep                     Eq. 5
    shift     c_t        cosine of measured and forecast early saliency         Eq. 6
    boundary  c_t < tau  another subtask: run in full, new keyframe             Eq. 7

The three verbs of an episode are below in this order: `plan` decides, `observe` remembers,
`reset` forgets. In doubt (first step, NaN, another instruction) every token is kept. Settings,
and what 'paper' and 'code' measure, are in `safe_pruner_config.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float

from safe_pruner_ros.core.correspondence import ReferenceTokens, match_tokens
from safe_pruner_ros.core.keyframe_cache import Keyframe, KeyframeCache
from safe_pruner_ros.core.pruner import KeyframeReason, StepAttention, StepContext, StepPlan
from safe_pruner_ros.core.safe_pruner_config import Requests, SafePrunerConfig, requests_of
from safe_pruner_ros.core.saliency import fuse, mean_over_layers, transfer
from safe_pruner_ros.core.selection import RetainedTokens, is_usable, select_retained
from safe_pruner_ros.core.settings import check_pruning_layer
from safe_pruner_ros.core.subtask import attention_similarity, decide_subtask

__all__ = ['SafePruner', 'SafePrunerConfig']


class SafePruner:
    """The method for a decoder of ``n_layers`` layers. One instance serves one robot."""

    def __init__(self, config: SafePrunerConfig, n_layers: int) -> None:
        check_pruning_layer(config.pruning_layer, n_layers, first=1)
        self.config = config
        self.method = type(self).__name__
        self.retention_ratio = config.retention_ratio
        self.similarity_threshold = (
            float('nan')
            if config.keyframe_interval or not config.forecast
            else config.similarity_threshold
        )
        self.pruning_layer = config.pruning_layer
        self._requests = self._requests_of(n_layers)
        self.shallow_requests = tuple(dict.fromkeys((self._requests.early, self._requests.shift)))
        self.deep_requests = tuple(dict.fromkeys(self._requests.deep))
        self._cache = KeyframeCache()
        self._keyframe_forced = False

    # -- what a method built on this one may change ---------------------------------------------

    def _requests_of(self, n_layers: int) -> Requests:
        return requests_of(self.config, n_layers)

    def _select(self, context: StepContext, saliency: Float[torch.Tensor, ' V']) -> RetainedTokens:
        config = self.config
        return select_retained(
            saliency, config.retention_ratio, context.layout, config.quota_scope
        )

    # -- decide ---------------------------------------------------------------------------------

    def plan(self, context: StepContext) -> StepPlan:
        """Key timestep, or which tokens to keep. Reads state, never writes it."""
        if not self.config.forecast:
            return self._plan_early(context)
        keyframe = self._cache.get()
        reason = self._reason_without_attention(context, keyframe)
        if keyframe is None or reason is not None:
            return self._plan_keyframe(context, reason or KeyframeReason.FIRST_STEP)
        return self._plan_with_forecast(context, keyframe)

    def _reason_without_attention(
        self, context: StepContext, keyframe: Keyframe | None
    ) -> KeyframeReason | None:
        """Whatever makes the keyframe useless before a single number is looked at."""
        if keyframe is None or context.step <= keyframe.step:  # no reset between two episodes
            return KeyframeReason.FIRST_STEP
        if self._keyframe_forced:
            return KeyframeReason.FORCED
        if context.instruction_key != keyframe.instruction_key:  # saliency answers to it
            return KeyframeReason.INSTRUCTION_CHANGED
        if context.layout.views != keyframe.views:
            return KeyframeReason.LAYOUT_CHANGED
        age = context.step - keyframe.step
        if self.config.max_keyframe_age and age > self.config.max_keyframe_age:
            return KeyframeReason.STALE
        if self.config.keyframe_interval and age >= self.config.keyframe_interval:
            return KeyframeReason.FIXED_INTERVAL
        return None

    def _plan_keyframe(self, context: StepContext, reason: KeyframeReason) -> StepPlan:
        early = context.shallow[self._requests.early]
        doubt = _doubt(*self._checks(context).tolist())
        if doubt:
            reason = KeyframeReason.SALIENCY_INVALID
        return StepPlan(retained=None, keyframe=reason, early=early, fallback=doubt)

    def _plan_early(self, context: StepContext) -> StepPlan:
        """By the early saliency alone: the ablation without forecast, which needs no keyframe."""
        early = context.shallow[self._requests.early]
        if doubt := _doubt(*self._checks(context).tolist()):
            return StepPlan(retained=None, early=early, fallback=doubt)
        return StepPlan(self._select(context, early), early=early, fused=early)

    def _plan_with_forecast(self, context: StepContext, keyframe: Keyframe) -> StepPlan:
        config, requests = self.config, self._requests
        early = context.shallow[requests.early]  # Eq. 1, 2

        matched = match_tokens(context.features, keyframe.reference, config.match_scope)
        forecasts = transfer(keyframe.saliency, matched)  # row 0: shift, then one per layer of S
        deep = mean_over_layers(forecasts[1:], config.norm)  # Eq. 4
        fused = fuse(early, deep, *config.weights, config.norm)  # Eq. 5
        similarity = attention_similarity(context.shallow[requests.shift], forecasts[0])  # Eq. 6

        # The one moment this step waits for the device: the checks and the cosine.
        decisive = torch.stack([torch.isfinite(fused).all().to(similarity), similarity])
        *passed, similarity_value = torch.cat([self._checks(context), decisive]).tolist()
        doubt = _doubt(*passed)
        subtask = decide_subtask(similarity_value, config.similarity_threshold)  # Eq. 7

        retained, reason = None, None
        if doubt:
            reason = KeyframeReason.SALIENCY_INVALID
        elif subtask.is_boundary and not config.keyframe_interval:
            reason = KeyframeReason.SUBTASK_BOUNDARY
        else:
            retained = self._select(context, fused)
        return StepPlan(
            retained=retained,
            keyframe=reason,
            attention_similarity=subtask.similarity,
            steps_since_keyframe=0 if reason else context.step - keyframe.step,
            early=early,
            forecast=deep,
            fused=fused,
            fallback=doubt,
        )

    def _checks(self, context: StepContext) -> Float[torch.Tensor, ' checks']:
        """1.0 per passed check, in the order of the arguments of `_doubt`. No host sync."""
        return torch.stack(
            [
                is_usable(context.shallow[self._requests.early]),
                is_usable(context.shallow[self._requests.shift]),
                torch.isfinite(context.features).all(),
            ]
        ).float()

    # -- remember -------------------------------------------------------------------------------

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """Store a new keyframe after a key timestep (Eq. 3, 7).

        A step in doubt stores nothing: the old keyframe, or none, is better than a wrong one,
        and the reason to renew it persists. Where only what was measured late cannot be used,
        the next step is a key timestep.
        """
        if plan.keyframe is None or plan.fallback:
            return
        remembered = (self._requests.shift, *self._requests.deep)
        missing = [request for request in remembered if request not in attention.saliency]
        if missing:
            raise ValueError(
                f'a key timestep must measure every request, {missing} not measured; '
                'run the decoder with shallow_requests and deep_requests of this pruner'
            )
        saliency = torch.stack([attention.saliency[request] for request in remembered]).float()
        if not bool(is_usable(saliency)):
            self.force_keyframe()
            return
        self._cache.put(
            Keyframe(
                reference=ReferenceTokens.of(context.features, context.layout),
                saliency=saliency,
                views=context.layout.views,
                instruction_key=context.instruction_key,
                step=context.step,
            )
        )
        self._keyframe_forced = False

    def force_keyframe(self) -> None:
        """The next step that ends well is a key timestep."""
        self._keyframe_forced = True

    # -- forget ---------------------------------------------------------------------------------

    def reset(self) -> None:
        self._cache.clear()
        self._keyframe_forced = False


def _doubt(
    early_usable: float, shift_usable: float, features_finite: float, fused_finite: float = 1.0
) -> str:
    """Why nothing may be pruned in this step; '' when there is no doubt."""
    if not early_usable or not shift_usable:
        return 'early saliency is all zero or not finite: every token kept'
    if not features_finite:
        return 'visual features are not finite: every token kept'
    if not fused_finite:
        return 'fused saliency is not finite: every token kept'
    return ''
