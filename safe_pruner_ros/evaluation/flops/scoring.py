"""What choosing tokens costs: saliency, matching and selection, method by method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from safe_pruner_ros.core import catalog
from safe_pruner_ros.core.pruner import Pruner, SaliencyRequest
from safe_pruner_ros.core.selection import n_retained
from safe_pruner_ros.evaluation.flops.shapes import Model
from safe_pruner_ros.evaluation.flops.work import Operations, Work, linear, product

Plan = Callable[[Model, Any, bool, bool], Operations]


def _nothing(model: Model, pruner: Any, is_key: bool, is_matched: bool) -> Operations:
    """Sums, sorts and cosines of a token with itself: no matrix product."""
    return []


def _matching(model: Model, pruner: Any, is_key: bool, is_matched: bool) -> Operations:
    """Each visual token against each of the keyframe; scopes only mask the answer."""
    return [_all_pairs(model)] if is_matched and pruner.config.forecast else []


def _distances(model: Model, pruner: Any, is_key: bool, is_matched: bool) -> Operations:
    """A diversity filter: each visual token against each, of its own view if each has a quota."""
    return _within_quotas(model, pruner.quota_scope)


def _distances_if_pruned(model: Model, pruner: Any, is_key: bool, is_matched: bool) -> Operations:
    """A step in full chooses nothing. What one in doubt chose before the doubt showed is left out:
    its trace does not say whether it did."""
    return [] if is_key else _distances(model, pruner, is_key, is_matched)


def _match_and_choose(model: Model, pruner: Any, is_key: bool, is_matched: bool) -> Operations:
    """A key timestep matches; a pruned step also measures distances, and matches to remember."""
    matching = _matching(model, pruner, is_key, is_matched)
    if is_key:
        return matching
    return [*matching, *matching, *_within_quotas(model, pruner.config.quota_scope)]


def _raters(model: Model, pruner: Any, is_key: bool, is_matched: bool) -> Operations:
    """Each visual token against each word, and the raters' weighted sum."""
    tokens = model.tokens
    relevance = product(tokens.visual, model.decoder.width, tokens.text)
    return [relevance, product(1, tokens.text, tokens.visual)]


def _all_pairs(model: Model) -> Work:
    return product(model.tokens.visual, model.features, model.tokens.visual)


def _within_quotas(model: Model, quota_scope: str) -> Operations:
    views = [model.tokens.visual] if quota_scope == 'joint' else model.tokens.by_view
    return [product(view, model.features, view) for view in views]


# method -> what the pruner itself costs in a step, without the saliency it asked for; whether it
# has key timesteps.
_METHODS: dict[str, tuple[Plan, bool]] = {
    'unpruned': (_nothing, False),
    'random': (_nothing, False),
    'fastv': (_nothing, False),
    'sparsevlm': (_raters, False),
    'divprune': (_distances, False),
    'vla_cache': (_nothing, True),
    'vla_pruner': (_distances_if_pruned, True),
    'specprune_vla': (_nothing, True),
    'safe_pruner': (_matching, True),
    'diverse_forecast': (_match_and_choose, True),
}

METHODS = tuple(method for method in catalog.METHODS if method in _METHODS)
# What these compute depends on what the pictures show, or nobody has counted it yet.
NOT_COUNTED = tuple(method for method in catalog.METHODS if method not in _METHODS)


# Skipped tokens keep their keys and values: who computes is fewer, who is attended to is not.
REUSING = frozenset({'vla_cache'})


def check_counted(method: str) -> None:
    if method not in _METHODS:
        raise ValueError(
            f'no count for the method {method!r}, which evaluation/flops/scoring.py lacks; choose '
            f'from {list(METHODS)}'
        )


def has_keyframes(method: str) -> bool:
    """Does the method run some policy steps in full by its own decision?"""
    check_counted(method)
    return _METHODS[method][1]


def scoring(
    model: Model,
    method: str,
    pruner: Pruner,
    *,
    is_key: bool,
    is_matched: bool = True,
    computed: Sequence[int] = (),
) -> Operations:
    """A step's saliency requests and its plan.

    ``is_matched``: is there a keyframe that the tokens were matched with? Not on the first step,
    nor where a keyframe was renewed for its age. ``computed``: visual tokens that each layer
    computed, for methods in `REUSING`; without, as if all that may be skipped had been.
    """
    check_counted(method)
    tokens, cut = model.tokens, pruner.pruning_layer
    n_pruned = 0
    if not is_key and method != 'unpruned':
        n_pruned = tokens.visual - n_retained(tokens.visual, pruner.retention_ratio)
    deep = [r for r in pruner.deep_requests if is_key or r.on_pruned_steps]
    deep = [r for r in deep if r not in pruner.shallow_requests]
    work: Operations = []
    n_gone = 0 if method in REUSING else n_pruned
    for request in (*pruner.shallow_requests, *deep):
        work += _rows(model, request, n_gone if request.layer >= cut else 0)
    if method in REUSING:
        deep_computed = [tokens.visual - n_pruned] * (model.decoder.n_layers - cut)
        work += _entropy(model, pruner, computed[cut:] or deep_computed)
    for request in deep:
        work += _late(model, request, n_gone if request.layer >= cut else 0)
    return [*work, *_METHODS[method][0](model, pruner, is_key, is_matched)]


def _rows(model: Model, request: SaliencyRequest, n_pruned: int) -> Operations:
    """Queries of the asking rows against keys that the layer has computed anyway."""
    decoder, rows = model.decoder, model.tokens.rows(request.queries)
    if request.queries == 'prefill':
        rows -= n_pruned
    keys = model.tokens.length - n_pruned
    return [
        linear(rows, decoder.width, decoder.query_width),
        product(rows, decoder.query_width, keys),
    ]


def _entropy(model: Model, pruner: Any, computed: Sequence[int]) -> Operations:
    """VLA-Cache: every layer's whole attention map, unless its schedule needs none. ``computed``:
    visual tokens by layer, from the pruning layer on."""
    if pruner.config.schedule == 'uniform':
        return []
    decoder, length = model.decoder, model.tokens.length
    queries, keys = decoder.query_width, decoder.key_width
    above = [linear(length, decoder.width, queries), linear(length, decoder.width, keys)]
    above.append(product(length, queries, length))
    work = above * pruner.pruning_layer
    for n_visual in computed:
        rows = model.tokens.other + n_visual
        work += [linear(rows, decoder.width, queries), product(rows, queries, length)]
    return work


def _late(model: Model, request: SaliencyRequest, n_pruned: int) -> Operations:
    if model.late is None or request.queries != 'action':
        return []
    late, decoder, work = model.late, model.decoder, []
    for number in range(late.passes):
        if not late.query_at_hand:
            work.append(linear(late.rows, decoder.width, decoder.query_width))
        keys = model.tokens.length - n_pruned + late.own_keys(number)
        work.append(product(late.rows, decoder.query_width, keys))
    return work


def settings_of(method: str, retention_ratio: float) -> dict[str, Any]:
    return {} if method == 'unpruned' else {'retention_ratio': retention_ratio}
