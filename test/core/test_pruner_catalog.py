"""The shared matrix: what every method must do, whatever it ranks by. New methods join by being
in the catalog."""

import math

import pytest
import torch

from safe_pruner_ros.core.catalog import METHODS, accepted_settings, build_pruner
from safe_pruner_ros.core.selection import n_retained

RATIOS = [0.05, 0.1, 0.3, 0.5, 0.9, 1.0]
PRUNING_METHODS = [method for method in METHODS if method != 'unpruned']


def build(method, ratio, n_layers, **settings):
    if 'retention_ratio' in accepted_settings(method):
        settings['retention_ratio'] = ratio
    return build_pruner(method, n_layers, **settings)


@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('method', METHODS)
def test_ascending_unique_and_counted(method, ratio, layout, fake_decoder, n_layers):
    decoder = fake_decoder(build(method, ratio, n_layers), layout)
    plans = [decoder.step(step) for step in range(4)]
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
    for step in range(3):
        plans = first.step(step), second.step(step)
        assert retained(plans[0]) == retained(plans[1])


@pytest.mark.parametrize('method', METHODS)
def test_planning_changes_nothing(method, layout, fake_decoder, n_layers):
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    for step in range(3):
        context = decoder.context(step)
        plans = [decoder.pruner.plan(context) for _ in range(3)]
        assert retained(plans[0]) == retained(plans[1]) == retained(plans[2])
        assert plans[0].keyframe == plans[1].keyframe == plans[2].keyframe
        decoder.step(step)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0])
@pytest.mark.parametrize('method', [m for m in PRUNING_METHODS if m != 'random'])
def test_unusable_saliency_keeps_every_token(method, bad, layout, fake_decoder, n_layers):
    decoder = fake_decoder(build(method, 0.3, n_layers), layout)
    decoder.step(0)
    request = decoder.pruner.shallow_requests[0]
    broken = decoder.saliency[request].clone()
    broken[:] = bad
    if bad:
        broken[3:] = 0.5
    plan = decoder.step(1, saliency={request: broken})
    assert plan.retained is None
    assert 'every token kept' in plan.fallback
    assert decoder.step(2).retained is not None


@pytest.mark.parametrize('method', [m for m in PRUNING_METHODS if m != 'random'])
def test_permuting_visual_tokens_permutes_the_retained_set(method, layout, fake_decoder, n_layers):
    """A pruner ranks tokens by what they are, not by where they are."""
    plain = fake_decoder(build(method, 0.3, n_layers), layout)
    moved = fake_decoder(build(method, 0.3, n_layers), layout)
    order = torch.randperm(layout.n_visual, generator=torch.Generator().manual_seed(5))
    moved.features = plain.features[order]
    moved.saliency = {request: value[order] for request, value in plain.saliency.items()}
    plain.step(0), moved.step(0)
    kept, kept_after_move = retained(plain.step(1)), retained(moved.step(1))
    assert sorted(order[kept_after_move].tolist()) == kept


@pytest.mark.parametrize('method', METHODS)
def test_only_methods_with_keyframes_report_a_threshold(method, n_layers):
    threshold = build_pruner(method, n_layers).similarity_threshold
    assert math.isnan(threshold) == (method != 'safe_pruner')


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


@pytest.mark.parametrize('queries', ['last', 'action', 'text'])
def test_fastv_ranks_by_the_layer_before_the_pruning_layer(
    queries, layout, fake_decoder, n_layers
):
    pruner = build('fastv', 0.25, n_layers, pruning_layer=2, queries=queries)
    (request,) = pruner.shallow_requests
    assert (request.layer, request.queries) == (1, queries)
    decoder = fake_decoder(pruner, layout)
    expected = decoder.saliency[request].topk(5).indices.sort().values.tolist()
    assert retained(decoder.step(0)) == expected


@pytest.mark.parametrize(
    ('method', 'settings', 'message'),
    [
        ('safe_prune', {}, "unknown pruning method 'safe_prune'; choose from"),
        ('fastv', {'alpha': 0.5}, r"has no setting \['alpha'\]; it takes"),
        ('fastv', {'retention_ratio': 1.4}, r'must be in \(0, 1\], got 1.4; use 1.0 to disable'),
        ('fastv', {'retention_ratio': 0.0}, r'must be in \(0, 1\], got 0.0'),
        ('fastv', {'retention_ratio': float('nan')}, r'must be in \(0, 1\], got nan'),
        ('fastv', {'pruning_layer': 0}, r'must be in \[1, 7\].*got 0'),
        ('fastv', {'queries': 'all'}, "queries must be one of .* got 'all'"),
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
    ],
)
def test_wrong_settings_are_named(method, settings, message, n_layers):
    with pytest.raises(ValueError, match=message):
        build_pruner(method, n_layers, **settings)


def retained(plan):
    return None if plan.retained is None else plan.retained.visual_index.tolist()
