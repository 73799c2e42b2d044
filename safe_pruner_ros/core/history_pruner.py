"""A `ScorePruner` that looks back: what rows of deep layers saw in the last policy steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch

from safe_pruner_ros.core.pruner import (
    KeyframeReason,
    SaliencyRequest,
    StepAttention,
    StepContext,
    StepPlan,
)
from safe_pruner_ros.core.score_pruner import UNUSABLE, ScorePruner, ScorePrunerConfig
from safe_pruner_ros.core.selection import is_usable
from safe_pruner_ros.core.step_history import PastStep, StepHistory
from safe_pruner_ros.core.tokens import QueryGroup


class HistoryPruner(ScorePruner, ABC):
    """Remembers of each of the last ``length`` steps the saliency that the ``queries`` rows give
    in ``layers``, their mean; measured on pruned steps, too. ``keeps_pictures``: what the steps
    showed as well."""

    first_pruning_layer = 1
    keeps_pictures = False

    def __init__(
        self,
        config: ScorePrunerConfig,
        n_layers: int,
        queries: QueryGroup,
        layers: Iterable[int],
        length: int,
    ) -> None:
        super().__init__(config, n_layers)
        self.deep_requests = tuple(
            SaliencyRequest(layer, queries, on_pruned_steps=True) for layer in layers
        )
        self._history = StepHistory(length, self.keeps_pictures)
        self._keyframe_forced = False

    @abstractmethod
    def why_in_full(self, past: list[PastStep]) -> KeyframeReason | None:
        """Why a step that remembers ``past``, most recent first, runs in full; None: no reason."""

    def can_be_judged(self, context: StepContext) -> torch.Tensor:
        """0-d bool tensor: the measured saliency is usable, and the features are finite.

        Asked on full steps, where `saliency` is not; extend it if `saliency` reads anything else.
        """
        checks = [is_usable(context.shallow[request].float()) for request in self.shallow_requests]
        return torch.stack([torch.isfinite(context.features).all(), *checks]).all()

    def plan(self, context: StepContext) -> StepPlan:
        reason = self.why_in_full(self._history.before(context))
        if reason is None and self._keyframe_forced:
            reason = KeyframeReason.FORCED
        if reason is None:
            return super().plan(context)
        # To choose is the dear part. Doubt is looked for all the same: it must not be remembered.
        if not bool(self.can_be_judged(context)):
            return StepPlan(retained=None, fallback=UNUSABLE)
        return StepPlan(retained=None, keyframe=reason)

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """Remember what the rows looked at. A step in doubt leaves nothing behind; what cannot be
        used is a gap in the memory, so that the next step runs in full."""
        if plan.fallback:
            return
        measured = torch.stack([attention.saliency[request] for request in self.deep_requests])
        saliency = measured.float().mean(dim=0)
        if not bool(is_usable(saliency)):
            self.force_keyframe()
            return
        self._history.put(context, saliency)
        if plan.retained is None:
            self._keyframe_forced = False

    def force_keyframe(self) -> None:
        """The next step that ends well runs in full."""
        self._keyframe_forced = True

    def reset(self) -> None:
        self._history.clear()
        self._keyframe_forced = False
