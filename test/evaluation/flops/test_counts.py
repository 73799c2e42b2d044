"""The analytic count against torch's own counter, operation for operation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from safe_pruner_ros.core.catalog import METHODS, build_pruner
from safe_pruner_ros.evaluation.flops import scoring
from safe_pruner_ros.evaluation.flops.policy_scoring import counted_model, scoring_counter
from safe_pruner_ros.evaluation.flops.shapes import MODELS, Tokens, embedded
from safe_pruner_ros.evaluation.flops.step import stage_macs, step_stages
from safe_pruner_ros.evaluation.flops.work import Stack, Work, linear, macs
from safe_pruner_ros.evaluation.macs import macs_counter
from safe_pruner_ros.evaluation.model_benchmark.random_models import (
    RandomModel,
    build_random_model,
    random_observations,
)
from safe_pruner_ros.policies.catalog import CAUSAL
from safe_pruner_ros.policies.embedded import EmbeddedPolicy, load_weights
from safe_pruner_ros.policies.embedded_model import PAD_WORD, EmbeddedConfig, EmbeddedVLA
from safe_pruner_ros.policies.policy import Policy, PruningTrace

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
    causal = model.counted.name in CAUSAL
    pruner = build_pruner(method, model.counted.decoder.n_layers, causal=causal, **settings)
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
        settings = {'retention_ratio': 0.5, 'schedule': schedule, 'relevant_share': 0.0}
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


# What an episode is made of: a first step with nothing to match with, pruned steps, a boundary or
# a renewal; settings that leave matching out or measure distances in each view alone.
EPISODES = [
    ('unpruned', {}),
    ('random', {'retention_ratio': RATIO}),
    ('divprune', {'retention_ratio': RATIO, 'quota_scope': 'per_view'}),
    ('vla_pruner', {'retention_ratio': RATIO, 'warm_up_steps': 1}),
    ('specprune_vla', {'retention_ratio': RATIO}),
    ('safe_pruner', {'retention_ratio': RATIO, 'max_keyframe_age': 1}),
    ('safe_pruner', {'retention_ratio': RATIO, 'forecast': False}),
    ('safe_pruner', {'retention_ratio': RATIO, 'variant': 'code', 'keyframe_interval': 2}),
    ('diverse_forecast', {'retention_ratio': RATIO, 'similarity_threshold': 0.0}),
    ('diverse_forecast', {'retention_ratio': RATIO, 'similarity_threshold': 1.0}),
    ('diverse_forecast', {'retention_ratio': RATIO, 'quota_scope': 'per_view'}),
    ('diverse_forecast', {'retention_ratio': RATIO, 'forecast': False, 'certain': 1.0}),
    ('diverse_forecast', {'retention_ratio': RATIO, 'max_keyframe_age': 1}),
    ('vla_cache', {'retention_ratio': 0.5, 'schedule': 'code'}),
    ('vla_cache', {'retention_ratio': 0.5, 'schedule': 'paper', 'pruning_layer': 4}),
]


@pytest.fixture(scope='module')
def small() -> RandomModel:
    torch.set_num_threads(1)
    return build_random_model('embedded', 'tiny', torch.device('cpu'), torch.float32)


@pytest.mark.parametrize(('method', 'settings'), EPISODES)
def test_every_step_of_an_episode_is_counted(
    small: RandomModel, method: str, settings: dict[str, Any]
) -> None:
    """Decoder and scoring, read off each step's trace, are all that differs between steps."""
    policy = small.make_policy(method, settings)
    decoder = macs_counter(policy, method, settings)
    choosing = scoring_counter(policy, method, settings)
    assert decoder and choosing
    stages = step_stages(small.counted, 'unpruned', 1.0, is_key=False)
    others = sum(macs(stages[name]) for name in ('vision', 'projector', 'head'))
    first, second = random_observations(policy, 2)
    for observation in (first, first, second, second):
        found, trace = counted_macs(policy, observation)
        assert found == others + decoder(trace) + choosing(trace), trace.keyframe_reason


def test_scoring_by_hand(small: RandomModel) -> None:
    """215 tokens, 192 of them visual, before the 8 action rows 206; width 128, 4 layers asked."""
    d, visual, tokens, rows, action = 128, 192, 215, 206, 8

    def count(method: str, *, is_key: bool = False, **settings: Any) -> float:
        settings |= {} if method == 'unpruned' else {'retention_ratio': 0.25}
        counter = scoring_counter(small.make_policy(method, settings), method, settings)
        assert counter
        saliency = np.ones(visual, np.float32)
        trace = PruningTrace(
            method, 0.25, visual, np.arange(48), is_key, '', 1.0, 0.0, 1, forecast=saliency
        )
        return counter(trace)

    assert count('random') == count('unpruned') == 0
    early = rows * d * d + rows * d * tokens
    assert count('fastv') == early == 9_044_224
    pairs = visual * d * visual
    assert count('divprune') == pairs == 4_718_592
    deep = [action * d * d + action * d * tokens] * 3
    kept = tokens - visual + 48  # layers from the pruning layer on have lost the others' keys
    shallow, pruned = deep[0], action * d * d + action * d * kept
    assert count('diverse_forecast', is_key=True) == early + sum(deep) + pairs
    assert count('diverse_forecast') == early + shallow + 2 * pruned + 3 * pairs == 23_958_784


def test_counted_tokens_are_those_of_the_policy() -> None:
    model = counted_model(EmbeddedPolicy(load_weights(), 'unpruned'))
    longest = embedded(n_words=12)
    assert model and (model.tokens, model.decoder) == (longest.tokens, longest.decoder)
    config = EmbeddedConfig(
        ('head', 'wrist'), ('a', 'g'), ('g',), (PAD_WORD, 'go'), width=32, mlp_width=48,
        n_layers=3, n_heads=2, grid=4, max_words=5, chunk_size=6,
    )  # fmt: skip
    policy = EmbeddedPolicy(EmbeddedVLA(config), 'unpruned')
    model = counted_model(policy)
    assert model and model.tokens == Tokens(32, 1 + 1 + 5 + 6 + 1, 5, 6, 1 + 32 + 1 + 5, 2)
    assert model.tokens.length == policy.model.layout.length and model.decoder.n_layers == 3


def test_a_policy_of_unknown_shape_has_no_count() -> None:
    assert scoring_counter(cast('Policy', object()), 'random', {}) is None


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
    tokens = Tokens(visual=10, other=5, text=3, action=2, prompt=12)
    assert [tokens.rows(q) for q in ('action', 'last', 'text', 'prefill')] == [2, 1, 3, 12]
