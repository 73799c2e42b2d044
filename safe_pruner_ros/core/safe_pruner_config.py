"""Settings of SAFE-Pruner, and which attention its two published variants read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from safe_pruner_ros.core.correspondence import MatchScope
from safe_pruner_ros.core.pruner import SaliencyRequest
from safe_pruner_ros.core.saliency import Norm
from safe_pruner_ros.core.selection import QuotaScope
from safe_pruner_ros.core.settings import (
    check_choice,
    check_range,
    check_retention_ratio,
    check_unused,
    resolve_layers,
)

Variant = Literal['paper', 'code']


@dataclass(frozen=True)
class SafePrunerConfig:
    """Settings of the method.

    Parameters
    ----------
    retention_ratio : K / V in (0, 1].
    pruning_layer : 0-based; the input of this decoder layer is already pruned. The paper's
        "third layer" measures the early saliency, i.e. pruning starts at index 3.
    similarity_threshold : tau of Eq. 7, in [0, 1]. 0.92 in the released OpenVLA-OFT run.
    alpha : weight of the early saliency in Eq. 5, in [0, 1] (variant 'paper').
    deep_weight : weight of the forecast next to 1 * early (variant 'code'); their lambda.
    variant : 'paper' follows the text, 'code' the authors' release (see `requests_of`).
    deep_layers : S of Eq. 4, negative counts from the end; None takes the variant's own.
    norm : brings layers to one scale before Eq. 4 and 5; 'none' as published.
    match_scope : match tokens over all views ('joint', published) or within each.
    quota_scope : rank tokens over all views ('joint', published) or within each.
    max_keyframe_age : a keyframe older than this many policy steps is renewed; 0 or None = never.
    keyframe_interval : ablation "w/o division": every so many policy steps is a key timestep and
        Eq. 7 is off, ``similarity_threshold`` unused; 0 or None = Eq. 7 decides.
    forecast : False is the ablation "w/o forecast": the early saliency alone decides, so nothing
        is remembered, no step is a key timestep, and the settings of weights, forecast and
        keyframes are unused. That is FastV with action rows; in the paper its cost equals FastV's
        to the digit.

    A configured method is switched to an ablation as it is; any other setting that can have no
    effect is refused.
    """

    retention_ratio: float = 0.3
    pruning_layer: int = 3
    similarity_threshold: float = 0.92
    alpha: float = 0.5
    deep_weight: float = 1.0
    variant: Variant = 'paper'
    deep_layers: tuple[int, ...] | None = None
    norm: Norm = 'none'
    match_scope: MatchScope = 'joint'
    quota_scope: QuotaScope = 'joint'
    max_keyframe_age: int | None = None
    keyframe_interval: int | None = None
    forecast: bool = True

    def __post_init__(self) -> None:
        check_retention_ratio(self.retention_ratio)
        check_range('similarity_threshold', self.similarity_threshold, 0, 1, 'it meets a cosine')
        check_range('alpha', self.alpha, 0, 1, '0.5 weighs early and forecast alike')
        for name in ('deep_weight', 'max_keyframe_age', 'keyframe_interval'):
            check_range(name, getattr(self, name) or 0, 0, math.inf, 'use 0 to switch it off')
        check_choice('variant', self.variant, ('paper', 'code'))
        if self.variant == 'code':
            why = "in variant 'code', which weighs by deep_weight"
            check_unused('alpha', self.alpha, SafePrunerConfig.alpha, why)
        else:
            why = "in variant 'paper', which weighs by alpha"
            check_unused('deep_weight', self.deep_weight, SafePrunerConfig.deep_weight, why)
        check_choice('norm', self.norm, ('none', 'l1', 'minmax', 'zscore'))
        check_choice('match_scope', self.match_scope, ('joint', 'per_view'))
        check_choice('quota_scope', self.quota_scope, ('joint', 'per_view'))
        check_choice('forecast', self.forecast, (True, False))
        if self.deep_layers is not None and not self.deep_layers:
            raise ValueError(
                'deep_layers must name at least one layer, got (); use None for the '
                "variant's own, or forecast=False to prune without them"
            )

    @property
    def weights(self) -> tuple[float, float]:
        """(early, deep) of Eq. 5. With equal weights both variants rank alike."""
        if self.variant == 'paper':
            return self.alpha, 1 - self.alpha
        return 1.0, self.deep_weight


@dataclass(frozen=True)
class Requests:
    """What the method measures: ``early`` for Eq. 5, ``shift`` for Eq. 6, ``deep`` for Eq. 4."""

    early: SaliencyRequest
    shift: SaliencyRequest
    deep: tuple[SaliencyRequest, ...]


def requests_of(config: SafePrunerConfig, n_layers: int) -> Requests:
    """Layers and query rows of the two variants. Raises ValueError for a layer that is not."""
    early = SaliencyRequest(config.pruning_layer - 1, 'action')
    published = (0, -2, -1) if config.variant == 'paper' else (0, -1)
    layers = resolve_layers(config.deep_layers, n_layers, published)
    if not config.forecast:
        return Requests(early, early, ())
    if config.variant == 'paper':
        # The early saliency also tells the shift, and S = {first, final two}.
        return Requests(early, early, tuple(SaliencyRequest(k, 'action') for k in layers))
    # The authors look for the shift at layer 0 with the last token as query: in OpenVLA-OFT the
    # action rows enter layer 0 as zeros, attend uniformly and tell no subtask from another.
    # Their layer-0 entry of S is that same row.
    shift = SaliencyRequest(0, 'last')
    deep = tuple(shift if k == 0 else SaliencyRequest(k, 'action') for k in layers)
    return Requests(early, shift, deep)
