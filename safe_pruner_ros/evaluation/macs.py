"""Multiply-accumulates of the decoder, counted, not measured.

Scope: the decoder layers only. Vision tower, projector and action head are left out because they
cost the same whatever is pruned. What choosing the tokens costs differs by method, from nothing
(random) to a fifth of the decoder (VLA-Cache); it is counted apart, by `flops/policy_scoring.py`.

Per layer and n tokens (FastV, arXiv 2403.06764, Eq. 5): 4 n d^2 (projections) + 2 n^2 d
(attention) + 3 n d m (gated MLP), d the width and m the MLP's. A layer that computes n rows
against the keys of s > n tokens (VLA-Cache) costs 2 n s d of attention; published counts of that
method take n^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.policies.policy import LayerTokens, Policy, PruningTrace

MacsOfStep = Callable[[PruningTrace], float]


@dataclass(frozen=True)
class DecoderShape:
    """``n_tokens``: sequence length of an unpruned step, visual tokens included; a mean over
    prompts need not be whole."""

    n_layers: int
    n_tokens: float
    width: int
    mlp_width: int

    def layer_macs(self, n_tokens: int, n_attended: int | None = None) -> int:
        """MACs of one layer that computes ``n_tokens`` tokens; they attend to ``n_attended``,
        None: to each other."""
        n_attended = n_tokens if n_attended is None else n_attended
        attention = 4 * n_tokens * self.width**2 + 2 * n_tokens * n_attended * self.width
        return attention + 3 * n_tokens * self.width * self.mlp_width

    def step_macs(self, pruning_layer: int, n_pruned: float) -> float:
        """MACs of a step whose layers from ``pruning_layer`` on miss ``n_pruned`` tokens."""
        shallow = pruning_layer * self.layer_macs(self.n_tokens)
        deep = self.n_layers - pruning_layer
        return shallow + deep * self.layer_macs(self.n_tokens - n_pruned)

    def trace_macs(self, layer_tokens: Sequence[LayerTokens], n_visual: int) -> int:
        """MACs of a step whose layers saw ``layer_tokens`` of ``n_visual`` visual tokens."""
        others = self.n_tokens - n_visual
        return sum(
            self.layer_macs(others + tokens.computed, others + tokens.attended)
            for tokens in layer_tokens
        )


def decoder_shape(policy: Policy) -> DecoderShape | None:
    """The decoder of a policy whose ``model`` is shaped like the embedded one, else None."""
    model: Any = getattr(policy, 'model', None)
    try:
        return DecoderShape(
            len(model.layers), model.layout.length, model.config.width, model.config.mlp_width
        )
    except AttributeError:
        return None


def macs_counter(policy: Policy, method: str, settings: dict[str, Any]) -> MacsOfStep | None:
    """PruningTrace of a step -> its decoder MACs; None where the decoder's shape is unknown."""
    shape = decoder_shape(policy)
    if shape is None:
        return None
    pruning_layer = build_pruner(method, shape.n_layers, **settings).pruning_layer

    def macs(trace: PruningTrace) -> float:
        if trace.layer_tokens:
            return float(shape.trace_macs(trace.layer_tokens, trace.n_visual))
        return float(shape.step_macs(pruning_layer, trace.n_visual - trace.n_retained))

    return macs
