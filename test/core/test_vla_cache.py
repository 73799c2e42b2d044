"""VLA-Cache: what is skipped, against its formulas written out in loops over plain numbers."""

import math

import pytest
import torch

from safe_pruner_ros.core.baselines.vla_cache import (
    VLACacheConfig,
    skipped_shares,
    skipping_order,
)
from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.pruner import KeyframeReason, SaliencyRequest, StepAttention
from safe_pruner_ros.core.tokens import Span, TokenLayout, ViewGrid

RATIO = 0.4  # 8 of 20 tokens, by view 5 of 12 and 3 of 8
RELEVANCE = SaliencyRequest(4, 'text')  # layer 15 of 32, scaled to 8


def build(fake_decoder, layout, n_layers, seed=0, **settings):
    pruner = build_pruner('vla_cache', n_layers, **{'retention_ratio': RATIO, **settings})
    return fake_decoder(pruner, layout, seed)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def expected_shares(entropy, schedule, gain):
    """alpha by layer, from the paper's two formulas and the released code's."""
    n = len(entropy)
    if schedule == 'uniform':
        return [1.0] * n
    if schedule == 'paper':
        ratios = [(entropy[j - 1] - entropy[j]) / entropy[j - 1] for j in range(1, n)]
        alpha = [min(max(gain * sum(ratios[:j]), 0), 1) for j in range(n)]
    else:
        low, high = min(entropy), max(entropy)
        reuse = [1 - (value - low) / (high - low) for value in entropy]
        for i in range(1, n):
            delta = reuse[i] - reuse[i - 1]
            if delta > 0:
                reuse[i] = reuse[i - 1] + 0.55 * delta
        alpha = [reuse[i] if i in (0, 2, 3) else 0 for i in range(n)]  # 2 6 9 11 of 32, of 8
    alpha[:2] = [0, 0]  # below the cut
    return [max(alpha[: i + 1]) for i in range(n)]


@pytest.mark.parametrize('with_patches', [False, True])
@pytest.mark.parametrize('schedule', ['paper', 'code', 'uniform'])
@pytest.mark.parametrize('scope', ['joint', 'per_view'])
@pytest.mark.parametrize('seed', range(3))
def test_what_is_skipped(seed, scope, schedule, with_patches, layout, fake_decoder, n_layers):
    """Six steps in which pictures, relevance and entropies change."""
    settings = {'quota_scope': scope, 'schedule': schedule}
    if schedule == 'paper':
        settings['schedule_gain'] = 2.0
    decoder = build(fake_decoder, layout, n_layers, seed, **settings)
    groups = [(range(20), 8)] if scope == 'joint' else [(range(12), 5), (range(12, 20), 3)]
    generator = torch.Generator().manual_seed(seed)
    shown = torch.rand(20, 16, generator=generator)
    before, n_moved, n_both, totals = None, 0, 0, set()
    for step in range(6):
        shown = shown.clone()
        moved = torch.randperm(20, generator=generator)[:5]
        shown[moved] += torch.rand(5, 16, generator=generator)
        shown[moved[:2]] *= 1.5  # brighter alone is no change of the cosine
        now = fake_decoder(decoder.pruner, layout, 100 * seed + step)
        decoder.entropy = now.entropy
        pictures = {'patches' if with_patches else 'features': shown}
        plan = decoder.step(step, saliency=now.saliency, **pictures)
        if before is None:
            assert plan.retained is None and plan.keyframe is KeyframeReason.FIRST_STEP
            assert plan.reuse.record is None and not any(plan.reuse.counts)
        else:
            earlier, relevance, entropy = before
            similarity = [
                round(cosine(a, b), 6) for a, b in zip(shown.tolist(), earlier, strict=True)
            ]

            skipped, rank = (
                set(),
                list(zip((-value for value in similarity), relevance, strict=True)),
            )
            for members, quota in groups:
                n_relevant = min(round(len(members) * 100 / 256), quota)
                relevant = sorted(members, key=relevance.__getitem__)[len(members) - n_relevant :]
                most_static = sorted(members, key=lambda i: -similarity[i])[: len(members) - quota]
                static = {i for i in most_static if similarity[i] >= 0.996}
                skipped |= static - set(relevant)
                n_both += len(static & set(relevant))
            n_moved += sum(value < 0.996 for value in similarity)
            order = sorted(skipped, key=rank.__getitem__)
            shares = expected_shares(entropy, schedule, 2.0)[2:]
            counts = [int(share * len(order)) for share in shares]
            assert list(plan.reuse.counts) == counts
            assert plan.reuse.order.tolist()[: len(order)] == order
            assert sorted(plan.reuse.order.tolist()) == list(range(20))
            kept = sorted(set(range(20)) - set(order[: counts[-1]]))
            assert plan.retained.visual_index.tolist() == kept
            assert plan.reuse.record == f'record of step {step - 1}'
            totals |= set(counts)
        before = (shown.tolist(), now.saliency[RELEVANCE].tolist(), now.entropy.tolist())
    assert n_moved > 5 and n_both > 5 and len(totals) > 1


def test_a_still_picture_skips_what_the_release_skips():
    """a490988: `find_static_patches` takes 150 of 256, then `task_relevant_selection` takes from
    these, without replacement, what is among the 100 most relevant."""
    layout = TokenLayout(
        (ViewGrid('head', 16, 16),), Span(1, 257), Span(257, 290), Span(290, 297), 297
    )
    config = VLACacheConfig(retention_ratio=106 / 256)
    for seed in range(5):
        relevance = torch.rand(256, generator=torch.Generator().manual_seed(seed))
        significant = list(range(150))  # equally similar, and its sort is stable
        top = sorted(range(256), key=lambda i: -relevance[i])[:100]
        expected = set(significant) - set(top)
        order, n_skipped = skipping_order(torch.ones(256), relevance, layout, config)
        assert set(order[: int(n_skipped)].tolist()) == expected
        assert 75 < len(expected) < 105  # 150 * 156 / 256 on average


@pytest.mark.parametrize('schedule', ['paper', 'code', 'uniform'])
def test_shares_lie_in_0_to_1_and_never_decrease(schedule):
    generator = torch.Generator().manual_seed(0)
    curves = [torch.rand(12, generator=generator).tolist() for _ in range(50)]
    for entropy in [*curves, [0.0] * 12, [2.0] * 12, [float(12 - k) for k in range(12)]]:
        gain = {'schedule_gain': 5.0} if schedule == 'paper' else {}
        shares = skipped_shares(entropy, VLACacheConfig(schedule=schedule, **gain))
        assert len(shares) == 12 and min(shares) >= 0 and max(shares) <= 1
        assert sorted(shares) == shares


@pytest.mark.parametrize('schedule', ['paper', 'code'])
def test_a_share_below_the_cut_binds_no_layer(schedule):
    """12 layers: sharp attention in layer 1, which skips nothing, and spread in those above."""
    entropy = [3.0, 1.0, 3.0, 3.0, 2.9, *[3.0] * 7]
    shares = skipped_shares(entropy, VLACacheConfig(schedule=schedule))
    assert shares[:4] == [0.0] * 4 and max(shares) < 0.1
    shares = skipped_shares(entropy, VLACacheConfig(schedule=schedule, pruning_layer=1))
    assert shares[1] > 0.3 and shares[1:] == [shares[1]] * 11


def test_skipping_starts_at_the_cut_wherever_it_is():
    """The release looks at the cut first; a late cut must not leave nobody to look at."""
    entropy = [3.0] * 3 + [1.0] * 9
    for cut, first in ((2, 3), (3, 3), (6, 6), (11, 11)):
        shares = skipped_shares(entropy, VLACacheConfig(pruning_layer=cut))
        assert not any(shares[:first]) and all(share > 0.5 for share in shares[first:])


def test_a_black_camera_that_stays_black_stands_still(layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, schedule='uniform', relevant_share=0.0)
    black = torch.zeros(20, 48)
    decoder.step(0, patches=black)
    assert len(decoder.step(1, patches=black).retained) == 8
    decoder.step(2, patches=black + 90.0)  # uncovered: everything is new
    assert len(decoder.step(3, patches=black).retained) == 20


def test_ratio_1_skips_nothing(layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, retention_ratio=1.0, schedule='uniform')
    for step in range(3):
        plan = decoder.step(step)
        assert not any(plan.reuse.counts)
    assert plan.retained.visual_index.tolist() == list(range(20))


@pytest.mark.parametrize('where', ['relevance', 'entropy', 'features'])
def test_nan_keeps_everything_fresh(where, layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers, schedule='code')
    decoder.step(0)
    good = decoder.entropy
    if where == 'relevance':
        broken = torch.full((20,), float('nan'))
        decoder.step(1, saliency={RELEVANCE: broken})
    elif where == 'entropy':
        decoder.entropy = good * float('nan')
        decoder.step(1)
        decoder.entropy = good
    else:
        plan = decoder.step(1, features=decoder.features * float('nan'))
        assert plan.retained is None and plan.reuse is None
        assert 'every token kept' in plan.fallback
        plan = decoder.step(2)  # compared with, and reusing, the last good step
        assert plan.reuse.record == 'record of step 0'
        return
    plan = decoder.step(2)
    assert plan.retained is None and plan.reuse.record is None
    assert decoder.step(3).retained is not None


def test_an_episode_an_instruction_other_views_and_force_start_anew(
    layout, fake_decoder, n_layers
):
    other = TokenLayout(
        (ViewGrid('head', 2, 4), ViewGrid('wrist', 3, 4)), Span(1, 21), Span(21, 25),
        Span(26, 29), 30,
    )  # fmt: skip
    changes = {
        KeyframeReason.INSTRUCTION_CHANGED: {'instruction_key': 'open the drawer'},
        KeyframeReason.LAYOUT_CHANGED: {'layout': other},
        KeyframeReason.FORCED: {},
        KeyframeReason.FIRST_STEP: {},
    }
    for reason, change in changes.items():
        decoder = build(fake_decoder, layout, n_layers)
        for step in range(3):
            decoder.step(step)
        if reason is KeyframeReason.FORCED:
            decoder.pruner.force_keyframe()
        if reason is KeyframeReason.FIRST_STEP:
            decoder.pruner.reset()
        plan = decoder.step(3, **change)
        assert plan.keyframe is reason
        assert plan.retained is None and plan.reuse.record is None
    # Time that went backwards: an episode that began without a reset.
    decoder = build(fake_decoder, layout, n_layers)
    decoder.step(5)
    assert decoder.step(0).keyframe is KeyframeReason.FIRST_STEP


def test_a_decoder_that_records_nothing_is_refused(layout, fake_decoder, n_layers):
    decoder = build(fake_decoder, layout, n_layers)
    context = decoder.context(0)
    plan = decoder.pruner.plan(context)
    with pytest.raises(ValueError, match='needs the record and the entropy'):
        decoder.pruner.observe(context, plan, StepAttention(decoder.saliency))
