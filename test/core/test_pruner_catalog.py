"""The shared matrix: what every method must do, whatever it ranks by. New methods join by being
in the catalog."""

import math

import pytest
import torch

from safe_pruner_ros.core.catalog import (
    METHODS,
    accepted_settings,
    build_pruner,
    resolved_settings,
)
from safe_pruner_ros.core.pruner import KeyframeReason
from safe_pruner_ros.core.selection import n_retained

RATIOS = [0.05, 0.1, 0.3, 0.5, 0.9, 1.0]
WARM = 4  # from this step of an episode on, every method has seen enough to prune
PRUNING_METHODS = [method for method in METHODS if method != 'unpruned']
# Who reads shallow attention: the others rank by nothing, by features, or by an earlier step.
ASKING = ['fastv', 'sparsevlm', 'vla_pruner', 'specprune_vla', 'safe_pruner', 'diverse_forecast']
REMEMBERING = ['vla_cache', 'vla_pruner', 'specprune_vla', 'safe_pruner', 'diverse_forecast']


def build(method, ratio, n_layers, **settings):
    if 'retention_ratio' in accepted_settings(method):
        settings['retention_ratio'] = ratio
    if method == 'vla_cache':  # its layers may skip less than the ratio says; here they do not
        settings.setdefault('schedule', 'uniform')
        settings.setdefault('relevant_share', 0.0)
    return build_pruner(method, n_layers, **settings)


@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('method', METHODS)
def test_ascending_unique_and_counted(method, ratio, layout, fake_decoder, n_layers):
    decoder = fake_decoder(build(method, ratio, n_layers), layout)
    plans = [decoder.step(step) for step in range(6)]
    assert decoder.pruner.method == method
    if method == 'unpruned':
        assert all(plan.retained is None for plan in plans)
        return
    assert plans[-1].retained is not None
    for plan in plans:
        assert not plan.fallback
        if plan.retained is None:
            assert plan.keyframe is not None
            continue
        index = plan.retained.visual_index
        assert len(index) == n_retained(layout.n_visual, ratio)
        assert (index[1:] > index[:-1]).all()
        assert index[0] >= 0 and index[-1] < layout.n_visual
        if ratio == 1.0:
            assert index.tolist() == list(range(layout.n_visual))


@pytest.mark.parametrize('method', METHODS)
def test_equal_inputs_give_equal_plans(method, layout, fake_decoder, n_layers):
    first, second = (fake_decoder(build(method, 0.3, n_layers), layout, seed=4) for _ in range(2))
    for step in range(WARM + 2):
        plans = first.step(step), second.step(step)
        assert retained(plans[0]) == retained(plans[1])
    assert (plans[0].retained is None) == (method == 'unpruned')


@pytest.mark.parametrize('method', METHODS)
def test_planning_changes_nothing(method, layout, fake_decoder, n_layers):
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    for step in range(WARM + 2):
        context = decoder.context(step)
        plans = [decoder.pruner.plan(context) for _ in range(3)]
        assert retained(plans[0]) == retained(plans[1]) == retained(plans[2])
        assert plans[0].keyframe == plans[1].keyframe == plans[2].keyframe
        decoder.step(step)
    assert (plans[0].retained is None) == (method == 'unpruned')


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0])
@pytest.mark.parametrize('method', ASKING)
def test_unusable_saliency_keeps_every_token(method, bad, layout, fake_decoder, n_layers):
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    for step in range(WARM):
        assert not decoder.step(step).fallback
    for request in decoder.pruner.shallow_requests:
        broken = torch.full_like(decoder.saliency[request], bad)
        if bad:
            broken[..., 3:] = 0.5
        plan = decoder.step(WARM, saliency={request: broken})
        assert plan.retained is None
        assert 'every token kept' in plan.fallback
    assert decoder.step(WARM + 1).retained is not None


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('method', REMEMBERING)
def test_unusable_deep_saliency_is_not_pruned_by(method, bad, layout, fake_decoder, n_layers):
    """A memory with a gap would forecast from an older step than it takes it for."""
    decoder, healthy = (fake_decoder(build(method, 0.3, n_layers), layout) for _ in range(2))
    # From the full first step on, as SAFE-Pruner reads deep layers in full steps only.
    for lane in (decoder, healthy):
        for step in range(WARM):
            lane.step(step)
        lane.pruner.force_keyframe()
    late = [r for r in decoder.pruner.deep_requests if r not in decoder.pruner.shallow_requests]
    broken = {request: torch.full((layout.n_visual,), bad) for request in late}
    decoder.step(WARM, saliency=broken)
    for step in (WARM + 1, WARM + 2):
        assert decoder.step(step, saliency=broken).retained is None
    assert decoder.step(WARM + 3).retained is None  # nothing but broken steps before it
    assert decoder.step(WARM + 4).retained is not None
    healthy.step(WARM)
    assert healthy.step(WARM + 1).retained is not None


@pytest.mark.parametrize('method', [m for m in REMEMBERING if m != 'safe_pruner'])
def test_unusable_deep_saliency_of_a_pruned_step_is_followed_by_a_full_one(
    method, layout, fake_decoder, n_layers
):
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    for step in range(WARM):
        decoder.step(step)
    late = [r for r in decoder.pruner.deep_requests if r not in decoder.pruner.shallow_requests]
    broken = {request: torch.full((layout.n_visual,), float('nan')) for request in late}
    assert decoder.step(WARM, saliency=broken).retained is not None  # it cannot know yet
    assert decoder.step(WARM + 1).retained is None
    assert decoder.step(WARM + 2).retained is not None


def test_every_method_that_asks_for_attention_is_tested_for_it(n_layers):
    asking = [m for m in METHODS if build_pruner(m, n_layers).shallow_requests]
    assert sorted(asking) == sorted(ASKING)


@pytest.mark.parametrize(
    'method',
    ['divprune', 'vla_cache', 'vla_pruner', 'specprune_vla', 'safe_pruner', 'diverse_forecast'],
)
def test_features_that_are_not_finite_keep_every_token(method, layout, fake_decoder, n_layers):
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    for step in range(WARM):
        decoder.step(step)
    broken = decoder.features.clone()
    broken[7, 2] = float('nan')
    plan = decoder.step(WARM, features=broken)
    assert plan.retained is None
    assert 'every token kept' in plan.fallback
    assert decoder.step(WARM + 1).retained is not None


@pytest.mark.parametrize('scope', ['joint', 'per_view'])
@pytest.mark.parametrize('blank', [0.0, 1.0])
@pytest.mark.parametrize('method', PRUNING_METHODS)
def test_blank_views_and_equal_saliency_still_give_the_stated_number(
    method, blank, scope, layout, fake_decoder, n_layers
):
    """A covered camera: tokens without features, or all alike, that nobody tells apart."""
    decoder = fake_decoder(build(method, 0.3, n_layers, quota_scope=scope), layout)
    decoder.features = torch.full_like(decoder.features, blank)
    decoder.saliency = {k: torch.full_like(v, 0.02) for k, v in decoder.saliency.items()}
    for step in range(WARM + 2):
        plan = decoder.step(step)
        if plan.retained is not None:
            index = plan.retained.visual_index
            assert (index[1:] > index[:-1]).all() and len(index) == 6
            assert index[0] >= 0 and index[-1] < layout.n_visual
    assert plan.retained is not None


@pytest.mark.parametrize('method', [m for m in METHODS if m != 'random'])
def test_an_episode_starts_from_nothing(method, layout, fake_decoder, n_layers):
    """After a reset everything repeats itself; random draws anew in each episode by design."""
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    fresh = [retained(decoder.step(step)) for step in range(WARM + 2)]
    other = fake_decoder(decoder.pruner, layout, seed=9)
    decoder.pruner.reset()
    for step in range(WARM + 2):
        other.step(step)
    decoder.pruner.reset()
    assert [retained(decoder.step(step)) for step in range(WARM + 2)] == fresh


@pytest.mark.parametrize('method', METHODS)
def test_a_forced_key_timestep_is_full_once_if_the_method_remembers(
    method, layout, fake_decoder, n_layers
):
    """It waits for a step that ends well; a reset lifts it."""
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    fresh = [retained(decoder.step(step)) for step in range(WARM + 1)]
    decoder.pruner.force_keyframe()
    if method in REMEMBERING:
        broken = decoder.features * float('nan')
        assert decoder.step(WARM + 1, features=broken).fallback
        assert decoder.step(WARM + 2).keyframe is KeyframeReason.FORCED
    assert (decoder.step(WARM + 3).retained is None) == (method == 'unpruned')
    decoder.pruner.force_keyframe()
    decoder.pruner.reset()
    if method != 'random':  # which draws anew in each episode
        assert [retained(decoder.step(step)) for step in range(WARM + 1)] == fresh


@pytest.mark.parametrize('method', [m for m in PRUNING_METHODS if m != 'random'])
def test_permuting_visual_tokens_permutes_the_retained_set(method, layout, fake_decoder, n_layers):
    """A pruner ranks tokens by what they are, not by where they are. Things move a little: that
    all are equally still tells VLA-Cache nothing."""
    plain, moved = (
        fake_decoder(build(method, 0.3, n_layers, quota_scope='joint'), layout) for _ in range(2)
    )
    order = torch.randperm(layout.n_visual, generator=torch.Generator().manual_seed(5))
    for key, value in plain.saliency.items():
        moved.saliency[key] = value[..., order]
    moved.embeddings = plain.embeddings
    for step in range(WARM + 1):
        noise = torch.randn(20, 16, generator=torch.Generator().manual_seed(step))
        features = plain.features + 0.02 * noise
        kept = retained(plain.step(step, features=features))
        kept_after_move = retained(moved.step(step, features=features[order]))
    assert sorted(order[kept_after_move].tolist()) == kept


@pytest.mark.parametrize('method', METHODS)
def test_only_methods_with_keyframes_report_a_threshold(method, n_layers):
    threshold = build_pruner(method, n_layers).similarity_threshold
    assert math.isnan(threshold) == (method not in ('safe_pruner', 'diverse_forecast'))


def test_random_differs_by_seed_episode_and_step_and_respects_view_quotas(
    layout, fake_decoder, n_layers
):
    def sets(seed):
        decoder = fake_decoder(build('random', 0.4, n_layers, seed=seed), layout)
        before = [retained(decoder.step(step)) for step in range(3)]
        decoder.pruner.reset()
        return before + [retained(decoder.step(step)) for step in range(3)]

    drawn = sets(0) + sets(1)
    assert len({tuple(kept) for kept in drawn}) == len(drawn)
    assert sets(0) == sets(0)
    for kept in drawn:
        assert sum(index < 12 for index in kept) == 5  # round(0.4 * 20) = 8, as 12 : 8


def test_random_does_not_touch_the_global_generator(layout, fake_decoder, n_layers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fake_decoder(build('random', 0.4, n_layers), layout).step(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize('queries', ['last', 'action', 'text', 'prefill'])
def test_fastv_ranks_by_the_layer_before_the_pruning_layer(queries, n_layers):
    pruner = build('fastv', 0.25, n_layers, pruning_layer=2, queries=queries)
    (request,) = pruner.shallow_requests
    assert (request.layer, request.queries) == (1, queries)
    assert build('fastv', 0.25, n_layers).shallow_requests[0].queries == 'prefill'


ASKED = {'fastv': 'queries', 'vla_pruner': 'semantic_queries', 'diverse_forecast': 'early_queries'}


@pytest.mark.parametrize('method', METHODS)
def test_defaults_of_a_causal_decoder(method, n_layers):
    """Only where nobody says who is asked, and nothing else changes."""
    plain, causal = (resolved_settings(method, {}, causal=causal) for causal in (False, True))
    name = ASKED.get(method)
    if name is None:
        assert causal == plain
        return
    assert plain[name] == 'prefill' and causal == {**plain, name: 'last'}
    for is_causal, said, queries in [
        (False, {}, 'prefill'), (True, {}, 'last'),
        (True, {name: 'prefill'}, 'prefill'), (False, {name: 'text'}, 'text'),
    ]:  # fmt: skip
        (request,) = build_pruner(method, n_layers, causal=is_causal, **said).shallow_requests
        assert (request.layer, request.queries) == (2, queries)


@pytest.mark.parametrize(
    ('method', 'settings', 'message'),
    [
        ('safe_prune', {}, "unknown pruning method 'safe_prune'; choose from"),
        ('fastv', {'alpha': 0.5}, r"has no setting \['alpha'\]; it takes"),
        ('fastv', {'retention_ratio': 1.4}, r'must be in \(0, 1\], got 1.4; use 1.0 to disable'),
        ('fastv', {'retention_ratio': 0.0}, r'must be in \(0, 1\], got 0.0'),
        (
            'fastv',
            {'retention_ratio': float('nan')},
            r'retention_ratio must be a finite number, got nan',
        ),
        ('fastv', {'pruning_layer': 0}, r'must be in \[1, 7\].*got 0'),
        ('fastv', {'queries': 'all'}, "queries must be one of .* got 'all'"),
        ('vla_pruner', {'semantic_queries': 'all'}, "semantic_queries must be one of .* 'all'"),
        (
            'vla_cache',
            {'static_threshold': 1.5},
            r'static_threshold must be in \[-1, 1\], got 1.5',
        ),
        ('vla_cache', {'static_threshold': float('nan')}, 'got nan'),
        ('vla_cache', {'relevant_share': -0.1}, r'relevant_share must be in \[0, 1\], got -0.1'),
        ('vla_cache', {'schedule': 'linear'}, "schedule must be one of .* got 'linear'"),
        ('vla_cache', {'schedule_gain': -1}, 'schedule_gain must be at least 0, got -1'),
        ('vla_cache', {'deep_layers': (8,)}, 'decoder of 8 layers, got 8'),
        ('random', {'pruning_layer': 8}, r'must be in \[0, 7\].*got 8'),
        ('random', {'seed': -1}, 'seed must be at least 0, got -1'),
        ('safe_pruner', {'similarity_threshold': 1.5}, r'must be in \[0, 1\], got 1.5'),
        ('safe_pruner', {'similarity_threshold': float('nan')}, 'got nan'),
        ('safe_pruner', {'alpha': -0.1}, r'alpha must be in \[0, 1\], got -0.1'),
        ('safe_pruner', {'variant': 'exact'}, "variant must be one of .* got 'exact'"),
        ('safe_pruner', {'norm': 'l2'}, "norm must be one of .* got 'l2'"),
        ('safe_pruner', {'match_scope': 'view'}, "match_scope must be one of .* got 'view'"),
        ('safe_pruner', {'quota_scope': 'view'}, "quota_scope must be one of .* got 'view'"),
        ('safe_pruner', {'max_keyframe_age': -1}, 'max_keyframe_age must be at least 0, got -1'),
        ('safe_pruner', {'keyframe_interval': -4}, 'keyframe_interval must be at least 0'),
        ('safe_pruner', {'deep_layers': (0, 8)}, 'decoder of 8 layers, got 8'),
        ('safe_pruner', {'deep_layers': ()}, 'at least one layer'),
        ('safe_pruner', {'deep_layers': (99,), 'forecast': False}, 'of 8 layers, got 99'),
        (
            'safe_pruner',
            {'variant': 'code', 'alpha': 0.3},
            "alpha has no effect in variant 'code', which weighs by deep_weight, got 0.3; "
            'leave it at 0.5',
        ),
        (
            'safe_pruner',
            {'variant': 'code', 'deep_weight': math.inf},
            'deep_weight must be a finite number, got inf',
        ),
        (
            'safe_pruner',
            {'variant': 'code', 'deep_weight': math.nan},
            'deep_weight must be a finite number, got nan',
        ),
        (
            'vla_cache',
            {'schedule': 'paper', 'schedule_gain': math.inf},
            'schedule_gain must be a finite number, got inf',
        ),
        ('safe_pruner', {'deep_weight': 2.0}, "deep_weight has no effect in variant 'paper'"),
        ('diverse_forecast', {'deep_weight': 2.0}, 'which weighs by alpha, got 2.0'),
        ('vla_cache', {'schedule_gain': 2.0}, "schedule_gain has no effect in schedule 'code'"),
        ('vla_cache', {'schedule': 'uniform', 'schedule_gain': 0}, 'no effect in schedule'),
    ],
)
def test_wrong_settings_are_named(method, settings, message, n_layers):
    with pytest.raises(ValueError, match=message):
        build_pruner(method, n_layers, **settings)


@pytest.mark.parametrize(
    ('method', 'settings'),
    [
        ('safe_pruner', {'forecast': False, 'norm': 'l1', 'similarity_threshold': 0.5}),
        ('safe_pruner', {'forecast': False, 'alpha': 0.2, 'max_keyframe_age': 8}),
        ('safe_pruner', {'keyframe_interval': 4, 'similarity_threshold': 0.5}),
        ('diverse_forecast', {'forecast': False, 'similarity_threshold': 0.75, 'certain': 0.5}),
        ('safe_pruner', {'variant': 'code', 'deep_weight': 2.0, 'alpha': 0.5}),
        ('vla_cache', {'schedule': 'paper', 'schedule_gain': 2.0}),
    ],
)
def test_a_configured_method_may_be_switched_to_an_ablation(method, settings, n_layers):
    build_pruner(method, n_layers, **settings)


def retained(plan):
    return None if plan.retained is None else plan.retained.visual_index.tolist()
