"""A policy step of a model under a method, in operations by stage."""

from __future__ import annotations

from collections.abc import Mapping

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.pruner import Pruner
from safe_pruner_ros.core.selection import n_retained
from safe_pruner_ros.evaluation.flops.scoring import REUSING, has_keyframes, scoring, settings_of
from safe_pruner_ros.evaluation.flops.shapes import Model
from safe_pruner_ros.evaluation.flops.work import Operations, macs
from safe_pruner_ros.policies.catalog import CAUSAL

STAGES = ('vision', 'projector', 'shallow', 'scoring', 'deep', 'head')


def make_pruner(model: Model, method: str, retention_ratio: float) -> Pruner:
    settings = settings_of(method, retention_ratio)
    return build_pruner(method, model.decoder.n_layers, causal=model.name in CAUSAL, **settings)


def step_stages(
    model: Model,
    method: str,
    retention_ratio: float,
    *,
    is_key: bool,
    pruner: Pruner | None = None,
) -> dict[str, Operations]:
    """Operations by stage of one policy step, key timestep or pruned one.

    ``pruner``: with other settings than the published ones; of the same method and ratio.
    """
    pruner = pruner or make_pruner(model, method, retention_ratio)
    tokens, cut, n_layers = model.tokens, pruner.pruning_layer, model.decoder.n_layers
    short = tokens.length
    if not is_key and method != 'unpruned':
        short -= tokens.visual - n_retained(tokens.visual, retention_ratio)
    seen = [tokens.length] * cut + [short] * (n_layers - cut)
    # VLA-Cache: as if all that may be skipped stood still, and every layer skipped all of it.
    attended = [tokens.length] * n_layers if method in REUSING else seen
    layers = [model.decoder.layer(*pair) for pair in zip(seen, attended, strict=True)]
    if model.last_layer_stores_keys:
        layers[-1] = model.decoder.keys_and_values(seen[-1])
    return {
        'vision': model.vision,
        'projector': model.projector,
        'shallow': [work for layer in layers[:cut] for work in layer],
        'scoring': scoring(model, method, pruner, is_key=is_key),
        'deep': [work for layer in layers[cut:] for work in layer],
        'head': model.head(attended),
    }


def mixed_macs(
    model: Model, method: str, retention_ratio: float, keyframe_share: float
) -> dict[str, float]:
    """Mean MACs by stage when ``keyframe_share`` of the steps are key timesteps; methods without
    key timesteps have none."""
    share = keyframe_share if has_keyframes(method) else 0.0
    pruned = stage_macs(step_stages(model, method, retention_ratio, is_key=False))
    key = stage_macs(step_stages(model, method, retention_ratio, is_key=True))
    return {stage: share * key[stage] + (1 - share) * pruned[stage] for stage in STAGES}


def stage_macs(stages: Mapping[str, Operations]) -> dict[str, int]:
    return {stage: macs(stages[stage]) for stage in STAGES}


def published_macs(
    model: Model, method: str, retention_ratio: float, keyframe_share: float
) -> float:
    """The decoder's prefill as the paper counts it, on the tokens it counts; the tokens it prunes
    are ``(1 - retention_ratio)`` of the visual ones, not rounded."""
    shape = model.published
    full = shape.step_macs(0, 0)
    if method == 'unpruned':
        return full
    cut = make_pruner(model, method, retention_ratio).pruning_layer
    pruned = shape.step_macs(cut, (1 - retention_ratio) * model.published_visual)
    share = keyframe_share if has_keyframes(method) else 0.0
    return share * full + (1 - share) * pruned
