"""Which decoders are causal, and what methods ask of them when nobody says whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_llama import LAYOUT, N_LAYERS, POSITIONS, llama, run_llama

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.evaluation.model_benchmark.random_models import (
    build_random_model,
    random_observations,
)
from safe_pruner_ros.policies import embedded
from safe_pruner_ros.policies.catalog import CAUSAL
from safe_pruner_ros.policies.pruned_decoder import run_pruned


@pytest.mark.parametrize('name', ['embedded', 'openvla', 'openvla_oft', 'pi05'])  # cogact: there
def test_what_a_policy_says_of_its_decoder_is_how_it_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    model = build_random_model(name, 'tiny', torch.device('cpu'), torch.float32)
    policy: Any = model.make_policy('fastv', {'retention_ratio': 0.3})
    ran = []

    def run(*arguments: Any, **how: Any) -> Any:
        ran.append(how.get('causal', False))
        return run_pruned(*arguments, **how)

    policy.run_decoder = run
    monkeypatch.setattr(embedded, 'run_pruned', run)  # has no such seam
    policy.predict(random_observations(policy, 1)[0])
    assert ran == [policy.causal] == [name in CAUSAL]
    (request,) = policy._pruner.shallow_requests
    assert request.queries == ('last' if policy.causal else 'prefill')
    policy.update_pruner(queries='text')
    assert policy._pruner.shallow_requests[0].queries == 'text'


@pytest.mark.parametrize('method', ['fastv', 'vla_pruner', 'diverse_forecast'])
def test_noise_is_not_kept_for_its_place(method: str) -> None:
    """Tokens that differ by nothing but their order: a mean over all rows of a causal decoder
    keeps the first, as more rows see them."""
    model, settings = llama(), {'retention_ratio': 0.25}
    settings |= {'warm_up_steps': 0} if method == 'vla_pruner' else {}
    settings |= {'certain': 1.0} if method == 'diverse_forecast' else {}
    name = {'fastv': '', 'vla_pruner': 'semantic_', 'diverse_forecast': 'early_'}[method]

    def share_of_first_half(**said: Any) -> float:
        kept = []
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(1, LAYOUT.length, model.config.hidden_size, generator=generator)
            pruner = build_pruner(method, N_LAYERS, causal=True, **settings, **said)
            out = run_llama(model, pruner, noise, POSITIONS, causal=True)
            kept.append(out.plan.retained.visual_index < LAYOUT.n_visual // 2)
        return float(torch.cat(kept).float().mean())

    assert share_of_first_half(**{f'{name}queries': 'prefill'}) > 0.8
    assert 0.3 < share_of_first_half() < 0.7
