"""What a running policy's method spent on choosing tokens, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.evaluation.flops.scoring import METHODS, scoring
from safe_pruner_ros.evaluation.flops.shapes import Model, Tokens, embedded
from safe_pruner_ros.evaluation.flops.work import Stack, macs
from safe_pruner_ros.evaluation.macs import MacsOfStep, decoder_shape
from safe_pruner_ros.policies.policy import Policy, PruningTrace


def counted_model(policy: Policy) -> Model | None:
    """What `scoring` reads of the embedded policy: its decoder and the token counts of its own
    layout with the longest instruction. None for another policy."""
    if decoder_shape(policy) is None:
        return None
    network: Any = policy
    config, layout = network.model.config, network.model.layout
    heads, head_dim = config.n_heads, config.width // config.n_heads
    n_layers = len(network.model.layers)
    tokens = Tokens(
        visual=layout.n_visual,
        other=layout.length - layout.n_visual,
        text=len(layout.text),
        action=len(layout.action),
        prompt=layout.action.start,
        views=len(layout.views),
    )
    decoder = Stack(n_layers, config.width, config.mlp_width, heads, heads, head_dim)
    return replace(embedded(), tokens=tokens, decoder=decoder)


def scoring_counter(policy: Policy, method: str, settings: dict[str, Any]) -> MacsOfStep | None:
    """PruningTrace of a step -> MACs of its saliency, matching and selection; None where the
    policy's shape is unknown or nobody has counted the method."""
    model = counted_model(policy)
    if model is None or method not in METHODS:
        return None
    pruner = build_pruner(method, model.decoder.n_layers, **settings)

    def scoring_macs(trace: PruningTrace) -> float:
        asked = replace(model, tokens=replace(model.tokens, text=trace.n_text))
        return float(
            macs(
                scoring(
                    asked,
                    method,
                    pruner,
                    # A step that kept every token in doubt measures what a key timestep does.
                    is_key=trace.is_key_timestep or bool(trace.fallback),
                    is_matched=trace.forecast is not None,
                    computed=[tokens.computed for tokens in trace.layer_tokens],
                )
            )
        )

    return scoring_macs
