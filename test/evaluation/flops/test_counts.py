"""The analytic count against torch's own counter, operation for operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from safe_pruner_ros.core.catalog import METHODS, build_pruner
from safe_pruner_ros.evaluation.flops import scoring
from safe_pruner_ros.evaluation.flops.shapes import MODELS, Tokens
from safe_pruner_ros.evaluation.flops.step import stage_macs, step_stages
from safe_pruner_ros.evaluation.flops.work import Stack, Work, linear, macs
from safe_pruner_ros.evaluation.model_benchmark.random_models import (
    RandomModel,
    build_random_model,
    random_observations,
)

POLICIES = ('openvla', 'openvla_oft', 'pi05', 'embedded')
RATIO = 0.3
N_STEPS = {
    'safe_pruner': 2,
    'diverse_forecast': 2,
    'specprune_vla': 2,
    'vla_pruner': 4,
}  # until one is pruned


@pytest.fixture(scope='module', params=POLICIES)
def model(request: pytest.FixtureRequest) -> RandomModel:
    torch.set_num_threads(1)
    return build_random_model(request.param, 'tiny', torch.device('cpu'), torch.float32)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """torch 2.13 does not count its CPU kernel of attention."""
    return sdpa_flop_count(query, key, value)


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: _attention}) as counter:
        yield counter


def counted_macs(policy: Any, observation: Any) -> tuple[int, Any]:
    with counting() as counter:
        output = policy.predict(observation)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2, output.trace


def expected(model: RandomModel, method: str, *, is_key: bool, **settings: Any) -> int:
    pruner = build_pruner(method, model.counted.decoder.n_layers, **settings)
    stages = step_stages(
        model.counted, method, pruner.retention_ratio, is_key=is_key, pruner=pruner
    )
    return sum(stage_macs(stages).values())


@pytest.mark.parametrize('method', sorted({*scoring.METHODS} - {'vla_cache'}))
def test_equals_torch_counter(model: RandomModel, method: str) -> None:
    settings = scoring.settings_of(method, RATIO)
    if method == 'diverse_forecast':  # else it would hardly ever run in full
        settings['full_first_step'] = True
    policy = model.make_policy(method, settings)
    kinds = set()
    for observation in random_observations(policy, N_STEPS.get(method, 1)):
        found, trace = counted_macs(policy, observation)
        kinds.add(trace.is_key_timestep)
        if method in ('safe_pruner', 'diverse_forecast') and trace.is_key_timestep:
            continue  # nothing to match with yet: see the next test
        assert found == expected(model, method, is_key=trace.is_key_timestep, **settings)
    assert kinds == ({True, False} if scoring.has_keyframes(method) else {False})


@pytest.mark.parametrize('method', ['safe_pruner', 'diverse_forecast'])
def test_key_timestep_at_a_boundary(model: RandomModel, method: str) -> None:
    settings = {'retention_ratio': RATIO, 'similarity_threshold': 1.0}
    policy = model.make_policy(method, settings)
    first, second = random_observations(policy, 2)
    policy.predict(first)
    found, trace = counted_macs(policy, second)
    assert trace.keyframe_reason == 'subtask boundary'
    assert found == expected(model, method, is_key=True, **settings)


def test_vla_cache_when_everything_stands_still(model: RandomModel) -> None:
    (still,) = random_observations(model.make_policy('unpruned', {}), 1)
    for schedule in ('uniform', 'paper'):
        settings = {'retention_ratio': 0.5, 'schedule': schedule}
        policy = model.make_policy('vla_cache', settings)
        found, trace = counted_macs(policy, still)
        assert trace.is_key_timestep
        assert found == expected(model, 'vla_cache', is_key=True, **settings)
        found, trace = counted_macs(policy, still)
        assert not trace.is_key_timestep
        least = expected(model, 'vla_cache', is_key=False, **settings)
        assert found == least if schedule == 'uniform' else found >= least


def test_code_variant_asks_elsewhere(model: RandomModel) -> None:
    settings = {'retention_ratio': RATIO, 'variant': 'code', 'similarity_threshold': 0.0}
    policy = model.make_policy('safe_pruner', settings)
    first, second = random_observations(policy, 2)
    policy.predict(first)
    found, trace = counted_macs(policy, second)
    assert not trace.is_key_timestep
    assert found == expected(model, 'safe_pruner', is_key=False, **settings)


def test_vision_alone_equals_torch_counter() -> None:
    for name in ('openvla', 'openvla_oft'):
        model = build_random_model(name, 'tiny', torch.device('cpu'), torch.float32)
        policy: Any = model.make_policy('unpruned', {})
        views = len(policy.spec.views)
        with counting() as counter, torch.inference_mode():
            policy._network.encode_images(torch.zeros(views, 6, 56, 56))
        projector = model.counted.projector[:3]  # without proprioception
        assert counter.get_total_flops() == 2 * macs([*model.counted.vision, *projector])


def test_parameters_equal_those_of_the_networks(model: RandomModel) -> None:
    assert model.counted.parameters == model.parameters


@pytest.mark.parametrize('name', ['openvla', 'openvla_oft', 'pi05'])
def test_full_size_parameters(name: str) -> None:
    full = build_random_model(name, 'full', torch.device('meta'), torch.bfloat16)
    assert full.parameters == full.counted.parameters
    published = MODELS[name]()
    assert full.counted.decoder == published.decoder
    # The random OFT reads 7 joints, the published checkpoint 8 numbers of proprioception.
    assert full.counted.parameters == published.parameters - 4096 * (name == 'openvla_oft')


def test_methods_without_a_count_are_named() -> None:
    assert {*scoring.METHODS, *scoring.NOT_COUNTED} == set(METHODS)
    assert {'unpruned', 'safe_pruner', 'fastv', 'vla_pruner'} <= set(scoring.METHODS)
    with pytest.raises(ValueError, match="no count for the method 'magic'"):
        scoring.check_counted('magic')


def test_operations() -> None:
    assert linear(3, 5, 7) == Work(105, 35)
    stack = Stack(2, 8, 32, n_heads=4, n_kv_heads=1, head_dim=4)
    # q 8x16, k and v 8x4, o 16x8, three of the MLP 8x32; attention 2 x 3 x 10 x 16
    assert macs(stack.layer(3, keys=10)) == 3 * (128 + 32 + 32 + 128 + 768) + 960
    tokens = Tokens(visual=10, other=5, text=3, action=2, before_action=12)
    assert [tokens.rows(q) for q in ('action', 'last', 'text', 'prefill')] == [2, 1, 3, 12]
