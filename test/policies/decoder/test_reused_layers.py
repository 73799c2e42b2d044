"""Skipped tokens against a plain pass over all rows whose keys and values are substituted."""

import pytest
import torch
from helpers.tiny_llama import LAYOUT, N_LAYERS, WIDTH, llama, run_llama
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from safe_pruner_ros.core.catalog import build_pruner
from safe_pruner_ros.core.pruner import (
    KeyframeReason,
    KeyValueReuse,
    SaliencyRequest,
    StepPlan,
)
from safe_pruner_ros.core.score_pruner import ScorePruner, ScorePrunerConfig
from safe_pruner_ros.core.selection import RetainedTokens
from safe_pruner_ros.policies.policy import LayerTokens, PolicyOutputError

V, S = LAYOUT.n_visual, LAYOUT.length
POSITIONS = torch.arange(S)[None] * 2 + 3


def embeddings_of(step):
    return torch.randn(1, S, WIDTH, generator=torch.Generator().manual_seed(100 + step))


def run(model, pruner, step=0, **changes):
    given = {'embeddings': embeddings_of(step), 'position_ids': POSITIONS, **changes}
    return run_llama(model, pruner, step=step, **given)


class Scripted(ScorePruner):
    """Skips what the test says: ``script[step]`` is (order, counts)."""

    def __init__(self, script, pruning_layer=2, requests=()):
        super().__init__(ScorePrunerConfig(pruning_layer=pruning_layer), N_LAYERS)
        self.script, self.record, self.deep_requests = script, None, requests

    def plan(self, context):
        order, counts = self.script[context.step]
        reuse = KeyValueReuse(self.record, torch.tensor(order), counts)
        left = RetainedTokens(reuse.order[counts[-1] :].sort().values)
        return StepPlan(left if counts[-1] else None, reuse=reuse)

    def observe(self, context, plan, attention):
        self.record = attention.record


NOTHING = (list(range(V)), (0, 0, 0, 0))


def orders(n_steps, counts):
    generator = torch.Generator().manual_seed(1)
    return [NOTHING] + [
        (torch.randperm(V, generator=generator).tolist(), counts) for _ in range(n_steps - 1)
    ]


@torch.no_grad()
def substituted(model, step, script, earlier, causal, pruning_layer=2):
    """All rows through all layers, plain attention. In each layer the keys and values of the
    tokens it skips come from ``earlier``, [(keys, values)] by layer. Returns (hidden, keys and
    values by layer, attention maps by layer)."""
    order, counts = script[step]
    hidden, kept, maps = embeddings_of(step), [], []
    cos_sin = model.rotary_emb(hidden, POSITIONS)
    for index, layer in enumerate(model.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value = (
            project(normed).view(1, S, -1, 8).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *cos_sin)
        if index >= pruning_layer:
            for token in order[: counts[index - pruning_layer]]:
                key[0, :, 1 + token] = earlier[index][0][0, :, 1 + token]
                value[0, :, 1 + token] = earlier[index][1][0, :, 1 + token]
        kept.append((key, value))
        logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * attention.scaling
        if causal:
            logits = logits.masked_fill(~torch.ones(S, S, dtype=torch.bool).tril(), -torch.inf)
        weights = logits.softmax(dim=-1)
        maps.append(weights[0])
        mixed = (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2).reshape(1, S, -1)
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.norm(hidden), kept, maps


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('counts', [(0, 3, 3, 17), (9, 9, 9, 9), (1, 5, 12, 20), (20, 20, 20, 20)])
def test_equals_a_full_pass_with_substituted_keys_and_values(model, counts, causal):
    """Four steps: what is skipped twice is two steps old, and so on."""
    script = orders(4, counts)
    pruner, earlier = Scripted(script), None
    for step in range(4):
        got = run(model, pruner, step, causal=causal)
        expected, earlier, _ = substituted(model, step, script, earlier, causal)
        assert torch.allclose(got.hidden, expected[:, got.kept_positions], atol=2e-5)
        for span in (LAYOUT.text, LAYOUT.action):
            rows = expected[0, span.start : span.stop]
            assert torch.allclose(got.rows(span), rows, atol=2e-5)
        if step:
            assert len(got.kept_positions) == S - counts[-1]
            computed = [V, V, *(V - count for count in counts)]
            assert got.layer_tokens == tuple(LayerTokens(n, V) for n in computed)
            full = run(model, build_pruner('unpruned', N_LAYERS), step, causal=causal)
            assert (got.rows(LAYOUT.action) - full.rows(LAYOUT.action)).abs().max() > 1e-2


@pytest.mark.parametrize('causal', [False, True])
def test_attention_is_measured_over_all_keys(causal):
    requests = tuple(
        SaliencyRequest(layer, group, per_query, on_pruned_steps=True)
        for layer in range(N_LAYERS)
        for group, per_query in (('text', False), ('action', True), ('prefill', False))
    )
    script = orders(3, (2, 8, 8, 15))
    model, pruner, earlier = llama(), Scripted(script, requests=requests), None
    for step in range(3):
        got = run(model, pruner, step, causal=causal)
        _, earlier, maps = substituted(model, step, script, earlier, causal)
        order, counts = script[step]
        for request in requests:
            gone = () if request.layer < 2 else order[: counts[request.layer - 2]]
            asked = LAYOUT.query_positions(request.queries)
            rows = [r for r in range(asked.start, asked.stop) if r - 1 not in gone]
            expected = maps[request.layer][:, rows, 1:21]
            expected = expected.mean(dim=0 if request.per_query else (0, 1))
            assert torch.allclose(got.attention.saliency[request], expected, atol=1e-6)
        assert got.attention.entropy.shape == (N_LAYERS,)
        for layer, entropy in enumerate(got.attention.entropy.tolist()):
            gone = () if layer < 2 else order[: counts[layer - 2]]
            rows = [r for r in range(S) if r - 1 not in gone]
            weights = maps[layer].mean(dim=0)[rows]
            expected = -(weights * (weights + 1e-30).log()).sum(dim=1).mean()
            assert entropy == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize('causal', [False, True])
def test_a_cache_is_filled_with_what_was_attended_to(causal):
    """OpenVLA decodes on over it, pi0.5's expert reads it: all S tokens in every layer."""
    script = orders(2, (4, 4, 9, 9))
    model, pruner, earlier = llama(), Scripted(script), None
    for step in range(2):
        cache = DynamicCache()
        run(model, pruner, step, causal=causal, past_key_values=cache)
        _, earlier, _ = substituted(model, step, script, earlier, causal)
        for index, (keys, values) in enumerate(earlier):
            assert torch.allclose(cache.layers[index].keys, keys, atol=1e-4)
            assert torch.allclose(cache.layers[index].values, values, atol=1e-4)


# -- VLA-Cache on a decoder -----------------------------------------------------------------------


def vla_cache(**settings):
    return build_pruner('vla_cache', N_LAYERS, **settings)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('schedule', ['paper', 'code', 'uniform'])
def test_an_identical_observation_gives_the_unpruned_answer(model, schedule, causal):
    pruner = vla_cache(retention_ratio=0.05, relevant_share=0.0, schedule=schedule)
    expected = run(model, build_pruner('unpruned', N_LAYERS), causal=causal)
    for step in range(3):
        got = run(model, pruner, step, causal=causal, embeddings=embeddings_of(0))
        assert torch.allclose(got.rows(LAYOUT.action), expected.rows(LAYOUT.action), atol=2e-5)
        kept = got.kept_positions
        assert torch.allclose(got.hidden, expected.hidden[:, kept], atol=2e-5)
    if schedule == 'uniform':
        assert got.layer_tokens[-1] == LayerTokens(1, V)  # a floor of 0.05 of 20


def test_nothing_static_and_ratio_1_equal_unpruned_bit_for_bit(model):
    for pruner in (vla_cache(schedule='uniform'), vla_cache(retention_ratio=1.0)):
        for step in range(3):
            got = run(model, pruner, step)
            full = run(model, build_pruner('unpruned', N_LAYERS), step)
            assert torch.equal(got.hidden, full.hidden)
            assert got.layer_tokens == full.layer_tokens


def test_only_what_moved_is_computed_and_the_rest_is_old(model):
    """Three tokens change in the picture; the others are skipped, although their embeddings
    differ."""
    patches = torch.rand(V, 12, generator=torch.Generator().manual_seed(3))
    changed = patches.clone()
    changed[[4, 9, 17]] = 1 - changed[[4, 9, 17]]
    pruner = vla_cache(retention_ratio=0.05, relevant_share=0.0, schedule='uniform')
    run(model, pruner, 0, patches=patches)
    got = run(model, pruner, 1, patches=changed)
    assert (got.kept_positions[1:-9] - 1).tolist() == [4, 9, 17]
    skipped = sorted(set(range(V)) - {4, 9, 17})
    script = {0: NOTHING, 1: (skipped, (17,) * 4)}
    _, earlier, _ = substituted(model, 0, script, None, False)
    expected, _, _ = substituted(model, 1, script, earlier, False)
    assert torch.allclose(got.hidden, expected[:, got.kept_positions], atol=2e-5)


def test_an_episode_begins_without_the_one_before(model):
    pruner, fresh = (vla_cache(schedule='uniform', retention_ratio=0.3) for _ in range(2))
    for step in range(3):
        run(model, pruner, step, embeddings=embeddings_of(0))
    pruner.reset()
    for step in range(3):
        still = embeddings_of(7)
        got, want = (run(model, p, step, embeddings=still) for p in (pruner, fresh))
        assert (got.plan.keyframe is KeyframeReason.FIRST_STEP) == (step == 0)
        assert torch.equal(got.hidden, want.hidden)


def test_a_failed_step_never_was():
    """Its keys and values are not reused: those of the last good step are."""
    model = llama()
    pruner, untouched = (vla_cache(schedule='uniform', retention_ratio=0.3) for _ in range(2))
    for p in (pruner, untouched):
        run(model, p, 0, embeddings=embeddings_of(0))
    broken = embeddings_of(0).clone()
    broken[0, 26] = float('nan')  # an action row: the pictures are in order
    with pytest.raises(PolicyOutputError, match='policy step 1'):
        run(model, pruner, 1, embeddings=broken)
    got, want = (run(model, p, 2, embeddings=embeddings_of(0)) for p in (pruner, untouched))
    assert got.plan.retained is not None
    assert torch.equal(got.hidden, want.hidden)


def test_bfloat16():
    model, pruner = llama(dtype=torch.bfloat16), vla_cache(schedule='code', retention_ratio=0.3)
    for step in range(3):
        got = run(model, pruner, step, embeddings=embeddings_of(0).bfloat16(), causal=True)
    assert got.hidden.dtype == torch.bfloat16 and torch.isfinite(got.hidden).all()
    assert got.plan.retained is not None


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'counts': (5, 5, 3, 5)}, r'must not decrease, got \[5, 5, 3, 5\]'),
        ({'counts': (5, 5)}, 'for 4 layers must have as many counts, got 2'),
        ({'record': None}, 'takes the record of an earlier step, got None'),
        ({'record': 'record'}, "got 'record'; hand back"),
        ({'positions': POSITIONS + 1}, 'had other positions; plan a full step'),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    model, script = llama(), orders(2, (5, 5, 5, 5))
    pruner = Scripted(script)
    run(model, pruner, 0)
    if 'counts' in change:
        script[1] = (script[1][0], change['counts'])
    if 'record' in change:
        pruner.record = change['record']
    with pytest.raises(ValueError, match=message):
        run(model, pruner, 1, position_ids=change.get('positions', POSITIONS))


def test_the_record_of_a_shorter_stack_is_refused():
    model, pruner = llama(), Scripted(orders(2, (5, 5, 5, 5)))
    run(model, pruner, 0)
    del pruner.record.keys[5]
    with pytest.raises(ValueError, match='of another decoder'):
        run(model, pruner, 1)
