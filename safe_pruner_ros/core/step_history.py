"""What the last policy steps of an episode left behind, for methods that look back."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Float

from safe_pruner_ros.core.pruner import StepContext
from safe_pruner_ros.core.tokens import ViewGrid


@dataclass(frozen=True)
class PastStep:
    """One earlier policy step. ``saliency`` [V]; a token that had left then reads 0. ``shown``:
    `StepContext.shown` of a history that keeps pictures, else None."""

    step: int
    saliency: Float[torch.Tensor, ' V']
    shown: Float[torch.Tensor, 'V P'] | None


class StepHistory:
    """The last ``length`` steps that belong together: same views, same instruction.

    ``keep_pictures``: [V, P] float32 a step more, for methods that compare what was shown.
    """

    def __init__(self, length: int, keep_pictures: bool) -> None:
        self._steps: deque[PastStep] = deque(maxlen=length)
        self._keep_pictures = keep_pictures
        self._belongs_to: Hashable = None

    def before(self, context: StepContext) -> list[PastStep]:
        """Most recent first. Empty when the instruction or the views changed, or when time went
        backwards (an episode that began without a reset)."""
        if self._belongs_to != _key(context.layout.views, context.instruction_key):
            return []
        if self._steps and self._steps[0].step >= context.step:
            return []
        return list(self._steps)

    def put(self, context: StepContext, saliency: Float[torch.Tensor, ' V']) -> None:
        """Remember this step; steps that do not belong to it are forgotten."""
        if not self.before(context):
            self.clear()
        self._belongs_to = _key(context.layout.views, context.instruction_key)
        shown = context.shown if self._keep_pictures else None
        self._steps.appendleft(PastStep(context.step, saliency, shown))

    def clear(self) -> None:
        self._steps.clear()
        self._belongs_to = None


def _key(views: tuple[ViewGrid, ...], instruction_key: Hashable) -> Hashable:
    return views, instruction_key
