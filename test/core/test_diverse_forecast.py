"""Diverse forecast: its own additions. What it takes over from SAFE-Pruner is tested there, what
every method must do in test_pruner_catalog.py."""

import math

import pytest
import torch
from helpers.plain import cosine, mean, most_diverse, top

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.pruner import KeyframeReason, SaliencyRequest

VIEWS = [range(12), range(12, 20)]
GROUPS = {'joint': [(range(20), 8)], 'per_view': [(range(12), 5), (range(12, 20), 3)]}  # 0.4


@pytest.fixture
def make(layout, fake_decoder, n_layers):
    def build(method='diverse_forecast', **settings):
        settings = {'retention_ratio': 0.4, 'similarity_threshold': 0.0, **settings}
        return fake_decoder(build_pruner(method, n_layers, **settings), layout)

    return build


def retained(plan):
    return None if plan.retained is None else plan.retained.visual_index.tolist()


def share(values):
    return [value / sum(values) for value in values]


def test_it_asks_the_prompt_for_the_early_saliency_and_the_action_rows_for_the_deep(make):
    pruner = make().pruner
    assert pruner.shallow_requests == (SaliencyRequest(2, 'prefill'),)
    assert pruner.deep_requests == tuple(
        SaliencyRequest(k, 'action', on_pruned_steps=True) for k in (0, 6, 7)
    )


@pytest.mark.parametrize('certain', [0, 0.25, 0.5, 1])
@pytest.mark.parametrize('scope', ['joint', 'per_view'])
@pytest.mark.parametrize('seed', range(4))
def test_pruned_step_equals_the_formula_written_out(make, certain, scope, seed):
    decoder = make(certain=certain, quota_scope=scope, alpha=0.3, full_first_step=True)
    decoder.step(0)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20, 16, generator=generator)
    early = torch.rand(20, generator=generator)
    plan = decoder.step(1, features=features, saliency={SaliencyRequest(2, 'prefill'): early})

    now, before = features.tolist(), decoder.features.tolist()
    source = [
        max(members, key=lambda j: cosine(now[i], before[j])) for members in VIEWS for i in members
    ]
    rows = [decoder.saliency[request].tolist() for request in decoder.pruner.deep_requests]
    deep = share(mean([share([row[j] for j in source]) for row in rows]))
    fused = [0.3 * e + 0.7 * d for e, d in zip(share(early.tolist()), deep, strict=True)]
    expected = []
    for members, quota in GROUPS[scope]:
        sure = top(fused, members, math.ceil(quota * certain))
        expected += most_diverse(now, list(members), quota, sure)
    assert retained(plan) == sorted(expected)


@pytest.mark.parametrize('seed', range(4))
def test_by_saliency_alone_and_with_action_rows_it_is_safe_pruner(make, seed):
    """Up to the first pruned step after a key timestep: from then on its memory follows."""
    scopes = {'norm': 'l1', 'match_scope': 'per_view', 'quota_scope': 'per_view'}
    own = {'full_first_step': True, 'certain': 1, 'early_queries': 'action'}
    mine, theirs = make(max_keyframe_age=None, **own, **scopes), make('safe_pruner', **scopes)
    generator = torch.Generator().manual_seed(seed)
    for step in range(6):
        features = torch.randn(20, 16, generator=generator)
        saliency = {
            request: torch.rand(20, generator=generator)
            for request in theirs.pruner.shallow_requests + theirs.pruner.deep_requests
        }
        if step % 2 == 0:
            mine.pruner.force_keyframe(), theirs.pruner.force_keyframe()
        plans = [d.step(step, features=features, saliency=saliency) for d in (mine, theirs)]
        assert retained(plans[0]) == retained(plans[1])
        assert (plans[1].retained is None) == (step % 2 == 0)
        assert plans[0].keyframe == plans[1].keyframe
        if step % 2:
            assert plans[0].attention_similarity == pytest.approx(plans[1].attention_similarity)


def test_the_most_salient_token_stays_and_its_copies_make_room(make):
    """Tokens 0 to 2 look alike and are the most salient: one of them stays, and three others."""
    saliency = torch.full((20,), 0.01)
    saliency[:8] = torch.linspace(1.0, 0.5, 8)
    changes = {'saliency': {SaliencyRequest(2, 'prefill'): saliency}}
    settings = {'retention_ratio': 0.2, 'quota_scope': 'joint', 'forecast': False}
    kept = {}
    for certain in (0.25, 1):
        decoder = make(certain=certain, **settings)
        decoder.features[1] = decoder.features[2] = decoder.features[0]
        kept[certain] = retained(decoder.step(0, **changes))
    assert len(kept[0.25]) == 4 and {0, 1, 2} & set(kept[0.25]) == {0}
    assert kept[1] == [0, 1, 2, 3]


@pytest.mark.parametrize('first', [True, False])
def test_the_memory_follows_pruned_steps(make, first):
    """Six steps of things that move and attention that changes, against the rule written out."""
    decoder = make(full_first_step=first, quota_scope='joint', retention_ratio=0.25, certain=1)
    requests = decoder.pruner.deep_requests
    memory, before = [[0.0] * 20 for _ in requests], []
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        features = torch.randn(20, 16, generator=generator)
        early = torch.rand(20, generator=generator)
        deep = [torch.rand(20, generator=generator) for _ in requests]
        changes = {SaliencyRequest(2, 'prefill'): early, **dict(zip(requests, deep, strict=True))}
        plan = decoder.step(step, features=features, saliency=changes)
        now = features.tolist()
        if step == 0:
            expected = list(range(20)) if first else sorted(top(early.tolist(), range(20), 5))
        else:
            source = [
                max(members, key=lambda j: cosine(now[i], before[j]))
                for members in VIEWS
                for i in members
            ]
            memory = [[row[j] for j in source] for row in memory]
            ahead = share(mean([share(row) for row in memory]))
            fused = [e + d for e, d in zip(share(early.tolist()), ahead, strict=True)]
            expected = sorted(top(fused, range(20), 5))
        kept = list(range(20)) if plan.retained is None else retained(plan)
        assert kept == expected
        assert (plan.keyframe is KeyframeReason.FIRST_STEP) == (first and step == 0)
        for row, measured in zip(memory, deep, strict=True):
            for i in kept:
                row[i] = float(measured[i])
        before = now


def test_the_shift_is_measured_from_the_last_key_timestep(make):
    """Attention that drifts a little in each step is a boundary once it is far enough."""
    decoder = make(similarity_threshold=0.9, max_keyframe_age=None, full_first_step=True)
    request = SaliencyRequest(2, 'prefill')
    start, end = torch.linspace(1, 0, 20) ** 4, torch.linspace(0, 1, 20) ** 4
    reasons = []
    for step in range(12):
        drifted = start + (end - start) * step / 11
        reasons.append(decoder.step(step, saliency={request: drifted}).keyframe)
    assert reasons[0] is KeyframeReason.FIRST_STEP
    assert reasons[1:4] == [None] * 3
    assert KeyframeReason.SUBTASK_BOUNDARY in reasons


@pytest.mark.parametrize('bad', [float('nan'), 0.0])
def test_deep_saliency_that_is_unusable_is_followed_by_a_key_timestep(make, bad):
    spoilt, plain = make(), make()
    for decoder in (spoilt, plain):
        decoder.step(0)
        decoder.step(1)
    broken = {request: torch.full((20,), bad) for request in spoilt.pruner.deep_requests}
    spoilt.step(2, saliency=broken)
    plain.pruner.force_keyframe()
    for decoder in (spoilt, plain):
        assert decoder.step(3).keyframe is KeyframeReason.FORCED
    assert retained(spoilt.step(4)) == retained(plain.step(4)) is not None


def test_a_forced_first_step_is_full(make):
    decoder = make(full_first_step=False)
    assert decoder.step(0).retained is not None
    decoder.pruner.reset()
    decoder.pruner.force_keyframe()
    assert decoder.step(0).retained is None


def test_attention_of_the_prompt_that_shifts_is_a_boundary(make):
    decoder = make(similarity_threshold=0.92)
    decoder.step(0)
    assert decoder.step(1).keyframe is None
    shifted = {SaliencyRequest(2, 'prefill'): torch.linspace(1, 0, 20) ** 8}
    assert decoder.step(2, saliency=shifted).keyframe is KeyframeReason.SUBTASK_BOUNDARY


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'certain': float('nan')}, 'certain'),
        ({'full_first_step': 'no'}, 'full_first_step'),
        ({'certain': 1.1}, 'certain'),
        ({'early_queries': 'words'}, 'early_queries'),
        ({'variant': 'code'}, "variant 'paper' only"),
        ({'retention_ratio': 0.0}, 'retention_ratio'),
    ],
)
def test_bad_settings_are_refused(n_layers, settings, message):
    with pytest.raises(ValueError, match=message):
        build_pruner('diverse_forecast', n_layers, **settings)
