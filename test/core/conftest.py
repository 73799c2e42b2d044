"""A decoder without a decoder: it answers a pruner's requests with saliency the test chooses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import pytest
import torch

from safe_pruner_ros.core.pruner import (
    Pruner,
    SaliencyRequest,
    StepAttention,
    StepContext,
    StepPlan,
)
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid

N_LAYERS = 8


@pytest.fixture(autouse=True, scope='session')
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def layout() -> TokenLayout:
    """Two views of different size, V = 12 + 8 = 20, in a sequence of 30."""
    views = (ViewGrid('head', 3, 4), ViewGrid('wrist', 2, 4))
    return TokenLayout(views, Span(1, 21), Span(21, 25), Span(26, 29), 30)


class FakeDecoder:
    """Drives one pruner. Saliency and features stay the same unless a step brings its own."""

    def __init__(self, pruner: Pruner, layout: TokenLayout, seed: int = 0) -> None:
        self.pruner, self.layout = pruner, layout
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(layout.n_visual, 16, generator=generator)
        self.saliency = {
            SaliencyRequest(layer, queries): torch.rand(layout.n_visual, generator=generator)
            for layer in range(N_LAYERS)
            for queries in ('action', 'last', 'text', 'prefill')
        }
        for layer in range(N_LAYERS):
            rows = torch.rand(len(layout.text), layout.n_visual, generator=generator)
            self.saliency[SaliencyRequest(layer, 'text', per_query=True)] = rows
        self.embeddings = torch.randn(layout.length, 16, generator=generator)
        self.entropy = torch.rand(N_LAYERS, generator=generator) + 1

    def context(
        self,
        step: int,
        *,
        features: torch.Tensor | None = None,
        saliency: Mapping[SaliencyRequest, torch.Tensor] | None = None,
        instruction_key: Hashable = 'pick the cube',
        layout: TokenLayout | None = None,
        patches: torch.Tensor | None = None,
    ) -> StepContext:
        shallow = {**self.saliency, **(saliency or {})}
        features = self.features if features is None else features
        layout = layout or self.layout
        embeddings = self.embeddings[: layout.length].clone()
        embeddings[layout.visual.start : layout.visual.stop] = features
        return StepContext(
            features,
            layout,
            {request: shallow[request] for request in self.pruner.shallow_requests},
            instruction_key,
            step,
            embeddings,
            patches,
        )

    def step(self, step: int, **changes: object) -> StepPlan:
        context = self.context(step, **changes)  # type: ignore[arg-type]
        plan = self.pruner.plan(context)
        measured = dict(context.shallow)
        given = {**self.saliency, **(changes.get('saliency') or {})}  # type: ignore[dict-item]
        for request in self.pruner.deep_requests:
            if plan.retained is None:
                measured[request] = given[request]
            elif request.on_pruned_steps and plan.reuse is not None:
                measured[request] = given[request]  # skipped tokens are still seen
            elif request.on_pruned_steps:
                is_left = torch.zeros(self.layout.n_visual)
                is_left[plan.retained.visual_index] = 1
                measured[request] = given[request] * is_left
        attention = StepAttention(measured)
        if plan.reuse is not None:
            attention = StepAttention(measured, self.entropy, record=f'record of step {step}')
        self.pruner.observe(context, plan, attention)
        return plan


@pytest.fixture
def fake_decoder() -> type[FakeDecoder]:
    return FakeDecoder


@pytest.fixture
def n_layers() -> int:
    return N_LAYERS
