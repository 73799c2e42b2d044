"""The seam between pruning methods and policies. A pruner ranks; it never touches a model.

One policy step, as `policies/pruned_decoder.py` drives it:

1. layers below ``pruning_layer`` run on all tokens; the saliency that the pruner asked for in
   ``shallow_requests`` is measured there;
2. ``plan(context)`` answers: run the rest in full (a key timestep), or keep these tokens;
3. when the step runs in full, the saliency of ``deep_requests`` is measured too; they may name
   any layer, also one below ``pruning_layer``, and cost nothing on pruned steps, except those
   marked ``on_pruned_steps``: they are measured then too, on the tokens that are left;
4. ``observe(context, plan, attention)`` hands the measurements back.

``plan`` changes no state, only ``observe`` does: a step that fails between the two never was.
``reset()`` is called at the start of every episode.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from jaxtyping import Float, Int64, Num

from safe_pruner_ros.core.selection import RetainedTokens
from safe_pruner_ros.core.tokens import QueryGroup, TokenLayout


class KeyframeReason(Enum):
    """Why a policy step ran unpruned and became a keyframe (if in doubt: ran unpruned only)."""

    FIRST_STEP = 'first step'
    WARM_UP = 'warm-up'
    SUBTASK_BOUNDARY = 'subtask boundary'
    INSTRUCTION_CHANGED = 'instruction changed'
    LAYOUT_CHANGED = 'layout changed'
    STALE = 'stale'
    FIXED_INTERVAL = 'fixed interval'
    FORCED = 'forced'
    SALIENCY_INVALID = 'saliency invalid'


@dataclass(frozen=True)
class SaliencyRequest:
    """Saliency of the visual tokens at the attention of 0-based decoder ``layer``, averaged over
    heads and over the query rows of ``queries`` (SAFE-Pruner Eq. 1 and 2).

    ``per_query`` averages over heads only: [rows, V], one row per query token.
    ``on_pruned_steps`` (of ``deep_requests``): measure on pruned steps too; a token that has left
    reads 0. It says when, not what: requests that differ in it alone are the same request.
    """

    layer: int
    queries: QueryGroup
    per_query: bool = False
    on_pruned_steps: bool = field(default=False, compare=False)


Saliency = Mapping[SaliencyRequest, Float[torch.Tensor, '*rows V']]


@dataclass(frozen=True)
class StepContext:
    """What a pruner sees of one policy step before it decides.

    ``features`` [V, D]: projector outputs, i.e. visual tokens as they enter the decoder, float32.
    ``shallow``: answers to ``shallow_requests``. ``step`` counts policy steps of the episode.
    ``instruction_key`` changes when the instruction does.
    ``embeddings`` [S, D'], the whole decoder input, for methods that compare text with image
    before any layer has run; None where nobody gave it. ``patches`` [V, P]: the RGB pixels that
    each visual token shows, for methods that compare pictures; None where nobody gave them.
    """

    features: Float[torch.Tensor, 'V D']
    layout: TokenLayout
    shallow: Saliency
    instruction_key: Hashable
    step: int
    embeddings: Float[torch.Tensor, 'S E'] | None = None
    patches: Num[torch.Tensor, 'V P'] | None = None

    @property
    def shown(self) -> Float[torch.Tensor, 'V P']:
        """What to compare with another step's picture, place by place, float32: ``patches``, or
        the visual features of a policy that gives none."""
        return self.features if self.patches is None else self.patches.float()


@dataclass(frozen=True)
class KeyValueReuse:
    """Tokens that are skipped, not dropped: the layers from ``pruning_layer`` on do not compute
    them, but their keys and values of an earlier step stay visible to everybody.

    ``record``: `StepAttention.record` of that step, opaque to pruners; None: nothing to reuse, but
    record this step. ``order`` int64 [V]: all visual indices, those to skip first in front.
    ``counts``: layer ``pruning_layer`` + i skips ``order[:counts[i]]``. They never decrease: a
    token that one layer has skipped has no input for the next. ``measure_entropy``: fill
    `StepAttention.entropy` in this step.
    """

    record: object | None
    order: Int64[torch.Tensor, ' V']
    counts: tuple[int, ...]
    measure_entropy: bool = True


@dataclass(frozen=True)
class StepPlan:
    """A pruner's answer. ``retained`` None means: run this step in full.

    ``reuse`` not None: tokens that are not retained are skipped, not dropped. ``retained`` are
    then those that even the last layer computes.

    ``fallback`` is not empty when doubt (NaN saliency, ...) made the pruner keep every token.
    The saliency terms are what the decision was made from, for reports and overlays.
    """

    retained: RetainedTokens | None
    keyframe: KeyframeReason | None = None
    attention_similarity: float = float('nan')
    steps_since_keyframe: int = 0
    early: Float[torch.Tensor, ' V'] | None = None
    forecast: Float[torch.Tensor, ' V'] | None = None
    fused: Float[torch.Tensor, ' V'] | None = None
    fallback: str = ''
    reuse: KeyValueReuse | None = None


@dataclass(frozen=True)
class StepAttention:
    """What was measured in a step: the shallow saliency, and on full steps the deep one too (on
    pruned steps only what was marked ``on_pruned_steps``).

    Only where the plan had a ``reuse``: ``record``, the keys and values of this step, and, if
    asked for, ``entropy`` [L] of each layer's attention (heads averaged, mean over computed rows).
    """

    saliency: Saliency = field(default_factory=dict)
    entropy: Float[torch.Tensor, ' L'] | None = None
    record: object | None = None


class Pruner(Protocol):
    """A pruning method. ``retention_ratio`` = K / V in (0, 1].

    ``method`` is its name in `core/catalog.py`. ``pruning_layer`` is 0-based: the input of this
    decoder layer is already pruned. ``similarity_threshold`` is NaN where the method has none.
    """

    method: str
    retention_ratio: float
    similarity_threshold: float
    pruning_layer: int
    shallow_requests: tuple[SaliencyRequest, ...]
    deep_requests: tuple[SaliencyRequest, ...]

    def plan(self, context: StepContext) -> StepPlan:
        """Keep which visual tokens in this step? Waits for the device at most once."""

    def observe(self, context: StepContext, plan: StepPlan, attention: StepAttention) -> None:
        """Learn from a step that ended well."""

    def force_keyframe(self) -> None:
        """Make the next step a key timestep (methods that remember no steps ignore it)."""

    def reset(self) -> None:
        """Start of an episode: forget everything about earlier steps."""
