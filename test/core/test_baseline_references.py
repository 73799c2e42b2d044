"""Each baseline against its formula, written out in loops over plain numbers."""

import math
import weakref

import pytest
import torch
from helpers.plain import cosine, mean, most_diverse, top

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.pruner import KeyframeReason, SaliencyRequest
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid

CASES = [(seed, scope) for seed in range(5) for scope in ('joint', 'per_view')]
RATIO = 0.4  # 8 of 20 tokens, by view 5 of 12 and 3 of 8
EVERY_CASE = pytest.mark.parametrize(('seed', 'scope'), CASES)


def groups(scope):
    if scope == 'joint':
        return [(list(range(20)), 8)]
    return [(list(range(12)), 5), (list(range(12, 20)), 3)]


def retained(plan):
    return None if plan.retained is None else plan.retained.visual_index.tolist()


def build(fake_decoder, layout, n_layers, method, seed, scope, **settings):
    pruner = build_pruner(method, n_layers, retention_ratio=RATIO, quota_scope=scope, **settings)
    return fake_decoder(pruner, layout, seed)


@EVERY_CASE
def test_divprune(seed, scope, layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, 'divprune', seed, scope)
    features = decoder.features.tolist()
    expected = [i for members, n in groups(scope) for i in most_diverse(features, members, n)]
    assert retained(decoder.step(0)) == sorted(expected)
    assert decoder.pruner.pruning_layer == 0


@EVERY_CASE
@pytest.mark.parametrize('queries', ['last', 'action', 'text', 'prefill'])
def test_fastv(seed, scope, queries, layout, fake_decoder, n_layers):
    decoder = build(
        fake_decoder, layout, n_layers, 'fastv', seed, scope, pruning_layer=2, queries=queries
    )
    saliency = decoder.saliency[SaliencyRequest(1, queries)].tolist()
    expected = [i for members, n in groups(scope) for i in top(saliency, members, n)]
    assert retained(decoder.step(0)) == sorted(expected)


@pytest.mark.parametrize('scope', ['joint', 'per_view'])
def test_random_draws_each_token_as_often(scope, layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, 'random', 0, scope)
    n_draws = 2000
    drawn = [index for step in range(n_draws) for index in retained(decoder.step(step))]
    for members, n in groups(scope):
        share = n / len(members)
        tolerance = 4 * math.sqrt(share * (1 - share) / n_draws)  # four standard deviations
        for index in members:
            assert abs(drawn.count(index) / n_draws - share) < tolerance


@EVERY_CASE
def test_sparsevlm(seed, scope, layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, 'sparsevlm', seed, scope)
    visual, text = decoder.features.tolist(), decoder.embeddings[21:25].tolist()
    shares = []
    for image_token in visual:
        dots = [sum(x * y for x, y in zip(image_token, word, strict=True)) for word in text]
        exponents = [math.exp(dot - max(dots)) for dot in dots]
        shares.append([e / sum(exponents) for e in exponents])
    relevance = mean(shares)
    raters = [j for j in range(4) if relevance[j] >= sum(relevance) / 4]
    assert 0 < len(raters) < 4
    rows = decoder.saliency[SaliencyRequest(2, 'text', per_query=True)].tolist()
    saliency = mean([rows[j] for j in raters])
    expected = [i for members, n in groups(scope) for i in top(saliency, members, n)]
    assert retained(decoder.step(0)) == sorted(expected)


def test_sparsevlm_lets_equal_words_rate_together(layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, 'sparsevlm', 0, 'joint')
    decoder.embeddings[21:25] = decoder.embeddings[21]
    rows = decoder.saliency[SaliencyRequest(2, 'text', per_query=True)]
    expected = top(rows.mean(dim=0).tolist(), range(20), 8)
    assert retained(decoder.step(0)) == sorted(expected)


@EVERY_CASE
def test_vla_pruner(seed, scope, layout, fake_decoder, n_layers):
    """Eight steps whose attention changes; the history holds zeros where tokens had left."""
    decoder = build(fake_decoder, layout, n_layers, 'vla_pruner', seed, scope)
    features, history = decoder.features.tolist(), []
    for step in range(8):
        episode = fake_decoder(decoder.pruner, layout, 100 * seed + step).saliency
        semantic = episode[SaliencyRequest(2, 'prefill')].tolist()
        latest = list(reversed(history))[:3]
        weights = [0.8 ** (age + 1) for age in range(len(latest))]
        expected = []
        for members, n in groups(scope):
            pool = set(top(semantic, members, n))
            if latest:
                ahead = [
                    sum(w * s[i] for w, s in zip(weights, latest, strict=True)) / sum(weights)
                    for i in range(20)
                ]
                pool |= set(top(ahead, members, n))
            expected += most_diverse(features, sorted(pool), n)
        plan = decoder.step(step, saliency=episode)
        if step < 3:
            assert retained(plan) is None and plan.keyframe is KeyframeReason.WARM_UP
            expected = list(range(20))
        else:
            assert retained(plan) == sorted(expected) and plan.keyframe is None
        action = mean(
            [episode[SaliencyRequest(layer, 'action')].tolist() for layer in (4, 5, 6, 7)]
        )
        history.append([a if i in expected else 0.0 for i, a in enumerate(action)])


def test_vla_pruner_without_warm_up_starts_with_the_semantic_term(layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, 'vla_pruner', 0, 'joint', warm_up_steps=0)
    semantic = decoder.saliency[SaliencyRequest(2, 'prefill')].tolist()
    assert retained(decoder.step(0)) == sorted(top(semantic, range(20), 8))


@pytest.mark.parametrize(('warm_up', 'w', 'n_full'), [(0, 3, 0), (2, 3, 2), (3, 3, 3), (5, 2, 2)])
def test_vla_pruner_runs_in_full_until_enough_is_remembered(
    warm_up, w, n_full, layout, fake_decoder, n_layers
):
    settings = {'warm_up_steps': warm_up, 'history_steps': w}
    decoder = build(fake_decoder, layout, n_layers, 'vla_pruner', 0, 'joint', **settings)

    def is_full(steps, **changes):
        plans = [decoder.step(step, **changes) for step in steps]
        reasons = {plan.keyframe for plan in plans if plan.retained is None}
        assert reasons <= {KeyframeReason.WARM_UP}
        return [plan.retained is None for plan in plans]

    expected = [True] * n_full + [False] * (6 - n_full)
    assert is_full(range(6)) == expected
    # The memory belongs to its instruction: another one starts from nothing.
    assert is_full(range(6, 12), instruction_key='open the drawer') == expected


def test_vla_pruner_does_not_count_a_warm_up_step_that_left_nothing(
    layout, fake_decoder, n_layers
):
    decoder = build(fake_decoder, layout, n_layers, 'vla_pruner', 0, 'joint')
    unusable = {SaliencyRequest(layer, 'action'): torch.zeros(20) for layer in (4, 5, 6, 7)}
    decoder.step(0, saliency=unusable)
    plans = [decoder.step(step) for step in range(1, 5)]
    assert [plan.retained is None for plan in plans] == [True, True, True, False]


@pytest.mark.parametrize('pictures', ['patches', 'features'])
@pytest.mark.parametrize('lookback', [1, 2])
@EVERY_CASE
def test_specprune_vla(seed, scope, lookback, pictures, layout, fake_decoder, n_layers):
    settings = {'lookback_steps': lookback, 'change_threshold': 0.9}
    decoder = build(fake_decoder, layout, n_layers, 'specprune_vla', seed, scope, **settings)
    images, late, n_changed = [], None, 0
    generator = torch.Generator().manual_seed(seed)
    for step in range(6):
        episode = fake_decoder(decoder.pruner, layout, 100 * seed + step).saliency
        features = decoder.features.clone()
        moved = torch.randperm(20, generator=generator)[:4]
        features[moved] += torch.randn(4, 16, generator=generator)
        images.append(features.tolist())
        local = [episode[SaliencyRequest(layer, 'text')].tolist() for layer in (0, 1)]
        plan = decoder.step(step, saliency=episode, **{pictures: features})
        if step == 0:
            assert retained(plan) is None and plan.keyframe is KeyframeReason.FIRST_STEP
            expected = set(range(20))
        else:
            expected = set()
            earlier = images[max(0, step - lookback)]
            similarity = [cosine(now, then) for now, then in zip(images[-1], earlier, strict=True)]
            for members, n in groups(scope):
                change = [-value for value in similarity]
                dynamic = [i for i in top(change, members, n // 3) if similarity[i] < 0.9]
                keep = set(top(late, members, n // 3)) | set(dynamic)
                n_changed += len(dynamic)
                for k in range(1, len(members) + 1):
                    if len(keep) >= n:
                        break
                    for layer in local:  # the k-th of each layer, the first layer before
                        if len(keep) < n:
                            keep.add(top(layer, members, k)[-1])
                expected |= keep
            if scope == 'joint':
                assert len(expected) == 8
            assert set(retained(plan)) == expected
        rows = [episode[SaliencyRequest(layer, 'text')].tolist() for layer in (3, 7)]
        late = [value if i in expected else 0.0 for i, value in enumerate(mean(rows))]
    assert n_changed > 3


@pytest.mark.parametrize(
    ('moved', 'uncovered', 'covered'),
    [([14, 17], [], []), ([14], [3], []), ([14], [], [9]), ([], [2], [9]), ([], [], [])],
)
def test_specprune_vla_takes_no_place_for_black_that_stays_black(
    moved, uncovered, covered, layout, fake_decoder, n_layers
):
    """Half of the picture is a letterbox's padding. Of 8 tokens 2 are V_global's, 2 V_dynamic's
    at most; what V_dynamic does not need is V_local's."""
    decoder = build(fake_decoder, layout, n_layers, 'specprune_vla', 0, 'joint')
    before = torch.rand(20, 48, generator=torch.Generator().manual_seed(1)) * 255
    before[:9] = 0
    now = before.clone()
    now[moved] = now[moved].flip(dims=[1])
    now[uncovered] = 90.0
    now[covered] = 0.0
    decoder.step(0, patches=before)

    late = mean([decoder.saliency[SaliencyRequest(layer, 'text')].tolist() for layer in (3, 7)])
    expected = {*top(late, range(20), 2), *moved, *uncovered, *covered}
    local = [decoder.saliency[SaliencyRequest(layer, 'text')].tolist() for layer in (0, 1)]
    in_turn = [top(layer, range(20), k)[-1] for k in range(1, 21) for layer in local]
    for token in in_turn:
        if len(expected) < 8:
            expected.add(token)
    assert retained(decoder.step(1, patches=now)) == sorted(expected)


@pytest.mark.parametrize('method', ['vla_pruner', 'specprune_vla'])
def test_a_step_in_full_chooses_nothing(method, monkeypatch, layout, fake_decoder, n_layers):
    """A choice is the dear part of a plan, and a full step would drop it."""
    decoder = build(fake_decoder, layout, n_layers, method, 0, 'joint')
    saliency, asked = decoder.pruner.saliency, []

    def noted(context):
        asked.append(context.step)
        return saliency(context)

    monkeypatch.setattr(decoder.pruner, 'saliency', noted)
    plans = [decoder.step(step) for step in range(5)]
    decoder.pruner.force_keyframe()
    plans += [decoder.step(step) for step in range(5, 7)]
    assert plans[5].keyframe is KeyframeReason.FORCED
    assert asked == [step for step, plan in enumerate(plans) if plan.retained is not None]
    assert asked[-1] == 6


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), 0.0])
@pytest.mark.parametrize('why', ['start', 'forced'])
@pytest.mark.parametrize('method', ['vla_pruner', 'specprune_vla'])
def test_a_step_in_full_does_not_hide_doubt(method, why, bad, layout, fake_decoder, n_layers):
    """It says so, gives no other reason, and leaves nothing behind."""
    decoder = build(fake_decoder, layout, n_layers, method, 0, 'joint')
    reason = KeyframeReason.FORCED
    n_good = 4 if why == 'forced' else 0
    if why == 'start':
        warms_up = method == 'vla_pruner'
        reason = KeyframeReason.WARM_UP if warms_up else KeyframeReason.FIRST_STEP
    for step in range(n_good):
        decoder.step(step)
    if why == 'forced':
        decoder.pruner.force_keyframe()

    features = decoder.features.clone()
    features[7, 2] = bad
    doubts = [] if bad == 0 else [{'features': features}]
    for request in decoder.pruner.shallow_requests:
        saliency = decoder.saliency[request].clone()
        saliency[7 if bad else slice(None)] = bad
        doubts.append({'saliency': {request: saliency}})
    for step, doubt in enumerate(doubts, n_good):
        plan = decoder.step(step, **doubt)
        assert plan.retained is None and plan.keyframe is None
        assert plan.fallback == 'saliency is all zero or not finite: every token kept'
    first = n_good + len(doubts)
    reasons = [decoder.step(step).keyframe for step in range(first, first + 4)]
    n_full = 3 if reason is KeyframeReason.WARM_UP else 1
    assert reasons == [reason] * n_full + [None] * (4 - n_full)


@pytest.mark.parametrize(
    ('method', 'reads_pictures'), [('vla_pruner', False), ('specprune_vla', True)]
)
def test_pictures_are_kept_where_they_are_read(
    method, reads_pictures, layout, fake_decoder, n_layers
):
    """Of three views they are some megabytes a step."""
    decoder = build(fake_decoder, layout, n_layers, method, 0, 'joint')
    patches = torch.rand(20, 48) * 255
    kept = [weakref.ref(patches), weakref.ref(decoder.features)]
    decoder.step(0, patches=patches)
    decoder.features = decoder.features.clone()
    del patches
    assert [reference() is not None for reference in kept] == [reads_pictures, False]


@pytest.mark.parametrize('method', ['vla_pruner', 'specprune_vla'])
def test_history_of_another_task_layout_or_episode_is_not_used(
    method, layout, fake_decoder, n_layers
):
    settings = {'warm_up_steps': 0} if method == 'vla_pruner' else {}

    def decoder_after(steps):
        decoder = build(fake_decoder, layout, n_layers, method, 3, 'joint', **settings)
        for step in range(steps):
            decoder.step(step)
        return decoder

    other_views = (ViewGrid('head', 2, 4), ViewGrid('wrist', 3, 4))
    other = TokenLayout(other_views, Span(1, 21), Span(21, 25), Span(26, 29), 30)
    changes = ({'step': 0}, {'instruction_key': 'open the drawer'}, {'layout': other})
    for change in ({'step': 6, **change} for change in changes):
        fresh = build(fake_decoder, layout, n_layers, method, 3, 'joint', **settings)
        plan, expected = decoder_after(6).step(**change), fresh.step(**change)
        assert retained(plan) == retained(expected)
        assert (plan.retained is None) == (method == 'specprune_vla')
        assert plan.keyframe is expected.keyframe


def test_one_token_per_group_is_enough(fake_decoder, n_layers):
    tiny = TokenLayout((ViewGrid('head', 1, 1),), Span(0, 1), Span(1, 3), Span(3, 4), 5)
    for method in ('divprune', 'vla_pruner', 'sparsevlm', 'specprune_vla'):
        decoder = build(fake_decoder, tiny, n_layers, method, 0, 'per_view')
        plans = [decoder.step(step) for step in range(5)]
        assert retained(plans[-1]) == [0]
