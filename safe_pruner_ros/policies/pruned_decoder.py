"""Runs a stack of decoder layers under a Pruner. Knows layers, not robots or checkpoints.

Layers below ``pruning_layer`` see every token; there the pruner's saliency is measured. Then the
pruner plans, the pruned visual tokens physically leave, and the remaining layers run on what is
left, each token with its ORIGINAL position id. Exact: physically leaving equals being masked as a
key from ``pruning_layer`` on. A plan may also skip tokens instead of dropping them: then their
keys and values of an earlier step stay (`reused_layers.py`).

Works with layers shaped like transformers' LlamaDecoderLayer (Llama, Gemma): `input_layernorm`,
`self_attn` with `q_proj` and `k_proj`, rotary positions. No hook is placed, no attribute is set,
and no attention map is asked for: ``output_attentions`` would force slow attention everywhere.
Saliency recomputes the few query rows it needs (`measure_saliency`) and takes the keys that the
layer hands to its cache.

Trap: an attention mask of None means "all tokens" to transformers' eager attention and "causal"
to its SDPA attention. So ``is_causal`` is always said, and eager gets its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import torch
from jaxtyping import Float, Int64, Num
from torch import nn

from safe_pruner_ros.core.pruner import (
    Pruner,
    SaliencyRequest,
    StepAttention,
    StepContext,
    StepPlan,
)
from safe_pruner_ros.core.saliency import attention_saliency
from safe_pruner_ros.core.tokens import QueryGroup, Span, TokenLayout
from safe_pruner_ros.policies.layer_stack import LayerRun, LayerStack
from safe_pruner_ros.policies.policy import LayerTokens, PolicyOutputError
from safe_pruner_ros.policies.reused_layers import run_reusing

Rotary = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

STAGES = ('shallow', 'scoring', 'deep')


@dataclass(frozen=True)
class DecoderOutput:
    """One decoder pass over S' of S tokens.

    ``hidden`` [1, S', D] after the final norm, finite. ``kept_positions`` [S']: the original
    sequence position of every row, ascending. ``latency_ms``: wall time of the stages shallow,
    scoring (saliency + matching + selection) and deep. ``layer_tokens``: one entry a layer.
    """

    hidden: Float[torch.Tensor, '1 S_kept D']
    kept_positions: Int64[torch.Tensor, ' S_kept']
    plan: StepPlan
    attention: StepAttention
    latency_ms: Mapping[str, float]
    context: StepContext
    layer_tokens: tuple[LayerTokens, ...]

    def rows(self, span: Span) -> Float[torch.Tensor, 'n D']:
        """Hidden states of the non-visual sequence positions ``span``, pruned step or not."""
        layout = self.context.layout
        n_retained = layout.n_visual if self.plan.retained is None else len(self.plan.retained)
        return self.hidden[0, layout.rows_after_pruning(span, n_retained)]


@torch.no_grad()
def run_pruned(
    layers: Sequence[nn.Module],
    rotary: Rotary,
    norm: nn.Module,
    embeddings: Float[torch.Tensor, '1 S D'],
    position_ids: Int64[torch.Tensor, '1 S'],
    layout: TokenLayout,
    pruner: Pruner,
    *,
    instruction_key: Hashable,
    step: int,
    features: Float[torch.Tensor, 'V D'] | None = None,
    patches: Num[torch.Tensor, 'V P'] | None = None,
    causal: bool = False,
    past_key_values: Any = None,
    observe: bool = True,
) -> DecoderOutput:
    """One policy step of the decoder, batch 1, in eval mode.

    Parameters
    ----------
    layers, rotary, norm : the decoder stack; ``rotary(x, position_ids)`` gives (cos, sin).
    features : what tokens are matched by; default the visual rows of ``embeddings``. float32.
    instruction_key, step, patches : see `StepContext`.
    causal : each token sees only itself and earlier ones; otherwise all see all.
    past_key_values : an empty transformers cache to fill, for policies that decode on: layers
        below ``pruning_layer`` store S keys, the others S'.
    observe : False leaves ``pruner.observe(out.context, out.plan, out.attention)`` to a caller
        who first wants to see the action head succeed. A step that was not observed never was.

    Raises
    ------
    ValueError : layers, layout and embeddings do not fit together.
    PolicyOutputError : the hidden states are not finite; the pruner has not observed the step.
    """
    is_eager = check_decoder(layers, embeddings, position_ids, layout, pruner)
    clock = StageClock(embeddings.device)
    cos_sin = rotary(embeddings, position_ids)
    stack = LayerStack(layers, cos_sin, position_ids, causal, is_eager, past_key_values)
    if features is None:
        features = embeddings[0, layout.visual.start : layout.visual.stop]

    measured: dict[SaliencyRequest, torch.Tensor] = {}
    shallow_runs: list[LayerRun] = []  # references only, for deep_requests below the cut
    seen = layout  # where the tokens sit that a layer sees
    deep_requests = pruner.deep_requests

    def measure(requests: Sequence[SaliencyRequest], layer: int, run: LayerRun) -> None:
        for request in requests:
            if request.layer == layer and request not in measured:
                measured[request] = measure_saliency(
                    layers[layer],
                    run.inputs,
                    *stack.rotary,
                    seen,
                    request.queries,
                    causal=causal,
                    per_query=request.per_query,
                    key=run.key,
                )
                if seen is not layout:
                    assert plan.retained is not None
                    index = plan.retained.visual_index
                    measured[request] = at_visual_index(measured[request], index, layout)

    hidden = embeddings
    for index in range(pruner.pruning_layer):
        with clock.stage('shallow'):
            run = stack.run_layer(index, hidden)
        hidden = run.output
        shallow_runs.append(run)
        if any(request.layer == index for request in pruner.shallow_requests):
            with clock.stage('scoring'):
                measure(pruner.shallow_requests, index, run)

    with clock.stage('scoring'):
        context = StepContext(
            features.detach().float(),
            layout,
            dict(measured),
            instruction_key,
            step,
            embeddings[0].detach(),
            patches,
        )
        plan = pruner.plan(context)
        if plan.retained is not None:
            deep_requests = tuple(r for r in deep_requests if r.on_pruned_steps)
        for index, run in enumerate(shallow_runs):
            measure(deep_requests, index, run)

    entropy, record = None, None
    layer_tokens = [LayerTokens(layout.n_visual, layout.n_visual)] * pruner.pruning_layer
    if plan.reuse is not None:
        reused = run_reusing(
            layers,
            cos_sin,
            position_ids,
            layout,
            plan.reuse,
            deep_requests,
            [run.inputs for run in shallow_runs],
            hidden,
            clock.stage,
            causal=causal,
            is_eager=is_eager,
            past_key_values=past_key_values,
        )
        hidden, kept_positions = reused.hidden, reused.positions
        layer_tokens = layer_tokens + reused.tokens
        entropy, record = reused.entropy, reused.record
        measured.update(reused.saliency)
    else:
        with clock.stage('scoring'):
            if plan.retained is None:
                kept_positions = torch.arange(layout.length, device=hidden.device)
            else:
                kept_positions = layout.kept_positions(plan.retained.visual_index)
                hidden = hidden.index_select(1, kept_positions)
                stack.keep(kept_positions)
                seen = layout.shortened(len(plan.retained))
        for index in range(pruner.pruning_layer, len(layers)):
            with clock.stage('deep'):
                run = stack.run_layer(index, hidden)
            hidden = run.output
            layer_tokens.append(LayerTokens(seen.n_visual, seen.n_visual))
            if any(request.layer == index for request in deep_requests):
                with clock.stage('scoring'):
                    measure(deep_requests, index, run)
    with clock.stage('deep'):
        hidden = norm(hidden)
        is_finite = bool(torch.isfinite(hidden).all())  # waits until the device is done
    if not is_finite:
        raise PolicyOutputError(
            f'the decoder returned NaN or infinite hidden states in policy step {step}; '
            'check the checkpoint, its dtype and the images'
        )
    attention = StepAttention(measured, entropy, record)
    if observe:
        with clock.stage('scoring'):
            pruner.observe(context, plan, attention)
    return DecoderOutput(
        hidden, kept_positions, plan, attention, clock.read_ms(), context, tuple(layer_tokens)
    )


def measure_saliency(
    layer: Any,
    hidden: Float[torch.Tensor, '1 S D'],
    cos: Float[torch.Tensor, '1 S d'],
    sin: Float[torch.Tensor, '1 S d'],
    layout: TokenLayout,
    queries: QueryGroup,
    *,
    causal: bool,
    per_query: bool = False,
    key: Float[torch.Tensor, 'H_kv S d'] | None = None,
) -> Float[torch.Tensor, '*rows V']:
    """Saliency at the attention of one ``layer`` whose input is ``hidden`` (Eq. 1, 2).

    ``layout`` is that of ``hidden``: behind the cut, `TokenLayout.shortened`. Equals the layer's
    own attention map, averaged, at the cost of the query rows alone. ``key``: what the layer
    attended to, rotated; computed anew when None. The layer's attention kernel stays as it is.
    """
    attention = layer.self_attn
    rows = layout.query_positions(queries)
    asking = layer.input_layernorm(hidden[:, rows])[0]
    query = attention.q_proj(asking).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
    if key is None:
        key = attention.k_proj(layer.input_layernorm(hidden)[0])
        key = key.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        key = rotate(key, cos[0], sin[0])
    visible = None
    if causal:
        position = torch.arange(layout.length, device=hidden.device)
        visible = position[None, :] <= position[rows, None]
    return attention_saliency(
        rotate(query, cos[0, rows], sin[0, rows]),
        key,
        slice(layout.visual.start, layout.visual.stop),
        attention.scaling,
        visible,
        per_query,
    )


def at_visual_index(
    saliency: torch.Tensor, visual_index: torch.Tensor, layout: TokenLayout
) -> torch.Tensor:
    """Saliency [..., K] of retained tokens -> [..., V]; the tokens that have left read 0."""
    everywhere = saliency.new_zeros(*saliency.shape[:-1], layout.n_visual)
    return everywhere.index_copy(-1, visual_index, saliency)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in transformers' half-split convention. [H, n, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class StageClock:
    """Adds up wall time by stage; stages follow each other without a gap.

    A GPU runs behind the host, so there stages end with an event in its own stream, and `read_ms`
    waits for the last one. Nothing before that waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == 'cuda'
        self._ends: list[tuple[str, Any]] = [('', self._now())]

    def _now(self) -> Any:
        if not self._is_cuda:
            return perf_counter_ns()
        make_event: Any = torch.cuda.Event  # untyped in torch
        event = make_event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield
        if self._ends[-1][0] == name:  # one stage over many layers ends once
            self._ends.pop()
        self._ends.append((name, self._now()))

    def read_ms(self) -> dict[str, float]:
        total = dict.fromkeys(STAGES, 0.0)
        if self._is_cuda:
            self._ends[-1][1].synchronize()
        for (_, start), (stage, end) in zip(self._ends, self._ends[1:], strict=False):
            total[stage] += start.elapsed_time(end) if self._is_cuda else (end - start) / 1e6
        return total


def check_decoder(
    layers: Sequence[nn.Module],
    embeddings: torch.Tensor,
    position_ids: torch.Tensor,
    layout: TokenLayout,
    pruner: Pruner,
) -> bool:
    """Raise ValueError for what would go wrong silently. True when attention is 'eager'."""
    if embeddings.ndim != 3 or embeddings.shape[:2] != (1, layout.length):
        raise ValueError(
            f'embeddings must be [1, {layout.length}, D] as the layout says, '
            f'got {list(embeddings.shape)}'
        )
    if position_ids.shape != embeddings.shape[:2]:
        raise ValueError(
            f'position_ids must be [1, {layout.length}], got {list(position_ids.shape)}'
        )
    if not pruner.pruning_layer < len(layers):
        raise ValueError(
            f'pruning_layer {pruner.pruning_layer} lies outside a stack of {len(layers)} layers; '
            'build the pruner with n_layers=len(layers)'
        )
    late = [r for r in pruner.shallow_requests if r.layer >= pruner.pruning_layer]
    if late:
        raise ValueError(
            f'shallow_requests {late} are not below pruning_layer {pruner.pruning_layer}; '
            'make them deep_requests'
        )
    if any(layer.training for layer in layers):
        raise ValueError('the decoder is in training mode; call model.eval() first')
    attention: Any = layers[0].self_attn
    if hasattr(attention, 'q_norm'):
        raise ValueError(
            f'{type(attention).__name__} normalises its queries, which measure_saliency does '
            'not; add that there before pruning this model'
        )
    implementation = attention.config._attn_implementation
    if implementation not in ('sdpa', 'eager'):
        raise ValueError(
            f'attn_implementation {implementation!r} is untested here and may ignore is_causal; '
            "load the model with 'sdpa' or 'eager'"
        )
    return bool(implementation == 'eager')
