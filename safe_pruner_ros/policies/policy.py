"""What every policy is to the rest of the package. numpy only at this boundary, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from safe_pruner_ros.types import ActionChunk, Observation

Float32Array = npt.NDArray[np.float32]


class InstructionError(ValueError):
    """The policy cannot act on this instruction; the message says why and what it accepts."""


class PolicyOutputError(RuntimeError):
    """The network returned something that must not move a robot (NaN, wrong shape)."""


class NoActionError(PolicyOutputError):
    """The network is sound and said something, but no action. To nonsense it may."""


@dataclass(frozen=True)
class ViewSpec:
    """A camera input of the policy; images of any size are resized to ``height`` x ``width`` px.

    The view becomes ``rows`` x ``cols`` visual tokens, row-major.
    """

    name: str
    height: int
    width: int
    rows: int
    cols: int

    @property
    def n_tokens(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True)
class PolicySpec:
    """``joint_names``: order of the action and of the proprioception the policy reads.

    One chunk holds ``chunk_size`` absolute joint targets, ``period_s`` seconds apart, of which
    ``execution_horizon`` are meant to be executed before the next chunk replaces them.
    """

    name: str
    views: tuple[ViewSpec, ...]
    joint_names: tuple[str, ...]
    chunk_size: int
    period_s: float
    execution_horizon: int


class LayerTokens(NamedTuple):
    """Visual tokens that a decoder layer computed, and those that its rows could attend to."""

    computed: int
    attended: int


@dataclass(frozen=True)
class PruningTrace:
    """What pruning did in one policy step. V visual tokens over all views, K of them retained.

    ``attention_similarity`` and ``similarity_threshold`` are NaN where the method has none.
    ``keyframe_reason`` is '' on pruned steps. ``fallback`` is not '' when doubt kept all tokens.
    Saliency arrays are float32 [V] or None; ``retained_index`` is int64 [K], ascending: tokens
    that the last layer computed. ``layer_tokens``: one entry a decoder layer, () if unknown; from
    ``pruning_layer`` on they tell what was retained where a method skips more and more tokens.
    ``n_text``: tokens of the instruction.
    """

    method: str
    retention_ratio: float
    n_visual: int
    retained_index: npt.NDArray[np.int64]
    is_key_timestep: bool
    keyframe_reason: str
    attention_similarity: float
    similarity_threshold: float
    steps_since_keyframe: int
    fallback: str = ''
    early: Float32Array | None = None
    forecast: Float32Array | None = None
    fused: Float32Array | None = None
    pruning_layer: int = 0
    layer_tokens: tuple[LayerTokens, ...] = ()
    n_text: int = 0

    @property
    def n_retained(self) -> int:
        """Tokens computed from the pruning layer on: a mean over its layers, rounded."""
        deep = self.layer_tokens[self.pruning_layer :]
        if not deep:
            return len(self.retained_index)
        return round(sum(tokens.computed for tokens in deep) / len(deep))

    @property
    def pruning_ratio(self) -> float:
        """1 - K/V of this step."""
        return 1.0 - self.n_retained / self.n_visual


@dataclass(frozen=True)
class PolicyOutput:
    """``latency_ms``: wall time by stage; keys preprocess, vision, shallow, scoring, deep, head,
    observe, total (scoring = saliency + matching + selection; observe = what the method remembers,
    a memory's own matching included; not in `Policy.predict_unpruned`)."""

    chunk: ActionChunk
    trace: PruningTrace
    latency_ms: Mapping[str, float]


class Policy(Protocol):
    spec: PolicySpec

    def check_instruction(self, instruction: str) -> None:
        """Raise InstructionError when the policy cannot act on ``instruction``."""

    def predict(self, observation: Observation) -> PolicyOutput:
        """One policy step. Raises InstructionError, PolicyOutputError, or ValueError naming the
        missing view or joint; a failed step leaves no trace in the pruner's state."""

    def predict_unpruned(self, observation: Observation) -> PolicyOutput:
        """The latest policy step over again with every token (and, where actions are drawn at
        random, with the same noise). Leaves no trace: the next `predict` is as without it."""

    def force_keyframe(self) -> None:
        """Run the next step unpruned, under a method that remembers steps."""

    def with_pruner(self, method: str, settings: Mapping[str, Any] | None = None) -> Policy:
        """Another policy on the same weights, which are in memory once, under a fresh pruner."""

    def update_pruner(self, **changes: Any) -> None:
        """Change settings of the pruning method from the next step on, which is unpruned under a
        method that remembers steps; ValueError if refused."""

    def forget_plans(self) -> None:
        """What was predicted so far is not executed any more: the next chunk must not continue it.
        Pruner and step count go on. Nothing to do for a policy whose chunks stand alone."""

    def reset(self) -> None:
        """Start of an episode: forget everything about earlier observations."""
