"""Runs decoder layers on some rows against the keys and values of all (VLA-Cache).

A skipped visual token has no row any more, but its keys and values of an earlier step stand where
its own would, at its original position, and every row attends to all S tokens. Exact: equals a
pass over all rows in which those keys and values take the place of what each layer computes.

Works on the layers that `pruned_decoder.py` works on, and as it does: no hook, no attribute set,
no attention map asked for. A layer gets a cache that merges: what it computes goes in, what its
rows attend to comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from safe_pruner_ros.core.pruner import KeyValueReuse, SaliencyRequest
from safe_pruner_ros.core.saliency import attention_entropy, attention_saliency
from safe_pruner_ros.core.tokens import QueryGroup, TokenLayout
from safe_pruner_ros.policies.policy import LayerTokens


@dataclass(frozen=True)
class KeyValueRecord:
    """Keys (rotated by ``position_ids`` [1, V]) and values of the visual tokens, [1, H_kv, V, d]
    by layer."""

    position_ids: Int64[torch.Tensor, '1 V']
    keys: dict[int, Float[torch.Tensor, '1 H_kv V d']]
    values: dict[int, Float[torch.Tensor, '1 H_kv V d']]


@dataclass(frozen=True)
class ReusedRun:
    """``hidden``: output of the last layer for the rows at ``positions``. ``tokens``: one entry a
    layer that ran here. ``entropy``: of all layers, None where not asked for."""

    hidden: Float[torch.Tensor, '1 n D']
    positions: Int64[torch.Tensor, ' n']
    saliency: dict[SaliencyRequest, torch.Tensor]
    entropy: Float[torch.Tensor, ' L'] | None
    record: KeyValueRecord
    tokens: list[LayerTokens]


def run_reusing(
    layers: Sequence[nn.Module],
    rotary: tuple[torch.Tensor, torch.Tensor],
    position_ids: Int64[torch.Tensor, '1 S'],
    layout: TokenLayout,
    reuse: KeyValueReuse,
    requests: Sequence[SaliencyRequest],
    shallow_inputs: Sequence[torch.Tensor],
    hidden: Float[torch.Tensor, '1 S D'],
    stage: Callable[[str], AbstractContextManager[None]],
    *,
    causal: bool,
    is_eager: bool,
    past_key_values: Any,
) -> ReusedRun:
    """The rest of a policy step whose first ``len(shallow_inputs)`` layers have run on all rows.

    ``shallow_inputs`` are what those got; ``stage`` times what runs inside of it. ``rotary``,
    ``causal``, ``is_eager`` and ``past_key_values`` as in `pruned_decoder.run_pruned`; the cache
    receives the keys and values of all S tokens.
    """
    n_shallow = len(shallow_inputs)
    reused = ReusedLayers(
        layers,
        rotary,
        position_ids,
        layout,
        reuse,
        n_shallow,
        causal=causal,
        is_eager=is_eager,
        past_key_values=past_key_values,
    )
    saliency: dict[SaliencyRequest, torch.Tensor] = {}
    entropy: list[torch.Tensor] = []
    tokens = []
    if reuse.measure_entropy:
        with stage('scoring'):
            for layer, shallow_input in zip(layers, shallow_inputs, strict=False):
                entropy.append(layer_entropy(layer, shallow_input, *rotary, causal=causal))
    for index in range(n_shallow, len(layers)):
        with stage('deep'):
            hidden = reused.run_layer(index, hidden)
        tokens.append(LayerTokens(reused.n_computed, layout.n_visual))
        with stage('scoring'):
            for request in requests:
                if request.layer == index:
                    saliency[request] = reused.saliency(request.queries, request.per_query)
            if reuse.measure_entropy:
                entropy.append(reused.entropy())
    measured = torch.stack(entropy) if entropy else None
    return ReusedRun(hidden, reused.positions, saliency, measured, reused.record, tokens)


def layer_entropy(
    layer: Any,
    hidden: Float[torch.Tensor, '1 S D'],
    cos: Float[torch.Tensor, '1 S d'],
    sin: Float[torch.Tensor, '1 S d'],
    *,
    causal: bool,
) -> Float[torch.Tensor, '']:
    """Entropy of the attention of a ``layer`` that computed every row, from its input."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query, key = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    visible = None
    if causal:
        length = hidden.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
    return attention_entropy(query[0], key[0], attention.scaling, visible)


class ReusedLayers:
    """The layers from the first one that may skip on, in one policy step.

    Call `run_layer` for each in order; `saliency` and `entropy` speak of the layer that ran last.
    ``positions`` int64 [n]: sequence positions of the rows that are left, ascending.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        rotary: tuple[torch.Tensor, torch.Tensor],
        position_ids: Int64[torch.Tensor, '1 S'],
        layout: TokenLayout,
        reuse: KeyValueReuse,
        first_layer: int,
        *,
        causal: bool,
        is_eager: bool,
        past_key_values: Any,
    ) -> None:
        """Raises ValueError when the record of ``reuse`` is of another decoder or layout."""
        self._layers, self._layout, self._reuse = layers, layout, reuse
        self._first_layer, self._causal, self._is_eager = first_layer, causal, is_eager
        self._all_rotary, self._all_position_ids = rotary, position_ids
        self._visual = slice(layout.visual.start, layout.visual.stop)
        self._earlier = _fitting(reuse, len(layers) - first_layer, position_ids[:, self._visual])
        self._past_key_values = past_key_values
        self._record = KeyValueRecord(position_ids[:, self._visual], {}, {})
        self._n_skipped = 0
        self.positions = torch.arange(layout.length, device=position_ids.device)
        self._select_rotary()
        self._input: torch.Tensor | None = None
        self._key: torch.Tensor | None = None
        self._index = first_layer

    @property
    def record(self) -> KeyValueRecord:
        """For the next step; complete when the last layer has run."""
        return self._record

    @property
    def n_computed(self) -> int:
        """Visual tokens that are left."""
        return self._layout.n_visual - self._n_skipped

    def run_layer(
        self, index: int, hidden: Float[torch.Tensor, '1 m D']
    ) -> Float[torch.Tensor, '1 n D']:
        """Output of layer ``index`` for the n of m rows that it still computes."""
        count = self._reuse.counts[index - self._first_layer]
        if count != self._n_skipped:
            hidden = self._skip(count, hidden)
        self._index, self._input = index, hidden
        mask = self._mask(hidden.dtype)
        output: torch.Tensor = self._layers[index](
            hidden,
            attention_mask=mask,
            position_ids=self._position_ids,
            past_key_values=self,
            use_cache=True,
            position_embeddings=self._rotary,
            is_causal=self._causal and mask is None,
        )
        return output

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer calls its cache for: computed keys and values in, those of all S out."""
        record, index = self._record, self._index
        if self._n_skipped:
            assert self._earlier is not None
            key = self._merge(key, self._earlier.keys[index])
            value = self._merge(value, self._earlier.values[index])
        record.keys[index], record.values[index] = (
            key[:, :, self._visual],
            value[:, :, self._visual],
        )
        self._key = key[0]
        if self._past_key_values is not None:
            self._past_key_values.update(key, value, layer_idx)
        return key, value

    def saliency(self, queries: QueryGroup, per_query: bool) -> Float[torch.Tensor, '*rows V']:
        """As `pruned_decoder.measure_saliency`; skipped tokens are seen, so they have theirs too.
        Of the group's rows, those that are left ask."""
        asked = self._layout.query_positions(queries)
        rows = ((self.positions >= asked.start) & (self.positions < asked.stop)).nonzero()[:, 0]
        scaling, visible = self._layers[self._index].self_attn.scaling, self._visible()
        if visible is not None:
            visible = visible[rows]
        query, key = self._queries(rows)
        return attention_saliency(query, key, self._visual, scaling, visible, per_query)

    def entropy(self) -> Float[torch.Tensor, '']:
        rows = torch.arange(len(self.positions), device=self.positions.device)
        query, key = self._queries(rows)
        scaling = self._layers[self._index].self_attn.scaling
        return attention_entropy(query, key, scaling, self._visible())

    def _queries(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries [H, R, d] of ``rows``, and the keys [H_kv, S, d] they meet."""
        assert self._input is not None and self._key is not None, 'run a layer first'
        layer: Any = self._layers[self._index]
        projected = layer.self_attn.q_proj(layer.input_layernorm(self._input[:, rows]))
        query = projected.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2)
        cos, sin = (table[:, rows] for table in self._rotary)
        return apply_rotary_pos_emb(query, query, cos, sin)[0][0], self._key

    def _skip(self, count: int, hidden: torch.Tensor) -> torch.Tensor:
        kept = self._layout.kept_positions(self._reuse.order[count:].sort().values)
        rows = torch.searchsorted(self.positions, kept)
        self.positions, self._n_skipped = kept, count
        self._select_rotary()
        return hidden.index_select(1, rows)

    def _select_rotary(self) -> None:
        cos, sin = self._all_rotary
        if self._n_skipped:
            cos, sin = cos.index_select(1, self.positions), sin.index_select(1, self.positions)
        self._rotary = (cos, sin)
        self._position_ids = self._all_position_ids[:, self.positions]

    def _merge(self, computed: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
        skipped = self._reuse.order[: self._n_skipped]
        batch, heads, _, width = computed.shape
        everything = computed.new_empty(batch, heads, self._layout.length, width)
        everything.index_copy_(2, self.positions, computed)
        everything.index_copy_(2, skipped + self._visual.start, earlier.index_select(2, skipped))
        return everything

    def _visible(self) -> torch.Tensor | None:
        """bool [n, S]: a token sees itself and earlier ones; None when all see all."""
        if not self._causal:
            return None
        everybody = torch.arange(self._layout.length, device=self.positions.device)
        return everybody[None, :] <= self.positions[:, None]

    def _mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive [1, 1, n, S] where the kernel would not find out by itself: SDPA knows the
        causal pattern of a square map only, eager attention knows none."""
        visible = self._visible()
        if visible is None or not (self._is_eager or self._n_skipped):
            return None
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(dtype).min)[None, None]


def _fitting(
    reuse: KeyValueReuse, n_layers: int, position_ids: torch.Tensor
) -> KeyValueRecord | None:
    """The record to reuse, None when nothing is."""
    if len(reuse.counts) != n_layers:
        raise ValueError(
            f'a KeyValueReuse for {n_layers} layers must have as many counts, got '
            f'{len(reuse.counts)}; build the pruner with n_layers=len(layers)'
        )
    if any(after < before for before, after in zip(reuse.counts, reuse.counts[1:], strict=False)):
        raise ValueError(
            f'counts of a KeyValueReuse must not decrease, got {list(reuse.counts)}; a token that '
            'one layer has skipped has no input for the next'
        )
    if not any(reuse.counts):
        return None
    record = reuse.record
    if not isinstance(record, KeyValueRecord):
        raise ValueError(
            f'to reuse keys and values takes the record of an earlier step, got {record!r}; '
            'hand back StepAttention.record'
        )
    if len(record.keys) != n_layers or not torch.equal(record.position_ids, position_ids):
        raise ValueError(
            'the record of the earlier step is of another decoder or its visual tokens had other '
            'positions; plan a full step when the layout changes'
        )
    return record
