"""VLA-Cache (Xu et al., NeurIPS 2025, arXiv 2502.02175): do not compute again what stands still.

Not pruning: a token is skipped, and its keys and values of the step before stay visible to all
rows, the action rows among them. Every layer attends to all tokens.

Static:   cosine of a token's image patch (`StepContext.shown`) with the same place one step ago
          >= 0.996; of those the V - K with the highest.
Relevant: the highest attention of the text rows, mean over heads, in the step before; never
          skipped, however still they are: static minus relevant may be skipped, and no token
          moves up for one that is both.
Schedule: layer l skips a share alpha^l of the tokens that may be skipped. With E^l
          the entropy of layer l's attention in the step before, R^l = (E^{l-1} - E^l) / E^{l-1}
          and alpha^l = min(k sum_{j<=l} R^j, 1) in the paper (``schedule='paper'``).
Retained: what is computed. ``retention_ratio`` is a floor: K tokens if the V - K most static hold
no relevant one and every layer skips all it may, more if not: of 256 as published, K = 106 and 100
relevant, in a picture where nothing moves some 165. A share is skipped from the most static on,
among equals from the least relevant. A reported number is the mean over the layers that may skip.
Layer: skipping starts at ``pruning_layer``, 2 by default. Queries: text rows. The first step, and
one whose instruction or views changed, runs in full.
Kept between steps: keys and values of the visual tokens in every layer that may skip (by far the
most memory of all methods), their patches, one vector. A token skipped twice keeps what is two
steps old, and so on, as published.
Cost: text rows of one deep attention map, V P for the cosines, and the whole attention map of
every layer for its entropy (n S, the dearest term; ``schedule='uniform'`` needs none of it).

Differs from the paper: relevant are the top ``relevant_share`` (the released code's 100 of 256),
at most K, not those above a threshold that changes with the model; alpha never decreases, as a
skipped token cannot come back in a later layer. A share below ``pruning_layer``, where nothing is
skipped, binds no layer above it. We know no published value of k, so the default is
``schedule='code'``, that of the release (siyuhsu/vla-cache a490988, siyuhsu/transformers 2302fce)
from which the published numbers come: 1 - minmax(E), rises damped by 0.55, looked at in layers 2,
6, 9 and 11 of 32 only, scaled to other depths and none below the cut, as there, where layer 2 is
the cut (2, 3 and 4 of 12). The release skips partial shares in index order, so the top rows of the
first camera, and counts the operations of its attention with too few keys; here neither happens.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int64

from safe_pruner_ros.core.patch_similarity import patch_similarity
from safe_pruner_ros.core.pruner import (
    KeyframeReason,
    KeyValueReuse,
    SaliencyRequest,
    StepAttention,
    StepContext,
    StepPlan,
)
from safe_pruner_ros.core.score_pruner import ScorePrunerConfig
from safe_pruner_ros.core.selection import (
    QuotaScope,
    RetainedTokens,
    is_usable,
    quota_groups,
    ranks,
)
from safe_pruner_ros.core.settings import (
    check_choice,
    check_pruning_layer,
    check_range,
    check_unused,
    resolve_layers,
)
from safe_pruner_ros.core.tokens import TokenLayout, ViewGrid

Schedule = Literal['paper', 'code', 'uniform']
CODE_LAYERS, CODE_DEPTH, CODE_DAMPING = (2, 6, 9, 11), 32, 0.55
NOT_FINITE = 'visual features are not finite: every token kept'


@dataclass(frozen=True)
class VLACacheConfig(ScorePrunerConfig):
    """``static_threshold`` meets the cosine of image patches, ``relevant_share`` of the tokens is
    never skipped, ``schedule_gain`` k of the schedule 'paper'; 'uniform' skips the same tokens in
    all layers. ``deep_layers`` where relevance is read, None: layer 15 of 32.

    ``retention_ratio``: published are the 150 most static of 256 tokens, i.e. 0.41; what is
    relevant among them is computed all the same.
    """

    retention_ratio: float = 0.41
    pruning_layer: int = 2
    quota_scope: QuotaScope = 'per_view'
    static_threshold: float = 0.996
    relevant_share: float = 100 / 256
    schedule: Schedule = 'code'
    schedule_gain: float = 1.0
    deep_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range('static_threshold', self.static_threshold, -1, 1, 'it meets a cosine')
        check_range('relevant_share', self.relevant_share, 0, 1, 'published: 0.39')
        check_choice('schedule', self.schedule, ('paper', 'code', 'uniform'))
        check_range('schedule_gain', self.schedule_gain, 0, math.inf, 'k of the paper')
        if self.schedule != 'paper':
            why = f'in schedule {self.schedule!r}'
            check_unused('schedule_gain', self.schedule_gain, VLACacheConfig.schedule_gain, why)


@dataclass(frozen=True)
class _LastStep:
    """What the step before left behind. ``shown`` [V, P]: its patches; ``shares`` [L]: alpha."""

    step: int
    views: tuple[ViewGrid, ...]
    instruction_key: Hashable
    shown: Float[torch.Tensor, 'V P']
    relevance: Float[torch.Tensor, ' V']
    shares: tuple[float, ...]
    record: object


class VLACache:
    """Reuses keys and values of the step before; see the module docstring."""

    def __init__(self, config: VLACacheConfig, n_layers: int) -> None:
        check_pruning_layer(config.pruning_layer, n_layers, first=0)
        self.config = config
        self.method = type(self).__name__
        self.retention_ratio = config.retention_ratio
        self.similarity_threshold = float('nan')
        self.pruning_layer = config.pruning_layer
        self.shallow_requests: tuple[SaliencyRequest, ...] = ()
        layers = resolve_layers(config.deep_layers, n_layers, (round(n_layers * 15 / 32),))
        self.deep_requests = tuple(
            SaliencyRequest(layer, 'text', on_pruned_steps=True) for layer in layers
        )
        self._n_layers = n_layers
        self._last: _LastStep | None = None
        self._keyframe_forced = False

    def plan(self, context: StepContext) -> StepPlan:
        features, last = context.features, self._last
        reason = self._reason_to_start_anew(context, last)
        measure_entropy = self.config.schedule != 'uniform'
        if last is None or reason is not None:
            if not bool(torch.isfinite(features).all()):
                return StepPlan(retained=None, keyframe=reason, fallback=NOT_FINITE)
            order = torch.arange(context.layout.n_visual, device=features.device)
            counts = (0,) * (self._n_layers - self.pruning_layer)
            reuse = KeyValueReuse(None, order, counts, measure_entropy)
            return StepPlan(retained=None, keyframe=reason, reuse=reuse)

        similarity = patch_similarity(context.shown, last.shown)
        order, n_skipped = skipping_order(similarity, last.relevance, context.layout, self.config)
        is_finite = torch.isfinite(features).all() & torch.isfinite(similarity).all()
        usable, count = torch.stack([is_finite.to(n_skipped), n_skipped]).tolist()
        if not usable:
            return StepPlan(retained=None, fallback=NOT_FINITE)
        counts = tuple(int(share * count) for share in last.shares[self.pruning_layer :])
        return StepPlan(
            retained=RetainedTokens(order[counts[-1] :].sort().values),
            forecast=last.relevance,
            reuse=KeyValueReuse(last.record, order, counts, measure_entropy),
        )

    def _reason_to_start_anew(
        self, context: StepContext, last: _LastStep | None
    ) -> KeyframeReason | None:
        if last is None or context.step <= last.step:  # no reset between two episodes
            return KeyframeReason.FIRST_STEP
        if self._keyframe_forced:
            return KeyframeReason.FORCED
        if context.instruction_key != last.instruction_key:  # deeper layers have read it
            return KeyframeReason.INSTRUCTION_CHANGED
        if context.layout.views != last.views:
            return KeyframeReason.LAYOUT_CHANGED
        return None

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """Remember this step; one in doubt leaves nothing behind."""
        if plan.reuse is None or plan.fallback:
            return
        if attention.record is None or (plan.reuse.measure_entropy and attention.entropy is None):
            raise ValueError(
                'VLA-Cache needs the record and the entropy of a step whose plan has a reuse; '
                'run the decoder through policies/pruned_decoder.py'
            )
        measured = torch.stack([attention.saliency[request] for request in self.deep_requests])
        relevance = measured.float().mean(dim=0)
        usable = is_usable(relevance)
        shares = [1.0] * self._n_layers
        if attention.entropy is not None:
            usable = usable & torch.isfinite(attention.entropy).all()
        if not bool(usable):
            self._last = None
            return
        if attention.entropy is not None:
            shares = skipped_shares(attention.entropy.tolist(), self.config)
        self._last = _LastStep(
            context.step,
            context.layout.views,
            context.instruction_key,
            context.shown,
            relevance,
            tuple(shares),
            attention.record,
        )
        self._keyframe_forced = False

    def force_keyframe(self) -> None:
        """The next step that ends well computes every token."""
        self._keyframe_forced = True

    def reset(self) -> None:
        self._last = None
        self._keyframe_forced = False


def skipping_order(
    similarity: Float[torch.Tensor, ' V'],
    relevance: Float[torch.Tensor, ' V'],
    layout: TokenLayout,
    config: VLACacheConfig,
) -> tuple[Int64[torch.Tensor, ' V'], Int64[torch.Tensor, '']]:
    """All visual indices, those that may be skipped in front, and how many these are."""
    may_skip = torch.zeros_like(similarity, dtype=torch.bool)
    for group, quota in quota_groups(layout, config.retention_ratio, config.quota_scope):
        size = group.stop - group.start
        n_relevant = min(round(size * config.relevant_share), quota)
        # Equally static: the lower index, as published. Relevance must not break this tie: in a
        # still picture all tokens are equal, and the relevant ones would then cost nothing.
        is_static = ranks(similarity[group]) < size - quota
        is_static &= similarity[group] >= config.static_threshold
        may_skip[group] = is_static & (ranks(relevance[group]) >= n_relevant)
    return _by_staticness(similarity, relevance, may_skip), may_skip.sum()


def _by_staticness(
    similarity: torch.Tensor, relevance: torch.Tensor, first: torch.Tensor
) -> torch.Tensor:
    """Indices: those of ``first``, then the rest; the most static, then the least relevant."""
    order = torch.sort(relevance, stable=True).indices
    order = order[torch.sort(similarity[order], descending=True, stable=True).indices]
    return order[torch.sort(first[order].int(), descending=True, stable=True).indices]


def skipped_shares(entropy: Sequence[float], config: VLACacheConfig) -> list[float]:
    """alpha of every layer, in [0, 1] and never decreasing, from finite ``entropy`` [L]. Schedules
    that read it begin at ``pruning_layer``: 0 below."""
    if config.schedule == 'uniform':
        return [1.0] * len(entropy)
    if config.schedule == 'paper':
        total, shares = 0.0, [0.0]
        for before, here in pairwise(entropy):
            total += (before - here) / before if before > 0 else 0.0
            shares.append(min(max(config.schedule_gain * total, 0.0), 1.0))
        return _never_decreasing(shares, config.pruning_layer)
    low, high = min(entropy), max(entropy)
    raw = [1 - (value - low) / (high - low) if high > low else 0.0 for value in entropy]
    for layer in range(1, len(raw)):
        raw[layer] = raw[layer - 1] + _damped(raw[layer] - raw[layer - 1])
    scaled = (round(layer * len(raw) / CODE_DEPTH) for layer in CODE_LAYERS)
    looked_at = {max(layer, config.pruning_layer) for layer in scaled}
    shares = [share if layer in looked_at else 0.0 for layer, share in enumerate(raw)]
    return _never_decreasing(shares, config.pruning_layer)


def _never_decreasing(shares: Sequence[float], first: int) -> list[float]:
    return list(accumulate([0.0] * first + list(shares[first:]), max))


def _damped(rise: float) -> float:
    return CODE_DAMPING * rise if rise > 0 else rise
