"""A policy step as a few CUDA graphs: the launches of some thousand kernels become four.

    encode images | layers below the pruning layer | host: plan | the other layers | denoise

One graph each for the images, the shallow layers, the deep layers unpruned, the deep layers with
K tokens, and pi0.5's denoising after either: the retained count is part of every shape, so shapes
are static. The host decides between the deep graphs from `Pruner.plan`, which stays eager, as it
may remember and read the clock of an episode; it waits for the device once. Captured when a shape
is first seen, so a warm-up of one key timestep and one pruned step captures all; another prompt
length captures anew.

The unpruned policy is captured by the same code. OpenVLA's token-by-token decoding and OFT's small
head stay eager. Whatever outlives a policy step is cloned here: the next replay overwrites it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from safe_pruner_ros.core.pruner import Pruner, SaliencyRequest, StepAttention, StepContext
from safe_pruner_ros.core.tokens import TokenLayout
from safe_pruner_ros.policies.cuda_graphs import Capture, CudaCapture, GraphedFunction, Tensors
from safe_pruner_ros.policies.layer_stack import LayerRun, LayerStack
from safe_pruner_ros.policies.policy import LayerTokens, PolicyOutputError
from safe_pruner_ros.policies.pruned_decoder import (
    DecoderOutput,
    Rotary,
    StageClock,
    at_visual_index,
    check_decoder,
    measure_saliency,
)


class _KeyValues:
    """A cache of one pass, as layers expect it: what they store, by layer."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.stored[layer] = (key, value)
        return key, value


def _flat(cache: _KeyValues | None) -> list[torch.Tensor]:
    """Keys and values by ascending layer."""
    if cache is None:
        return []
    return [tensor for layer in sorted(cache.stored) for tensor in cache.stored[layer]]


@dataclass
class _Segments:
    """The graphs of one layout under one kind of pruner. ``early``: requests that the shallow
    graph answers; ``late`` those of the deep graph, unpruned and pruned."""

    early: tuple[SaliencyRequest, ...]
    late: tuple[tuple[SaliencyRequest, ...], tuple[SaliencyRequest, ...]]
    shallow: GraphedFunction
    full: GraphedFunction
    pruned: GraphedFunction


class GraphedDecoder:
    """Called like `run_pruned`, with the same answer. One instance serves one stack of layers."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._segments: dict[Hashable, _Segments] = {}

    def __call__(
        self,
        layers: Sequence[nn.Module],
        rotary: Rotary,
        norm: nn.Module,
        embeddings: torch.Tensor,
        position_ids: torch.Tensor,
        layout: TokenLayout,
        pruner: Pruner,
        *,
        instruction_key: Hashable,
        step: int,
        features: torch.Tensor | None = None,
        patches: torch.Tensor | None = None,
        causal: bool = False,
        past_key_values: Any = None,
        observe: bool = True,
    ) -> DecoderOutput:
        if check_decoder(layers, embeddings, position_ids, layout, pruner):
            raise ValueError("CUDA graphs need attn_implementation 'sdpa', the model has 'eager'")
        key = (
            layout,
            pruner.pruning_layer,
            pruner.shallow_requests,
            tuple((r, r.on_pruned_steps) for r in pruner.deep_requests),
            causal,
            keeps_keys := past_key_values is not None,
        )
        if key not in self._segments:
            self._segments[key] = _make_segments(
                layers, rotary, norm, layout, pruner, causal, keeps_keys, self._capture
            )
        segments = self._segments[key]
        n_stored = 2 * pruner.pruning_layer if keeps_keys else 0
        clock = StageClock(embeddings.device)

        with clock.stage('shallow'):
            hidden, *rest = segments.shallow(embeddings, position_ids)
            stored = rest[:n_stored]
            early = [value.clone() for value in rest[n_stored:]]
        measured = dict(zip(segments.early, early, strict=True))
        with clock.stage('scoring'):
            if features is None:
                features = embeddings[0, layout.visual.start : layout.visual.stop]
            context = StepContext(
                features.detach().float().clone(),
                layout,
                {request: measured[request] for request in pruner.shallow_requests},
                instruction_key,
                step,
                embeddings[0].detach(),
                patches,
            )
            plan = pruner.plan(context)
            if plan.reuse is not None:
                raise ValueError(
                    f'{pruner.method} reuses keys and values of earlier steps, which CUDA graphs '
                    'do not do yet; run it without graphs'
                )
            if plan.retained is None:
                kept_positions = torch.arange(layout.length, device=embeddings.device)
            else:
                kept_positions = layout.kept_positions(plan.retained.visual_index)

        late = segments.late[plan.retained is not None]
        with clock.stage('deep'):
            if plan.retained is None:
                hidden, finite, *rest = segments.full(hidden, position_ids)
            else:
                hidden, finite, *rest = segments.pruned(hidden, position_ids, kept_positions)
            is_finite = bool(finite)  # waits until the device is done
        if not is_finite:
            raise PolicyOutputError(
                f'the decoder returned NaN or infinite hidden states in policy step {step}; '
                'check the checkpoint, its dtype and the images'
            )
        answers = [value.clone() for value in rest[len(rest) - len(late) :]]
        for request, answer in zip(late, answers, strict=True):
            if plan.retained is not None:
                answer = at_visual_index(answer, plan.retained.visual_index, layout)
            measured[request] = answer
        if plan.retained is not None:  # asked for on key timesteps only
            unasked = set(segments.early) - set(pruner.shallow_requests)
            for request in unasked:
                if not request.on_pruned_steps:
                    del measured[request]
        if past_key_values is not None:
            stored += rest[: len(rest) - len(late)]
            for layer in range(len(stored) // 2):
                past_key_values.update(stored[2 * layer], stored[2 * layer + 1], layer)
        attention = StepAttention(measured)
        if observe:
            with clock.stage('scoring'):
                pruner.observe(context, plan, attention)
        n_deep, n_all = len(layers) - pruner.pruning_layer, layout.n_visual
        n_kept = n_all if plan.retained is None else len(plan.retained)
        layer_tokens = [LayerTokens(n_all, n_all)] * pruner.pruning_layer
        layer_tokens += [LayerTokens(n_kept, n_kept)] * n_deep
        return DecoderOutput(
            hidden,
            kept_positions,
            plan,
            attention,
            clock.read_ms(),
            context,
            tuple(layer_tokens),
        )


def _make_segments(
    layers: Sequence[nn.Module],
    rotary: Rotary,
    norm: nn.Module,
    layout: TokenLayout,
    pruner: Pruner,
    causal: bool,
    keeps_keys: bool,
    capture: Capture,
) -> _Segments:
    cut, deep = pruner.pruning_layer, pruner.deep_requests
    # A deep request below the cut is answered on every step: one row of attention more there is
    # cheaper than another graph.
    below = tuple(r for r in deep if r.layer < cut and r not in pruner.shallow_requests)
    early = (*pruner.shallow_requests, *below)
    above = tuple(r for r in deep if r.layer >= cut)
    on_pruned = tuple(r for r in above if r.on_pruned_steps)

    def measure(
        request: SaliencyRequest, run: LayerRun, stack: LayerStack, seen: TokenLayout
    ) -> torch.Tensor:
        return measure_saliency(
            layers[request.layer],
            run.inputs,
            *stack.rotary,
            seen,
            request.queries,
            causal=causal,
            per_query=request.per_query,
            key=run.key,
        )

    def start(
        hidden: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[LayerStack, _KeyValues | None]:
        cache = _KeyValues() if keeps_keys else None
        cos_sin = rotary(hidden, position_ids)
        return LayerStack(layers, cos_sin, position_ids, causal, False, cache), cache

    def shallow(embeddings: torch.Tensor, position_ids: torch.Tensor) -> Tensors:
        stack, cache = start(embeddings, position_ids)
        hidden, runs = embeddings, []
        for index in range(cut):
            runs.append(stack.run_layer(index, hidden))
            hidden = runs[-1].output
        saliency = [measure(request, runs[request.layer], stack, layout) for request in early]
        return hidden, *_flat(cache), *saliency

    def rest_of(
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        kept: torch.Tensor | None,
        requests: tuple[SaliencyRequest, ...],
    ) -> Tensors:
        stack, cache = start(hidden, position_ids)
        seen = layout
        if kept is not None:
            hidden = hidden.index_select(1, kept)
            stack.keep(kept)
            seen = layout.shortened(len(kept) - (layout.length - layout.n_visual))
        runs = {}
        for index in range(cut, len(layers)):
            runs[index] = stack.run_layer(index, hidden)
            hidden = runs[index].output
        saliency = [measure(request, runs[request.layer], stack, seen) for request in requests]
        hidden = norm(hidden)
        return hidden, torch.isfinite(hidden).all(), *_flat(cache), *saliency

    return _Segments(
        early,
        (above, on_pruned),
        GraphedFunction(shallow, capture),
        GraphedFunction(lambda hidden, ids: rest_of(hidden, ids, None, above), capture),
        GraphedFunction(lambda hidden, ids, kept: rest_of(hidden, ids, kept, on_pruned), capture),
    )


class GraphedDenoiser:
    """Called like `Pi05.denoise`. One graph for each prefix, as pruned layers differ in length;
    a watcher sees queries and keys after the replay."""

    def __init__(self, denoise: Callable[..., torch.Tensor], capture: Capture) -> None:
        self._denoise, self._capture = denoise, capture
        self._graphs: dict[Hashable, tuple[GraphedFunction, list[int]]] = {}

    def __call__(
        self,
        noise: torch.Tensor,
        prefix: Sequence[tuple[torch.Tensor, torch.Tensor]],
        n_prefix: int,
        modulations: torch.Tensor,
        watch: Any = None,
    ) -> torch.Tensor:
        flat = [tensor for pair in prefix for tensor in pair]
        # The addresses of `modulations` are captured: a policy has one for its life.
        key = (n_prefix, watch is not None, modulations.data_ptr())
        if key not in self._graphs:
            self._graphs[key] = self._make(n_prefix, modulations, watch is not None)
        function, layers = self._graphs[key]
        actions, *seen = function(noise, *flat)
        if watch is not None:
            for number, layer in enumerate(layers):
                watch(layer, seen[2 * number], seen[2 * number + 1])
        return actions

    def _make(
        self, n_prefix: int, modulations: torch.Tensor, is_watched: bool
    ) -> tuple[GraphedFunction, list[int]]:
        layers: list[int] = []

        def function(noise: torch.Tensor, *flat: torch.Tensor) -> Tensors:
            layers.clear()
            seen: list[torch.Tensor] = []

            def watch(layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
                layers.append(layer)
                seen.extend((query, key))

            prefix = list(zip(flat[::2], flat[1::2], strict=True))
            watcher = watch if is_watched else None
            return self._denoise(noise, prefix, n_prefix, modulations, watcher), *seen

        return GraphedFunction(function, self._capture), layers


def use_graphs(policy: Any, capture: Capture | None = None) -> None:
    """From the next step on ``policy`` (OpenVLA, OpenVLA-OFT, pi0.5) replays graphs.

    ``capture``: None captures for CUDA. Raises ValueError for a policy without the seams.
    """
    seams = [name for name in ('encode_images', 'run_decoder') if not hasattr(policy, name)]
    if seams:
        raise ValueError(f'{type(policy).__name__} cannot run as graphs: it has no {seams}')
    capture = capture or CudaCapture()
    encode = GraphedFunction(lambda pixels: (policy_encode(pixels),), capture)
    policy_encode = policy.encode_images
    policy.encode_images = lambda pixels: encode(pixels.to(policy.device))[0]
    policy.run_decoder = GraphedDecoder(capture)
    if hasattr(policy, 'denoise'):
        policy.denoise = GraphedDenoiser(policy.denoise, capture)
